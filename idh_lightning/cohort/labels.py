"""Spellings of labels, compared without case and marks, and the vocabulary of IDH status; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

WILDTYPE, MUTANT = 0, 1

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


UNDECIDED = frozenset(
    map(
        normalise,
        ("", "unknown", "indeterminate", "pending", "nos", "nec", "nos/nec", "na", "n/a", "n.a.", "#n/a", "<na>", "nan",
         "none", "null", "nil", "tbd", "tba", "to be determined", "undetermined", "unspecified", "unavailable",
         "not available", "not applicable", "not tested", "not done", "not known", "not reported", "not recorded",
         "missing", "inconclusive", "equivocal", "?", "-", "--"),
    )
)  # fmt: skip
"""Normalised spellings which say that a status is not known."""


def unstated(text: str) -> bool:
    """Whether a cell says nothing: one of UNDECIDED, or marks alone. Of a status "+" may say something."""
    return normalise(text) in UNDECIDED or not re.search(r"[^\W_]", text)


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
