"""Checks of a cohort as a whole: its errors raised at once, or its faulty studies excluded; the flow of patients."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import pandas as pd

from idh_lightning.cli.tables import FittingTable
from idh_lightning.cohort.identity import names_a_file
from idh_lightning.cohort.splits import SPLITS
from idh_lightning.cohort.study import Cohort, Exclusion, Fault, Study
from idh_lightning.cohort.targets import IDH, Target
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError, ConfigError

FLOW_COLUMNS: tuple[str, ...] = ("step", "group", "label", "patients", "studies")

MOST_LINES = 20
"""Of one check in a message; the cohort report has all of them."""


def build_cohort(
    *,
    name: str,
    sequences: Sequence[str],
    studies: Iterable[Study],
    exclusions: Iterable[Exclusion] = (),
    faults: Iterable[Fault] = (),
    notes: Iterable[str] = (),
    target: Target = IDH,
    persons: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Cohort:
    """Return the cohort of some studies after comparing them with each other.

    A study with an error of its own, here or in `faults`, is not among the studies of the cohort. Of each patient only
    one study (the first by identifier of those that are not follow-ups already) stays unmarked; the others become
    follow-ups. A patient among `persons` gets the first of the names there, and the others as aliases.
    """
    studies = [
        replace(study, patient_id=first, aliases=tuple(others))
        for study in sorted(studies, key=lambda study: study.study_id)
        for first, *others in [persons.get(study.patient_id, (study.patient_id,))]
    ]
    exclusions = [replace(e, patient_id=persons.get(e.patient_id, (e.patient_id,))[0]) for e in exclusions]
    faults = [replace(f, patient_id=persons.get(f.patient_id or "", (f.patient_id,))[0]) for f in faults]
    faults = [*faults, *_label_conflicts(studies, target), *_shared_files(studies), *_patients_alike(studies)]
    told = {fault.patient_id for fault in faults if fault.check == "patient_in_two_places"}
    marked, warnings = _mark_follow_ups(studies, told)
    faulty = {fault.study_id for fault in faults if fault.severity == "error"}
    return Cohort(
        name=name,
        sequences=tuple(sequences),
        studies=tuple(study for study in marked if study.study_id not in faulty),
        exclusions=tuple(sorted(exclusions, key=lambda exclusion: exclusion.study_id)),
        faults=(*faults, *warnings),
        notes=tuple(notes),
        target=target,
    )


def raise_or_exclude(cohort: Cohort, faults: Iterable[Fault] = (), *, on_error: Literal["raise", "exclude"]) -> Cohort:
    """Return a cohort without faulty studies: all errors raised at once, or turned into exclusions.

    Args:
        cohort: As a reader returns it, with the faults found so far.
        faults: Further ones, for example from reading the images.
        on_error: "raise" one exception, or "exclude" the faulty studies. An error that concerns no single study is
            always raised.

    Returns:
        The cohort with the faults of both kinds. Settling it again changes nothing.

    Raises:
        CohortError: Lists every error, grouped by check; or, after exclusion, no study is left.
        ConfigError: If on_error is neither.
    """
    if on_error not in ("raise", "exclude"):
        raise ConfigError(f"cohort.on_error: {on_error!r}; expected 'raise' or 'exclude'. Correct the setting.")
    everything = replace(cohort, faults=tuple(dict.fromkeys([*cohort.faults, *faults])))
    errors = open_errors(everything)
    blocking = [f for f in errors if on_error == "raise" or f.study_id is None]
    if blocking:
        raise CohortError(_list_of(everything, blocking))
    left = everything.without(refused_studies(everything))
    if not left.studies:
        details = f"\n{_list_of(everything, errors)}" if errors else ""
        raise CohortError(
            f"cohort {cohort.name}: no study is left, {len(left.exclusions)} are excluded; "
            f"expected some of each label. Correct the table, the folder or cohort.exclude.{details}"
        )
    return left


def open_errors(cohort: Cohort) -> list[Fault]:
    """Return the errors of a cohort for which no study has been excluded yet."""
    excluded = {exclusion.study_id for exclusion in cohort.exclusions}
    return [f for f in cohort.faults if f.severity == "error" and (f.study_id is None or f.study_id not in excluded)]


def refused_studies(cohort: Cohort) -> tuple[Exclusion, ...]:
    """Return the studies with open errors, and all the reasons of each."""
    patients = {study.study_id: study.patient_id for study in cohort.studies}
    reasons: dict[str, list[Fault]] = defaultdict(list)
    for fault in open_errors(cohort):
        if fault.study_id is not None:
            reasons[fault.study_id].append(fault)
    return tuple(
        Exclusion(
            study_id=study_id,
            patient_id=patients.get(study_id) or next((f.patient_id for f in found if f.patient_id), study_id),
            reason="; ".join(f"{_words(fault.check)}: {fault.found}" for fault in found),
        )
        for study_id, found in sorted(reasons.items())
    )


def faults_table(cohort: Cohort, *, rows_per_check: int = 20) -> FittingTable:
    """Return the faults as a table for the screen, errors first; long lists are cut and say by how much."""
    words = ("where", "found", "expected", "remedy")
    table = FittingTable(f"Cohort {cohort.name}: what was found", ("", "check", *words), words, ("check",))
    for (severity, check), found in by_check(cohort.faults).items():
        groups = by_message(found)
        for group in groups[:rows_per_check]:
            fault = group[0]
            cells = (severity, _words(check), place_of(group), fault.found, fault.expected, fault.remedy)
            table.add_row(*cells, style="red" if severity == "error" else "yellow")
        if len(groups) > rows_per_check:
            left = sum(map(len, groups[rows_per_check:]))
            table.add_row(severity, _words(check), f"... and {left} more in the cohort report", "", "", "")
    return table


def by_check(faults: Iterable[Fault]) -> dict[tuple[str, str], list[Fault]]:
    """Return (severity, check) -> faults, errors first, then by check and place."""
    groups: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in sorted(faults, key=lambda f: (f.severity, f.check, f.where)):
        groups[fault.severity, fault.check].append(fault)
    return dict(groups)


def by_message(faults: Iterable[Fault]) -> list[list[Fault]]:
    """Return faults that say the same of several studies together: one message for all of them."""
    groups: dict[tuple[str, ...], list[Fault]] = defaultdict(list)
    for fault in faults:
        groups[fault.check, fault.found, fault.expected, fault.remedy].append(fault)
    return list(groups.values())


def place_of(group: Sequence[Fault], *, examples: int = 3) -> str:
    """Return where a message holds: the place of a single fault, or how many studies and some of them."""
    if len(group) == 1:
        return group[0].where
    files = {fault.where.partition(", study ")[0] for fault in group}
    file = f"{files.pop()}, " if len(files) == 1 else ""
    ids = [fault.study_id or fault.where for fault in group]
    more = f" and {len(ids) - examples} more" if len(ids) > examples else ""
    return f"{file}{len(ids)} studies ({', '.join(ids[:examples])}{more})"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, whose plural ends in s unless another is given."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def exclusions_table(cohort: Cohort) -> pd.DataFrame:
    """Return study_id, patient_id and reason of every study left out: the content of `exclusions.csv`."""
    rows = [(e.study_id, e.patient_id, e.reason) for e in cohort.exclusions]
    return pd.DataFrame(rows, columns=["study_id", "patient_id", "reason"])


def cohort_flow(cohort: Cohort, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the flow of patients from the table to the splits.

    Args:
        cohort: Settled; or refused, with studies whose errors stand.
        table: As a split returns it, or None before the split.

    Returns:
        One row per box: step ("read", "excluded", "refused", "used" or "split"), group (the first reason of an
        exclusion or refusal, or the split), label (name of a class, or ""), patients, studies. A patient counts as
        excluded where no study is left, under the reason of the first, so that read = excluded + refused + used and
        used = the splits, for both counts.
    """
    steps = {"excluded": cohort.exclusions, "refused": refused_studies(cohort)}
    faulty = {exclusion.study_id for exclusion in steps["refused"]}
    studies = [study for study in cohort.studies if study.study_id not in faulty]
    used = {study.patient_id for study in studies}
    lost: dict[str, tuple[str, str]] = {}
    for step, exclusions in steps.items():
        for exclusion in exclusions:
            if exclusion.patient_id not in used:
                lost.setdefault(exclusion.patient_id, (step, _reason(exclusion.reason)))
    rows = [("read", "", "", len(used) + len(lost), len(studies) + sum(map(len, steps.values())))]
    for step, exclusions in steps.items():
        for reason, count in sorted(Counter(_reason(exclusion.reason) for exclusion in exclusions).items()):
            rows.append((step, reason, "", sum(first == (step, reason) for first in lost.values()), count))
    rows += _by_label(cohort.target, "used", "", ((study.patient_id, study.label) for study in studies))
    if table is not None:
        for split in SPLITS:
            part = table[table["split"] == split]
            rows += _by_label(cohort.target, "split", split, zip(part["patient_id"], part["label"], strict=True))
    return pd.DataFrame(rows, columns=list(FLOW_COLUMNS))


