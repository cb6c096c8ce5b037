"""IDH status as text -> 0 (wildtype) or 1 (mutant), from a closed vocabulary; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from idh_lightning.cohort.study import MUTANT, WILDTYPE
from idh_lightning.errors import CohortError, ConfigError

_THREE_LETTERS = {
    "C": "Cys", "G": "Gly", "H": "His", "K": "Lys", "L": "Leu", "M": "Met", "Q": "Gln", "S": "Ser", "W": "Trp",
}  # fmt: skip
_HOT_SPOTS = {("IDH1", "132"): "HCGSL", ("IDH2", "172"): "KMWSG", ("IDH2", "140"): "QWLG"}
"""What replaces the arginine. Source: Yan et al. 2009, NEJM 360:765; Ward et al. 2010, Cancer Cell 17:225."""

_WILDTYPE_WORDS = ("wildtype", "wild-type", "wild type", "wt", "IDH-wildtype", "IDH wildtype", "IDH wt", "not mutated")
_MUTANT_WORDS = ("mutant", "mutated", "mut", "IDH-mutant", "IDH mutant", "IDH mut", "mutated (NOS)")
_UNDECIDED = frozenset({"", "unknown", "indeterminate", "pending", "nos", "nec", "nos/nec", "na", "n/a", "nan", "none"})
"""Words that say that the status is not known. No setting can turn one of them into a label."""


def normalise(text: str) -> str:
    """Return a spelling without differences of case and white space."""
    return re.sub(r"\s+", " ", text).strip().casefold()


def _mutation_names() -> list[str]:
    names = []
    for (gene, position), residues in _HOT_SPOTS.items():
        for residue in residues:
            for change in (f"R{position}{residue}", f"Arg{position}{_THREE_LETTERS[residue]}"):
                names += [f"{gene} {change}", f"{gene} p.{change}"]
    return names


IDH_VOCABULARY: Mapping[str, int] = {
    **{normalise(word): WILDTYPE for word in _WILDTYPE_WORDS},
    **{normalise(word): MUTANT for word in (*_MUTANT_WORDS, *_mutation_names())},
}
"""Normalised spelling -> label: the words of the UCSF-PDGM table and the hot-spot mutations by name."""


def extend_vocabulary(vocabulary: Mapping[str, int], extra: Mapping[str, str]) -> dict[str, int]:
    """Return a vocabulary with further spellings.

    Args:
        vocabulary: Normalised spelling -> label.
        extra: Spelling -> "wildtype" or "mutant".

    Raises:
        ConfigError: If a value is neither, a spelling contradicts the vocabulary, or it says that IDH is not known.
    """
    words = {"wildtype": WILDTYPE, "mutant": MUTANT}
    extended = dict(vocabulary)
    for text, meaning in extra.items():
        spelling = normalise(str(text))
        if meaning not in words:
            raise ConfigError(
                f"cohort.vocabulary: {text!r} means {meaning!r}; expected 'wildtype' or 'mutant'. Correct the entry."
            )
        if spelling in _UNDECIDED or vocabulary.get(spelling, words[meaning]) != words[meaning]:
            raise ConfigError(
                f"cohort.vocabulary: {text!r} cannot mean {meaning!r}; expected a spelling that is not yet known and "
                "does not say 'unknown'. Remove the entry, or list the studies in cohort.exclude."
            )
        extended[spelling] = words[meaning]
    return extended


def parse_idh(text: str, vocabulary: Mapping[str, int] = IDH_VOCABULARY) -> int:
    """Return the label of an IDH status: 0 wildtype, 1 mutant.

    Args:
        text: As it stands in the table; case and white space do not matter.
        vocabulary: Normalised spelling -> label.

    Raises:
        CohortError: If the spelling is not in the vocabulary.
    """
    spelling = normalise(text)
    if spelling in _UNDECIDED or spelling not in vocabulary:
        raise CohortError(
            f"IDH is {text[:80]!r}; expected 'wildtype', 'mutant' or a mutation name. Correct the table, add the "
            "spelling to cohort.vocabulary, or add the study to cohort.exclude."
        )
    return vocabulary[spelling]
