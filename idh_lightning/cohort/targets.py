"""Targets of prediction: the column with the label, the names of its two classes, and a closed vocabulary of both."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from idh_lightning.cohort.labels import IDH_VOCABULARY, UNDECIDED, normalise
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError, ConfigError
from idh_lightning.records import Record


@dataclass(frozen=True, kw_only=True)
class Target(Record):
    """Binary target.

    Attributes:
        name: Of the target and of the role that its column plays; of a target that is not in TARGETS, the column.
        title: In titles.
        marker: Before the name of a class; "" where that speaks for itself.
        negative: Name of class 0.
        positive: Name of class 1.
        vocabulary: Normalised spelling -> class. Of one cohort, so that it is neither stored nor compared.
        undecided: Normalised spellings which say that the class is not known; no setting makes a label of them.
    """

    name: str
    title: str
    marker: str
    negative: str
    positive: str
    vocabulary: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    undecided: frozenset[str] = field(default=UNDECIDED, compare=False, repr=False)

    @property
    def classes(self) -> tuple[str, str]:
        """Names of the classes 0 and 1."""
        return self.negative, self.positive

    @property
    def chance(self) -> str:
        """Probability of the positive class, as it stands in sentences and tables."""
        return f"P({self.positive})"

    @property
    def expected(self) -> str:
        """Spellings of the label, in words."""
        words = [*map(repr, self.classes), *(["a mutation name"] if self.name == "idh" else [])]
        return f"{', '.join(words[:-1])} or {words[-1]}"

    def named(self, label: int) -> str:
        """Name of a class beside a study: "IDH mutant"."""
        return f"{self.marker} {self.classes[label]}".strip()

    def label_of(self, text: str) -> int:
        """Class of the text in a table, where case and white space do not matter; a CohortError if it is not known."""
        spelling = normalise(text)
        if spelling in self.undecided or spelling not in self.vocabulary:
            raise CohortError(
                f"{self.marker or self.title} is {text[:80]!r}; expected {self.expected}. Correct the table, add the "
                "spelling to cohort.vocabulary, or add the study to cohort.exclude."
            )
        return self.vocabulary[spelling]

    def extended(self, extra: Mapping[str, str | Sequence[str]]) -> Target:
        """Target with further spellings.

        Args:
            extra: Spelling -> name of a class; or the other way round, name of a class -> spellings.

        Raises:
            ConfigError: If a value is no class, a spelling contradicts the vocabulary, or it says "not known".
        """
        meanings = {normalise(name): label for label, name in enumerate(self.classes)}
        vocabulary = dict(self.vocabulary)
        pairs = [
            pair
            for key, value in extra.items()
            for pair in ([(spelling, key) for spelling in value] if isinstance(value, list | tuple) else [(key, value)])
        ]
        for text, meaning in pairs:
            spelling, label = normalise(str(text)), meanings.get(normalise(str(meaning)))
            if label is None:
                lines = [to_paste("cohort.vocabulary", {str(text): one}) for one in self.classes]
                raise ConfigError(
                    f"cohort.vocabulary: {str(text)!r} means {str(meaning)!r}; expected "
                    f"{' or '.join(map(repr, self.classes))}, the names of the classes. Write {' or '.join(lines)}"
                )
            if spelling in self.undecided or vocabulary.get(spelling, label) != label:
                raise ConfigError(
                    f"cohort.vocabulary: {text!r} cannot mean {meaning!r}; expected a spelling that is not yet known "
                    "and does not say 'unknown'. Remove the entry, or list the studies in cohort.exclude."
                )
            vocabulary[spelling] = label
        return replace(self, vocabulary=vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Primitives, without the spellings."""
        return {name: getattr(self, name) for name in ("name", "title", "marker", "negative", "positive")}

    @classmethod
    def of_record(cls, state: Mapping[str, Any] | None) -> Target:
        """Target that a run has stored; one that names none is of before there were others, and predicts IDH."""
        return cls.from_dict(state) if state else IDH