def _reason(text: str) -> str:
    return text.split(":", 1)[0]


def _by_label(
    target: Target, step: str, group: str, studies: Iterable[tuple[str, int]]
) -> list[tuple[str, str, str, int, int]]:
    listed = list(studies)
    rows = []
    for label, word in enumerate(target.classes):
        patients = [patient for patient, own in listed if own == label]
        rows.append((step, group, word, len(set(patients)), len(patients)))
    return rows


def _list_of(cohort: Cohort, errors: Sequence[Fault]) -> str:
    """Return one message about all errors, those that say the same of several studies said once."""
    faulty = {fault.study_id for fault in errors if fault.study_id is not None}
    named = sorted(filter(names_a_file, faulty))
    ways = ""
    if faulty and len({study.label for study in cohort.studies if study.study_id not in faulty}) > 1:
        ways = ", or leave these studies out: cohort.on_error=exclude"
        if len(faulty) == len(named) <= 30:
            ways += f", or {to_paste('cohort.exclude', named)}"
    lines = [f"cohort {cohort.name}: {counted(len(errors), 'error')}. Correct them{ways or '.'}"]
    for (_, check), found in by_check(errors).items():
        lines += [f"{_words(check)} ({len(found)}):"]
        groups = by_message(found)
        lines += [f"  - {replace(group[0], where=place_of(group))}" for group in groups[:MOST_LINES]]
        lines += [f"  - and {len(groups) - MOST_LINES} more like these"] if len(groups) > MOST_LINES else []
    return "\n".join(lines)


