"""IDH status as text -> 0 (wildtype) or 1 (mutant), from a closed vocabulary; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from idh_lightning.cohort.study import MUTANT, WILDTYPE
from idh_lightning.errors import CohortError, ConfigError

_THREE_LETTERS = {
    "C": "Cys", "G": "Gly", "H": "His", "K": "Lys", "L": "Leu", "M": "Met", "Q": "Gln", "S": "Ser", "W": "Trp",
}  # fmt: skip
_HOT_SPOTS = {("IDH1", "132"): "HCGSL", ("IDH2", "172"): "KMWSG", ("IDH2", "140"): "QWLG"}
"""Residues that replace the arginine. Source: Yan et al. 2009, NEJM 360:765; Ward et al. 2010, Cancer Cell 17:225."""

_WILDTYPE_WORDS = (
    "wildtype", "wt", "not mutated", "non mutated", "unmutated", "not mutant", "non mutant", "no mutation",
    "no mutation detected", "mutation not detected",
)  # fmt: skip
_MUTANT_WORDS = ("mutant", "mutated", "mut", "mutated (NOS)", "mutant (NOS)", "mutation detected")


def normalise(text: str) -> str:
    """Return a spelling without differences of case, white space, or a dash or space between its words.

    A sign before a number stays: -1 is not 1.
    """
    text = re.sub(r"\s+", " ", text).strip().casefold()
    return re.sub(r"(?<=[a-z])[ _-]+(?=[a-z0-9])|(?<=[a-z0-9])[ _-]+(?=[a-z])", "", text)


_UNDECIDED = frozenset(
    map(
        normalise,
        ("", "unknown", "indeterminate", "pending", "nos", "nec", "nos/nec", "na", "n/a", "nan", "none",
         "not available", "not tested", "not done", "not known", "missing", "inconclusive", "equivocal", "?", "-"),
    )
)  # fmt: skip


def is_undecided(text: str) -> bool:
    """Whether a spelling says that the status is not known, which no setting can turn into a label."""
    return normalise(text) in _UNDECIDED


def _mutation_names() -> list[str]:
    """Return the hot-spot mutations, with and without their gene, which the residue tells as well."""
    names = []
    for (gene, position), residues in _HOT_SPOTS.items():
        for residue in residues:
            for change in (f"R{position}{residue}", f"Arg{position}{_THREE_LETTERS[residue]}"):
                for form in (change, f"p.{change}"):
                    names += [form, f"{gene} {form}", f"{gene}:{form}", f"{gene} ({form})", f"{gene} {form} mutant"]
                    names += [f"{word} ({form})" for word in ("mutant", "mutated", "mut")] + [f"{form} mutant"]
    return names


def _words() -> dict[str, int]:
    """Return the words of both labels. What is said of IDH1 alone tells a mutant, but no wildtype: IDH2 is open."""
    words = dict.fromkeys(_WILDTYPE_WORDS, WILDTYPE) | dict.fromkeys(_MUTANT_WORDS, MUTANT)
    named = {f"{gene} {word}": label for word, label in words.items() for gene in ("IDH", "IDH1/2", "IDH1/IDH2")}
    genes = {f"{gene} {word}": MUTANT for word in _MUTANT_WORDS for gene in ("IDH1", "IDH2")}
    return words | named | genes


IDH_VOCABULARY: Mapping[str, int] = {
    **{normalise(word): label for word, label in _words().items()},
    **{normalise(word): MUTANT for word in _mutation_names()},
}
"""Normalised spelling -> label: words and hot-spot mutations by name. "negative" and "positive" are not among them: of
an antibody against R132H they leave other mutations open."""


def extend_vocabulary(vocabulary: Mapping[str, int], extra: Mapping[str, str | Sequence[str]]) -> dict[str, int]:
    """Return a vocabulary with further spellings.

    Args:
        vocabulary: Normalised spelling -> label.
        extra: Spelling -> "wildtype" or "mutant"; or the other way round, "wildtype" or "mutant" -> spellings.

    Raises:
        ConfigError: If a value is neither, a spelling contradicts the vocabulary, or it says that IDH is not known.
    """
    words = {"wildtype": WILDTYPE, "mutant": MUTANT}
    extended = dict(vocabulary)
    pairs = [
        pair
        for key, value in extra.items()
        for pair in ([(key, value)] if isinstance(value, str) else [(spelling, key) for spelling in value])
    ]
    for text, meaning in pairs:
        spelling = normalise(str(text))
        if meaning not in words:
            raise ConfigError(
                f"cohort.vocabulary: {text!r} means {meaning!r}; expected 'wildtype' or 'mutant'. Correct the entry."
            )
        if spelling in _UNDECIDED or extended.get(spelling, words[meaning]) != words[meaning]:
            raise ConfigError(
                f"cohort.vocabulary: {text!r} cannot mean {meaning!r}; expected a spelling that is not yet known and "
                "does not say 'unknown'. Remove the entry, or list the studies in cohort.exclude."
            )
        extended[spelling] = words[meaning]
    return extended


def parse_idh(text: str, vocabulary: Mapping[str, int] = IDH_VOCABULARY) -> int:
    """Return the label of an IDH status: 0 wildtype, 1 mutant; a CohortError if its spelling is not in the vocabulary.

    The text is as it stands in the table, where case and white space do not matter; the vocabulary has normalised ones.
    """
    spelling = normalise(text)
    if spelling in _UNDECIDED or spelling not in vocabulary:
        raise CohortError(
            f"IDH is {text[:80]!r}; expected 'wildtype', 'mutant' or a mutation name. Correct the table, add the "
            "spelling to cohort.vocabulary, or add the study to cohort.exclude."
        )
    return vocabulary[spelling]
