"""The section of a report that sets another cohort beside the one that the network was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from idh_lightning.cli.tables import number
from idh_lightning.reports.run_folder import ReportedRun
from idh_lightning.reports.tables import ReportTable, as_estimate, cell, count, p_value_cell, signed
from idh_lightning.reports.vocabulary import CALIBRATION, COVARIATES, DISCRIMINATION, in_words


@dataclass(frozen=True)
class External:
    """The section on a cohort that the network was not trained on."""

    words: str
    differences: ReportTable | None
    shift: ReportTable | None


def external_section(run: ReportedRun) -> External | None:
    """Section, or None where the run was trained on the cohort."""
    section = run.node("external")
    if not isinstance(section, Mapping):
        return None
    means = " or ".join({"patient_id": "identifier", "image": "image"}.get(m, m) for m in section.get("seen_by", []))
    trained = f"The network was trained on {section.get('n_train', '?')} patients of {section.get('trained_on', '?')}."
    words = (
        f"{section.get('notice', trained)} No "
        f"patient below was among them or among those who chose its epoch and threshold, by {means}; "
        f"{section.get('left_out', 0)} studies were left out for that reason."
    )
    if "why" in section:
        words += f" The two results are not compared: {section['why']}."
    rows = []
    for key, metric in (DISCRIMINATION | CALIBRATION).items():
        difference = run.estimate("external", "differences", key)
        if difference is None:
            continue
        here, there = run.estimate("test", key), run.estimate("external", "internal", key)
        rows.append([metric.name, cell(here), count(here), cell(there), count(there), signed(difference)])
    head = ["", "this cohort", "n", f"{section.get('trained_on')}, test", "n", "difference (95% interval)"]
    differences = ReportTable(
        "This cohort and the internal test patients, two samples without a common patient", head, rows
    )
    return External(words, differences if rows else None, _shift(section.get("shift")))


def _shift(section: object) -> ReportTable | None:
    rows = []
    for key, found in section.items() if isinstance(section, Mapping) else ():
        if "why" in found:
            rows.append([in_words(str(key), COVARIATES), "", "", f"not computed: {found['why']}", "", ""])
            continue
        reference, other = found["reference"], found["other"]
        shown = [
            f"{100 * part['mean']:.0f}%"
            if key == "mutant"
            else f"{part['mean']:.4g} ({part['sd']:.3g})".replace("-", "−")
            for part in (reference, other)
        ]
        ks = "" if found["ks"] is None else number(found["ks"])
        p = p_value_cell(found["p_value"])
        difference = as_estimate(found["difference"])
        rows.append([in_words(str(key), COVARIATES), *shown, "" if difference is None else signed(difference), ks, p])
    head = ["", "training patients", "these patients", "standardised difference", "KS distance", "p"]
    caption = "What the network meets that it was not trained on: mean (SD); intensities are z-scores within the brain"
    return ReportTable(caption, head, rows) if rows else None