def _words(check: str) -> str:
    return check.replace("_", " ")


def _label_conflicts(studies: Sequence[Study], target: Target) -> list[Fault]:
    faults = []
    for patient, theirs in _group(studies).items():
        if len({study.label for study in theirs}) > 1:
            seen = ", ".join(f"{study.study_id} {target.classes[study.label]}" for study in theirs)
            faults += [
                Fault(
                    where=f"patient {patient}, study {study.study_id}", check="label_conflict", study_id=study.study_id,
                    found=f"one patient with two labels: {seen}", expected=f"one {target.title} per patient",
                    remedy="Correct the table or list the patient in cohort.exclude.", patient_id=patient,
                )
                for study in theirs
            ]  # fmt: skip
    return faults


def _shared_files(studies: Sequence[Study]) -> list[Fault]:
    """Return a fault for every study one of whose files is a file of another study, or has two roles in its own."""
    users: dict[str, list[tuple[Study, str]]] = defaultdict(list)
    for study in studies:
        for role, path in [*study.files.items(), *([("mask", study.mask)] if study.mask else [])]:
            users[str(path.resolve())].append((study, role))
    return [
        Fault(
            where=f"study {study.study_id}", check="shared_file", study_id=study.study_id, patient_id=study.patient_id,
            found=f"{path} is used as {', '.join(f'{role} of {other.study_id}' for other, role in using[:4])}"
            + (f" and {len(using) - 4} more" if len(using) > 4 else ""),
            expected="each file used once", remedy="Correct the paths in the table.",
        )
        for path, using in users.items()
        if len(using) > 1
        for study in {study.study_id: study for study, _ in using}.values()
    ]  # fmt: skip


def _patients_alike(studies: Sequence[Study]) -> list[Fault]:
    """Warning for each person who may have been given several identifiers, which a split would take for several."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        spellings[re.sub(r"[\W_]+", "", study.patient_id.casefold())].add(study.patient_id)
    return [
        Fault(
            where="cohort", check="patients_alike", severity="warning", found=f"{' and '.join(sorted(ids))} count as "
            f"{len(ids)} patients", expected="one spelling for one person, who must not be in training and test",
            remedy="If they are one person, write the identifier one way in the table.",
        )
        for ids in spellings.values()
        if len(ids) > 1
    ]  # fmt: skip


def _mark_follow_ups(studies: Sequence[Study], told: Collection[str | None]) -> tuple[list[Study], list[Fault]]:
    """Return the studies with all but one per patient marked as follow-ups, and one warning for each of these.

    Of the patients in `told` an earlier warning says so.
    """
    unmarked = {patient: [s.study_id for s in theirs if not s.follow_up] for patient, theirs in _group(studies).items()}
    later = {patient: ids[1:] for patient, ids in unmarked.items() if ids[1:]}
    marks = {study_id for ids in later.values() for study_id in ids}
    marked = [replace(study, follow_up=True) if study.study_id in marks else study for study in studies]
    warnings = [
        Fault(
            where=f"patient {patient}", check="patient_in_two_places", severity="warning", patient_id=patient,
            found=f"{', '.join(ids)}, besides the first study", expected="one study, or follow-ups marked as such",
            remedy="None needed: they share one split and count as follow-ups. Exclude one if it is the same scan.",
        )
        for patient, ids in later.items()
    ]  # fmt: skip
    follow_ups = [study for study in studies if study.follow_up and study.patient_id not in told]
    if follow_ups:
        warnings.append(
            Fault(
                where="cohort", check="follow_ups", severity="warning", expected="one study per patient",
                found=f"{counted(len(follow_ups), 'follow-up study', 'follow-up studies')} of "
                f"{counted(len(_group(follow_ups)), 'patient')}: "
                f"{', '.join(study.study_id for study in follow_ups[:10])}{' ...' if len(follow_ups) > 10 else ''}",
                remedy="None needed: they stay in the split of their patient.",
            )
        )  # fmt: skip
    return marked, warnings


def _group(studies: Iterable[Study]) -> dict[str, list[Study]]:
    """Studies by patient."""
    groups: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        groups[study.patient_id].append(study)
    return groups
