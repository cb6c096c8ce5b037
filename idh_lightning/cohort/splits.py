"""Splits of a cohort over patients: training, validation and test."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from idh_lightning.cohort.identity import canonical_patient
from idh_lightning.cohort.spreadsheet import match_columns, read_spreadsheet
from idh_lightning.cohort.study import Cohort, Exclusion, Study
from idh_lightning.cohort.targets import IDH, Target
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError, SplitError

logger = logging.getLogger(__name__)

SPLITS: tuple[str, ...] = ("train", "validation", "test")
SPLIT_COLUMNS: tuple[str, ...] = (
    "study_id", "patient_id", "label", "split", "fold", "age_years", "sex", "follow_up",
)  # fmt: skip
_OF_A_SPLIT = ("study_id", "patient_id", "split", "fold")
_OF_A_SITE = re.compile(
    r"site|hospital|clinic|cent(er|re)|institut|scanner|manufact|vendor|cohort|source", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class _DrawnSplit:
    """Split drawn over patients, stratified by label and by site where there are several.

    Attributes:
        seed: The draw depends on it and on the patients, on nothing else; the same for all folds.
        validation: Share of all patients, rounded to whole patients, drawn from those that are not tested.
        site: Name of the carried column that tells sites apart; ignored where it does not occur.
        training_patients: How many of the patients left for training are used, for a learning curve; None for all.
    """

    seed: int
    validation: float = 0.15
    site: str = "site"
    training_patients: int | None = None

    def _table(
        self, cohort: Cohort, patients: pd.DataFrame, test: list[str], fold: int = 0, of: int | None = None
    ) -> pd.DataFrame:
        """Cohort table once the test patients are drawn; validation is a share of `of` patients, or of all."""
        count = _count(self.validation, len(patients) if of is None else of)
        validation = _draw(patients.drop(test), count, self.seed + fold, "validation", cohort.target)
        parts = {**dict.fromkeys(test, "test"), **dict.fromkeys(validation, "validation")}
        splits = {study.study_id: parts.get(study.patient_id, "train") for study in cohort.studies}
        return _thinned(_assign(cohort, splits, fold), self.training_patients, self.seed, cohort.target)


@dataclass(frozen=True, kw_only=True)
class HoldOut(_DrawnSplit):
    """One split into three parts; `test` is the share of the patients that are tested."""

    test: float = 0.15

    def __call__(self, cohort: Cohort) -> pd.DataFrame:
        """Cohort table with split; a SplitError if the shares are out of range, or a part would lack a label."""
        _check_shares(validation=self.validation, test=self.test)
        patients = _patients(cohort, self.site)
        test = _draw(patients, _count(self.test, len(patients)), self.seed, "test", cohort.target)
        return self._table(cohort, patients, test)


@dataclass(frozen=True, kw_only=True)
class KFold(_DrawnSplit):
    """One fold of a cross-validation over patients: over all folds, every patient is tested once per repeat.

    Attributes:
        fold: From 0 to folds * repeats - 1.
        folds: Number of parts.
        repeats: Number of cross-validations with different draws.
    """

    fold: int = 0
    folds: int = 5
    repeats: int = 1

    def __call__(self, cohort: Cohort) -> pd.DataFrame:
        """Cohort table with split; a SplitError if a setting is out of range, or a part would lack a label."""
        if self.folds < 2 or self.repeats < 1 or not 0 <= self.fold < self.folds * self.repeats:
            raise SplitError(
                f"split: fold {self.fold} of {self.folds} folds x {self.repeats} repeats; expected at least 2 folds, 1 "
                "repeat, and 0 <= fold < folds * repeats. Correct split.folds, split.repeats or fold."
            )
        _check_shares(validation=self.validation, test=1 / self.folds)
        patients = _patients(cohort, self.site)
        fewest = patients["label"].value_counts().reindex([0, 1], fill_value=0).min()
        if fewest < self.folds:
            raise SplitError(
                f"split: {fewest} patients of one label; expected at least one for each of {self.folds} folds. "
                "Set split.folds lower or add patients."
            )
        strata = _strata(patients, self.folds)
        from sklearn.model_selection import RepeatedStratifiedKFold  # slow to import, for every process that reads

        folds = RepeatedStratifiedKFold(n_splits=self.folds, n_repeats=self.repeats, random_state=self.seed)
        _, tested = list(folds.split(patients, strata))[self.fold]
        return self._table(cohort, patients, list(patients.index[tested]), self.fold)


@dataclass(frozen=True, kw_only=True)
class LeaveSiteOut(_DrawnSplit):
    """One fold of a leave-one-site-out validation: fold i tests the i-th site by name, the others train and validate.

    A patient who was seen at several sites belongs to that of the first study, follow-ups last; the studies at other
    sites are left out, so that no fold trains on a study of the site that it tests.

    Attributes:
        validation: Share of the patients of the other sites.
        site: Name of the carried column that tells sites apart; it must be there, and filled.
        fold: From 0 to folds - 1.
        folds: Number of sites that are tested; a check.
        minimum_group: Patients of each label that a site needs to be tested; smaller ones train in every fold.
    """

    fold: int = 0
    folds: int = 5
    minimum_group: int = 1

    def __call__(self, cohort: Cohort) -> pd.DataFrame:
        """Cohort table with split; a SplitError as by `sites`, or if a part would lack a label."""
        tested, homes = self.sites(cohort), self._homes(cohort)
        studies = tuple(s for s in cohort.studies if _carried(s, self.site) == homes[s.patient_id])
        if left := len(cohort.studies) - len(studies):
            logger.warning("%d studies of patients who were seen at another site first are left out.", left)
        patients = _patients(replace(cohort, studies=studies), self.site)
        if small := sorted(set(patients["site"]) - set(tested)):
            logger.warning(
                "Too small to be tested (split.minimum_group), so trained on in each fold: %s.", _some(small)
            )
        test = list(patients.index[patients["site"] == tested[self.fold]])
        logger.info("Fold %d of %d tests site %s, %d patients.", self.fold, self.folds, tested[self.fold], len(test))
        others = len(patients) - len(test)
        return self._table(replace(cohort, studies=studies), patients, test, self.fold, of=others)

    def sites(self, cohort: Cohort) -> list[str]:
        """Sites that are tested, by name; a SplitError if the cohort does not name as many as `folds`."""
        columns = list(dict.fromkeys(name for study in cohort.studies for name in study.carried))
        if self.site not in columns:
            near = [to_paste("split.site", name) for name in columns if _OF_A_SITE.search(name)][:5]
            raise SplitError(
                f"cohort {cohort.name}: no column {self.site!r} (split.site); found "
                f"{_some([repr(name) for name in columns]) or 'none beside age, sex and files'}. "
                + (f"If this is it, add {' or '.join(near)}. Else name" if near else "Name")
                + " the column that tells sites apart, add one to the table, or take split=kfold"
            )
        if lost := [study.study_id for study in cohort.studies if not _carried(study, self.site)]:
            raise SplitError(
                f"cohort {cohort.name}: no {self.site} for {_some(lost)}; expected one for every study. Fill the "
                f"column in, or leave these studies out: {to_paste('cohort.exclude', lost)}"
            )
        spellings: dict[str, set[str]] = defaultdict(set)
        for study in cohort.studies:
            named = _carried(study, self.site)
            spellings[" ".join(unicodedata.normalize("NFKC", named).casefold().split())].add(named)
        if alike := sorted(map(ascii, next((each for each in spellings.values() if len(each) > 1), ()))):
            raise SplitError(
                f"cohort {cohort.name}: {' and '.join(alike)} in the column {self.site!r}; expected one spelling of a "
                "site, else it would be tested by a network that learnt from it. Correct the table"
            )
        labels = {study.patient_id: study.label for study in cohort.studies}
        counts = pd.crosstab(pd.Series(self._homes(cohort)), pd.Series(labels)).reindex(columns=[0, 1], fill_value=0)
        tested = sorted(map(str, counts.index[counts.min(axis=1) >= max(self.minimum_group, 1)]))
        if len(tested) < 2:
            words = cohort.target.classes
            told = "; ".join(f"{site}: {row[0]} {words[0]}, {row[1]} {words[1]}" for site, row in counts.iterrows())
            fewer = "Lower split.minimum_group, join" if self.minimum_group > 1 else "Join"
            raise SplitError(
                f"cohort {cohort.name}: too few sites with enough patients of both labels ({len(tested)}; {told}); "
                f"expected two or more. {fewer} small sites in the table, or take split=kfold"
            )
        if self.folds != len(tested) or not 0 <= self.fold < self.folds:
            raise SplitError(
                f"cohort {cohort.name}: fold {self.fold} of {self.folds}, and {len(tested)} sites to test: "
                f"{', '.join(tested)}; expected one fold for each. Add split.folds={len(tested)}"
            )
        return tested

    def _homes(self, cohort: Cohort) -> dict[str, str]:
        """Patient -> site of the first study."""
        homes: dict[str, str] = {}
        for study in sorted(cohort.studies, key=lambda study: (study.follow_up, study.study_id)):
            homes.setdefault(study.patient_id, _carried(study, self.site))
        return homes


@dataclass(frozen=True, kw_only=True)
class GivenSplit:
    """A split that somebody has made before: the `cohort.csv` or `splits.csv` of a run, or any table like it.

    Attributes:
        file: Table with the columns split and study_id or, without that, patient_id, or usual names of these; a
            column fold is kept. It may name studies that the cohort lacks, but not the other way round.
    """

    file: str | Path

    def __call__(self, cohort: Cohort) -> pd.DataFrame:
        """Cohort table with split; a SplitError if the file cannot be read or does not say one thing of each study."""
        name = Path(self.file).name
        try:
            table = read_spreadsheet(self.file)
        except CohortError as error:
            raise SplitError(str(error).replace("cohort.table", "split.file")) from error
        try:
            found = match_columns(table.columns, {role: role for role in _OF_A_SPLIT}, Path(self.file))
        except CohortError as error:
            raise SplitError(
                f"{str(error).partition('; expected one')[0]}; expected one. Rename the others."
            ) from error
        # A table that names patients alone is said to name studies by them.
        key = "patient_id" if found.get("study_id") == found.get("patient_id") else "study_id"
        if absent := [role for role in (key, "split") if role not in found]:
            raise SplitError(
                f"{name}: no column {absent}; found {_some([repr(one) for one in table.columns])}; expected study_id "
                "or patient_id, and split. Rename a column, or add it."
            )
        table = table.rename(columns={found[role]: role for role in (key, "split", "fold") if role in found})
        table["split"] = table["split"].str.casefold()
        if unknown := sorted(set(table["split"]) - set(SPLITS)):
            raise SplitError(f"{name}: split is {unknown[:5]}; expected one of {SPLITS}. Correct the file.")
        ids = table[key].map(canonical_patient) if key == "patient_id" else table[key]
        table = table.assign(**{key: ids, "fold": table.get("fold", "0")})
        table = table[[key, "split", "fold"]].drop_duplicates()
        if twice := sorted(set(table[key][table[key].duplicated()])):
            raise SplitError(
                f"{name}: {_some(twice)} in two splits or folds; expected one each. Correct the file, or give one with "
                "a single fold."
            )
        folds = sorted(set(table["fold"]))
        if len(folds) != 1 or not folds[0].isdecimal():
            raise SplitError(f"{name}: fold is {folds[:5]}; expected one whole number. Give a file of one fold.")
        splits = dict(zip(table[key], table["split"], strict=True))
        wanted = {s.study_id: s.study_id if key == "study_id" else s.patient_id for s in cohort.studies}
        if lost := sorted({identifier for identifier in wanted.values() if identifier not in splits}):
            raise SplitError(
                f"{name}: says nothing about {_some(lost)}; expected every study of the cohort. Add them to the file "
                "or to cohort.exclude."
            )
        return _assign(cohort, {study: splits[identifier] for study, identifier in wanted.items()}, int(folds[0]))


@dataclass(frozen=True, kw_only=True)
class AllTest:
    """Every study is a test study: the cohort only judges a network that was trained elsewhere."""

    def __call__(self, cohort: Cohort) -> pd.DataFrame:
        """Cohort table with split; a SplitError if one of the labels does not occur."""
        labels = {study.label for study in cohort.studies}
        if lacking := [word for label, word in enumerate(cohort.target.classes) if label not in labels]:
            raise SplitError(
                f"cohort {cohort.name}: no {' and no '.join(lacking)} patient among {len(cohort.studies)} studies; "
                "expected both labels. Add patients, or look at cohort.exclude and exclusions.csv."
            )
        ids = [study.study_id for study in cohort.studies]
        return cohort_table(cohort, pd.DataFrame({"study_id": ids, "split": "test", "fold": 0}))


def without_left_out(cohort: Cohort, table: pd.DataFrame) -> Cohort:
    """Return a cohort with the studies that a split of it does not use, left for no training, as exclusions."""
    used, people = set(table["study_id"]), set(table["patient_id"])
    reasons = {False: "not among training patients: split", True: "seen at another site first: split"}
    return cohort.without(
        Exclusion(study_id=s.study_id, patient_id=s.patient_id, reason=reasons[s.patient_id in people])
        for s in cohort.studies
        if s.study_id not in used
    )


def cohort_table(cohort: Cohort, assignment: pd.DataFrame) -> pd.DataFrame:
    """Return one row per study, sorted by study_id: the content of `cohort.csv`.

    SPLIT_COLUMNS come first, then every carried column; one that would take the name of the former becomes
    `carried_<name>`. A SplitError is raised if the assignment (study_id, split and fold) lacks a study.
    """
    carried = list(dict.fromkeys(name for study in cohort.studies for name in study.carried))
    assigned = assignment[["study_id", "split", "fold"]].itertuples(index=False)
    splits = {row.study_id: {"split": row.split, "fold": row.fold} for row in assigned}
    if lost := sorted({study.study_id for study in cohort.studies} - set(splits)):
        raise SplitError(
            f"split: says nothing about {_some(lost)}; expected every study of the cohort. Split it again."
        )
    rows = [
        {name: getattr(study, name) for name in SPLIT_COLUMNS if name not in ("split", "fold")}
        | splits[study.study_id]
        | {_column(name): study.carried.get(name) for name in carried}
        for study in sorted(cohort.studies, key=lambda study: study.study_id)
    ]
    table = pd.DataFrame(rows, columns=[*SPLIT_COLUMNS, *map(_column, carried)])
    return table.astype({"age_years": float, "label": int, "fold": int, "follow_up": bool})


def verify_split(table: pd.DataFrame, target: Target = IDH) -> None:
    """Raise a SplitError that names patients, studies or the part, unless a cohort table says a split.

    No patient is in two parts, every study occurs once, and each part has both labels.
    """
    if unknown := sorted(set(table["split"]) - set(SPLITS)):
        raise SplitError(f"split: {unknown}; expected one of {SPLITS}. Correct the split.")
    parts = table.groupby("patient_id")["split"].nunique()
    if len(torn := sorted(parts.index[parts > 1])):
        raise SplitError(
            f"split: patient {_some(torn)} in two splits; expected every patient in one. Correct the split file."
        )
    if twice := sorted(set(table["study_id"][table["study_id"].duplicated()])):
        raise SplitError(f"split: study {_some(twice)} twice; expected every study once. Correct the split file.")
    for split in SPLITS:
        labels = set(table["label"][table["split"] == split])
        if lacking := [word for label, word in enumerate(target.classes) if label not in labels]:
            raise SplitError(
                f"split: no {' and no '.join(lacking)} patient in {split}; expected both labels in each part. "
                "Raise the share of this part, use another seed, or add patients."
            )


def _patients(cohort: Cohort, site: str) -> pd.DataFrame:
    """Return label and site of each patient, sorted by patient, so that the order of a table cannot matter."""
    rows = [(s.patient_id, s.label, _carried(s, site)) for s in cohort.studies]
    table = pd.DataFrame(rows, columns=["patient_id", "label", "site"]).sort_values(["patient_id", "site"])
    patients = table.groupby("patient_id", sort=True).agg(
        label=("label", "first"), labels=("label", "nunique"), site=("site", "first")
    )
    if len(torn := list(patients.index[patients["labels"] > 1])):
        raise SplitError(f"split: patient {_some(torn)} has two labels; expected one. Correct the table of the cohort.")
    return patients


def _strata(patients: pd.DataFrame, fewest: int) -> list[str]:
    """Return a stratum per patient: label and site, where a site too small for a label joins its largest one."""
    strata = {}
    for label, group in patients.groupby("label"):
        sizes = group["site"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
        for site, size in sizes.items():
            strata[label, site] = f"{label} {site if size >= fewest else sizes.index[0]}"
    return [strata[label, site] for label, site in zip(patients["label"], patients["site"], strict=True)]


def _draw(patients: pd.DataFrame, count: int, seed: int, part: str, target: Target) -> list[str]:
    """Return a stratified sample of patients."""
    strata = _strata(patients, 2)
    if min(count, len(patients) - count) < len(set(strata)):
        strata = [str(label) for label in patients["label"]]
    counts = pd.Series(strata).value_counts()
    if len(set(patients["label"])) < 2 or counts.min() < 2 or min(count, len(patients) - count) < len(counts):
        labels = patients["label"].value_counts()
        have = ", ".join(f"{labels.get(label, 0)} {word}" for label, word in enumerate(target.classes))
        raise SplitError(
            f"split: {count} of {len(patients)} patients ({have}) for {part}; expected room for both labels there and "
            f"in the rest. Raise split.{part} or add patients."
        )
    from sklearn.model_selection import train_test_split

    _, drawn = train_test_split(list(patients.index), test_size=count, stratify=strata, random_state=seed)
    return list(drawn)


def _assign(cohort: Cohort, splits: Mapping[str, str], fold: int) -> pd.DataFrame:
    """Return the verified cohort table of a split."""
    assignment = pd.DataFrame({"study_id": list(splits), "split": list(splits.values()), "fold": fold})
    table = cohort_table(cohort, assignment)
    verify_split(table, cohort.target)
    return table


def _thinned(table: pd.DataFrame, training_patients: int | None, seed: int, target: Target) -> pd.DataFrame:
    """Return a split with some of its training patients only; validation and test stay as they are.

    Both labels keep their share, and the patients of a smaller number are among those of a larger one. A SplitError is
    raised if there are not so many, or a label would be lost.
    """
    if training_patients is None:
        return table
    training = table[table["split"] == "train"]
    labels = training.groupby("patient_id")["label"].first().sort_index()
    mutants = round(training_patients * float(labels.mean()))
    wanted = {1: mutants, 0: training_patients - mutants}
    if training_patients > len(labels) or min(wanted.values()) < 1:
        raise SplitError(
            f"split.training_patients: found {training_patients} with {len(labels)} patients to train on, of whom "
            f"{int(labels.sum())} are {target.positive}; expected no more than there are, and some of each label. "
            "Correct it."
        )
    generator = np.random.default_rng([seed, 5])
    kept: set[str] = set()
    for label in (0, 1):
        kept |= set(generator.permutation(labels.index[labels == label])[: wanted[label]])
    return table[(table["split"] != "train") | table["patient_id"].isin(kept)].reset_index(drop=True)


def _check_shares(*, validation: float, test: float) -> None:
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise SplitError(
            f"split: validation {validation:g} and test {test:g}; expected shares above 0 that leave some for "
            "training. Correct split.validation or split.test."
        )


def _count(share: float, patients: int) -> int:
    """Return a share as a whole number of patients, halves rounded up."""
    return int(share * patients + 0.5 + 1e-9)


def _carried(study: Study, column: str) -> str:
    return str(study.carried.get(column, "")).strip()


def _column(name: str) -> str:
    return f"carried_{name}" if name in SPLIT_COLUMNS else name


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
