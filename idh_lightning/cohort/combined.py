"""Several cohorts as one, with every person held to one split whatever source a study comes from."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from idh_lightning.cohort.aliases import Aliases, read_aliases
from idh_lightning.cohort.checks import build_cohort
from idh_lightning.cohort.reader import Reader, refuse_single_name, spellings_of, unused_exclusion
from idh_lightning.cohort.study import SEQUENCES, Cohort, Exclusion, Fault, Study
from idh_lightning.cohort.targets import TARGETS, Target
from idh_lightning.config.places import in_source
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError, ConfigError


@dataclass(kw_only=True)
class Combined:
    """The union of several cohorts, with the sequences that all have or, where some may be missing, that any has.

    The source of a study is carried as `cohort`, and as `site`, by which splits are stratified, where its table has no
    site of its own. Studies that have the same identifier
    in two sources are told apart by the name of their source. A patient in two sources is one patient, under two
    names if `aliases` says so.

    Attributes:
        readers: Name of the source -> its reader.
        name: For tables and titles.
        exclude: Study or patient identifiers to leave out, as the combined cohort calls them; each must occur.
        on_error: As for a single cohort; that of the readers is not used.
        missing: "error" for the sequences that all sources have, "zero" for those that any has.
        aliases: Table of persons with several names, see `read_aliases`; None for none.
    """

    readers: Mapping[str, Reader]
    name: str = "combined"
    exclude: Sequence[str] = ()
    on_error: Literal["raise", "exclude"] = "raise"
    missing: Literal["error", "zero"] = "error"
    aliases: str | Path | None = None

    def __post_init__(self) -> None:
        refuse_single_name(self.exclude)

    def read(self) -> Cohort:
        """Return the combined cohort with all that is wrong about it; see `Reader.read`.

        A CohortError is raised if no sequence is common to all as well, a ConfigError if there is no reader.
        """
        if not self.readers:
            raise ConfigError("cohort.readers: none; expected at least one. Add one under a name of its source.")
        aliases = read_aliases(self.aliases)
        cohorts = {source: self._read(source) for source in self.readers}
        targets = {source: cohort.target for source, cohort in cohorts.items()}
        if len(set(targets.values())) > 1:
            told = "; ".join(f"{name}: {one.name}, {' or '.join(one.classes)}" for name, one in targets.items())
            raise ConfigError(
                f"cohort.readers: targets differ ({told}); expected one. Give all the same: "
                + " ".join(_paste(source, next(iter(targets.values()))) for source in targets)
            )
        enough = any if self.missing == "zero" else all
        used = tuple(s for s in SEQUENCES if enough(s in cohort.sequences for cohort in cohorts.values()))
        offers = "; ".join(f"{source} has {', '.join(cohort.sequences)}" for source, cohort in cohorts.items())
        if not used:
            raise CohortError(
                f"cohort {self.name}: {offers}; expected a common sequence. Remove a source, or let studies lack a "
                "sequence: data.missing=zero"
            )
        renamed, persons = _as_one(cohorts, aliases)
        unknown: list[Fault] = []
        if self.exclude:  # by each reader, since a study that is left out has no faults and is nobody's first
            lost, unknown = self._left_out(cohorts, renamed, persons)
            cohorts = {
                source: self._read(source, lost[source]) if lost[source] else cohorts[source] for source in cohorts
            }
            renamed, persons = _as_one(cohorts, aliases)
        unused = Fault(
            where=f"cohort {self.name}", check="unused_sequence", found=offers, expected="the same sequences in all",
            remedy=f"None needed: only {', '.join(used)} are used. To use all, let studies lack some: "
            "data.missing=zero",
            severity="warning",
        )  # fmt: skip
        return build_cohort(
            name=self.name,
            sequences=used,
            studies=[
                replace(study, files={s: path for s, path in study.files.items() if s in used})
                for cohort in renamed
                for study in cohort.studies
            ],
            exclusions=[exclusion for cohort in renamed for exclusion in cohort.exclusions],
            faults=[
                *(fault for cohort in renamed for fault in cohort.faults if fault.check != "follow_ups"),
                *([unused] if any(set(cohort.sequences) - set(used) for cohort in renamed) else []),
                *aliases.faults(persons),
                *unknown,
            ],
            notes=[
                *(f"{source}: {note}" for source, cohort in cohorts.items() for note in cohort.notes),
                *aliases.notes,
            ],
            target=next(iter(targets.values())),
            persons=persons,
        )

    def _read(self, source: str, exclude: Iterable[str] = ()) -> Cohort:
        """Cohort of a source without some more of its studies."""
        reader = copy.copy(self.readers[source])
        reader.exclude = (*reader.exclude, *exclude)
        try:
            return reader.read()
        except CohortError as error:
            raise CohortError(in_source(str(error), source)) from error

    def _left_out(
        self, cohorts: Mapping[str, Cohort], renamed: Sequence[Cohort], persons: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, list[str]], list[Fault]]:
        """Source -> its names of the studies in `exclude`, and a fault for each entry that names none."""
        wanted = {str(text).strip() for text in self.exclude}
        spellings, used, known = spellings_of(wanted), set(), set()
        lost: dict[str, list[str]] = {source: [] for source in cohorts}
        for (source, cohort), shown in zip(cohorts.items(), renamed, strict=True):
            for own, record in zip(_records(cohort), _records(shown), strict=True):
                names = {record.study_id or "", record.patient_id or "", *persons.get(record.patient_id or "", ())}
                known |= names
                if hits := {spellings[name] for name in names & spellings.keys()}:
                    used |= hits
                    lost[source] += [own.study_id] if own.study_id else []
        return lost, [unused_exclusion(text, known, self.name) for text in sorted(wanted - used)]


def _as_one(cohorts: Mapping[str, Cohort], aliases: Aliases) -> tuple[list[Cohort], dict[str, tuple[str, ...]]]:
    """Cohorts with identifiers that are told apart, and the names of every person in them."""
    seen = Counter(study_id for cohort in cohorts.values() for study_id in _identifiers(cohort))
    renamed = [
        _rename(cohort, {i: f"{source}-{i}" for i in _identifiers(cohort) if seen[i] > 1}, source)
        for source, cohort in cohorts.items()
    ]
    return renamed, aliases.persons(record for cohort in renamed for record in _records(cohort))


def _identifiers(cohort: Cohort) -> set[str]:
    """Return every study identifier that a cohort mentions."""
    return {record.study_id for record in _records(cohort) if record.study_id is not None}


def _records(cohort: Cohort) -> tuple[Study | Exclusion | Fault, ...]:
    return (*cohort.studies, *cohort.exclusions, *cohort.faults)


def _paste(source: str, target: Target) -> str:
    """Settings that give a source a target, to paste."""
    known = target.name in TARGETS
    line = to_paste(f"cohort.readers.{source}.target", target.name)
    return line if known else f"{line} {to_paste(f'cohort.readers.{source}.classes', target.classes)}"


def _rename(cohort: Cohort, names: Mapping[str, str], source: str) -> Cohort:
    """Return a cohort with some identifiers replaced everywhere and the source carried by each study."""
    return replace(
        cohort,
        studies=tuple(
            replace(
                s,
                study_id=names.get(s.study_id, s.study_id),
                carried={**s.carried, "cohort": source, "site": s.carried.get("site") or source},
            )
            for s in cohort.studies
        ),
        exclusions=tuple(replace(e, study_id=names.get(e.study_id, e.study_id)) for e in cohort.exclusions),
        faults=tuple(
            replace(
                f,
                study_id=names.get(str(f.study_id), f.study_id),
                # Of its own list of exclusions nothing is said here: that of the combination takes the names shown.
                remedy=in_source(f.remedy, source).replace(f"cohort.readers.{source}.exclude", "cohort.exclude"),
                where=_shown(f, names, source),
            )
            for f in cohort.faults
        ),
    )


def _shown(fault: Fault, names: Mapping[str, str], source: str) -> str:
    """Place of a fault of one source, its study and its settings called as they are in the combination."""
    own = str(fault.study_id)
    where = re.sub(rf"(?<=study ){re.escape(own)}$", lambda _: names.get(own, own), fault.where)
    return in_source(where, source)