def _spellings(negative: Iterable[str], positive: Iterable[str], before: Sequence[str]) -> dict[str, int]:
    """Vocabulary of both classes, each word alone and after what it is said of."""
    words = {word: label for label, each in enumerate((negative, positive)) for word in each}
    return {normalise(f"{of} {word}"): label for (word, label), of in product(words.items(), ("", *before))}


IDH = Target(
    name="idh", title="IDH status", marker="IDH", negative="wildtype", positive="mutant", vocabulary=IDH_VOCABULARY
)

TARGETS: Mapping[str, Target] = {
    "idh": IDH,
    "codeletion_1p19q": Target(
        name="codeletion_1p19q", title="1p/19q codeletion", marker="1p/19q",
        negative="non-codeleted", positive="codeleted",
        vocabulary=_spellings(
            ("non-codeleted", "non-co-deleted", "not codeleted", "not co-deleted", "non-codel", "no codeletion",
             "no co-deletion", "intact"),
            ("codeleted", "co-deleted", "codeletion", "co-deletion", "codel"),
            ("1p/19q", "1p19q"),
        ),
    ),
    "mgmt": Target(
        name="mgmt", title="MGMT promoter methylation", marker="MGMT", negative="unmethylated", positive="methylated",
        vocabulary=_spellings(
            ("unmethylated", "non-methylated", "not methylated"), ("methylated",), ("MGMT", "MGMT promoter")
        ),
    ),
    "grade4": Target(
        name="grade4", title="WHO grade", marker="WHO", negative="grade 2-3", positive="grade 4",
        vocabulary=_spellings(
            ("2", "3", "II", "III", "grade 2-3"), ("4", "IV"), ("grade", "WHO", "WHO grade", "CNS WHO grade")
        ),
    ),
}  # fmt: skip
""""Relative co-deletion" of UCSF-PDGM is not among the spellings: of the six patients in its table two have an
astrocytoma. "Positive" of MGMT may also be said of the protein, which methylation silences."""

_RESERVED = ("both", "none")


def target_of(name: str, classes: Sequence[str] | None = None) -> Target:
    """Target by its name, or, with the names of two classes, of any column of a table.

    Args:
        name: One of TARGETS, or a column.
        classes: Names of the negative and the positive class of a column; None for one of TARGETS.

    Raises:
        ConfigError: If a name is not known, or the classes are not two words that can be told apart.
    """
    if name in TARGETS:
        if classes is not None and list(classes) != list(TARGETS[name].classes):
            raise ConfigError(
                f"cohort.classes: {list(classes)} of the target {name!r}, which has {list(TARGETS[name].classes)}; "
                "expected none. Remove it; further spellings go into cohort.vocabulary."
            )
        return TARGETS[name]
    if classes is None:
        near = difflib.get_close_matches(name.casefold(), list(TARGETS), n=1, cutoff=0.6)
        raise ConfigError(
            f"cohort.target: {name!r}; expected {', '.join(TARGETS)}, or a column of the table with the names of its "
            f"two classes. {f'Did you mean {near[0]}? Else name' if near else 'Name'} them, the positive one last: "
            f"{to_paste('cohort.target', name)} 'cohort.classes=[lost,kept]'"
        )
    words = [normalise(str(one)) for one in classes]
    if (
        len(set(words)) != 2
        or len(words) != 2
        or any(word in UNDECIDED or word in _RESERVED or not re.match(r"[^\W\d_]", word) for word in words)
    ):
        raise ConfigError(
            f"cohort.classes: {list(classes)}; expected two different words, the negative class first, neither a "
            "number nor one that says 'unknown', 'both' or 'none'. Name them, and what numbers mean in "
            "cohort.vocabulary: 'cohort.classes=[kept,lost]' 'cohort.vocabulary={0: kept, 1: lost}'"
        )
    negative, positive = map(str, classes)
    return Target(
        name=name, title=name, marker=name, negative=negative, positive=positive,
        vocabulary=dict(zip(words, (0, 1), strict=True)),
    )  # fmt: skip
