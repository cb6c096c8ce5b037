"""A run folder to report.html: one file that opens offline and says how good the model is, for whom, and how sure."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from PIL import Image

from idh_lightning.attribution.summary import summarised
from idh_lightning.cli.tables import number
from idh_lightning.cohort import SEQUENCES
from idh_lightning.cohort.checks import counted
from idh_lightning.evaluation import Folds
from idh_lightning.files import write_text
from idh_lightning.machine import map_in_threads
from idh_lightning.reports.caveats import caveats, trained_on
from idh_lightning.reports.checklist import checklist
from idh_lightning.reports.cross_validation import fold_tables
from idh_lightning.reports.external import external_section
from idh_lightning.reports.localisation import localisation_tables
from idh_lightning.reports.page import badges, render
from idh_lightning.reports.panels import CROSS
from idh_lightning.reports.run_tables import (
    PARTS,
    ReportedRun,
    as_estimate,
    cohort_parts,
    exclusion_reasons,
    read_run,
    save_figures,
)
from idh_lightning.reports.tables import ReportTable, cell, count, signed
from idh_lightning.reports.turning import save_gif, turning_frames, turning_view
from idh_lightning.reports.viewer import drawn_or_reason, read_scene, slice_viewer
from idh_lightning.reports.vocabulary import (
    ANALYSES,
    BASELINES,
    CALIBRATION,
    DISCRIMINATION,
    METRICS,
    PREDICTION_SETS,
    Metric,
    group_in_words,
    in_words,
    p_value_words,
)

logger = logging.getLogger(__name__)

CLASSES = {0: "wildtype", 1: "mutant"}

PANELS_MB = 8.0
"""Room for the panels of all test studies; those that do not fit stay in the run folder and are named."""


@dataclass(frozen=True)
class Picture:
    """An image of a report, inlined.

    Attributes:
        source: data URI.
        words: What it shows, for those who do not see it.
        width: Pixels.
        height: Pixels.
    """

    source: str
    words: str
    width: int
    height: int


@dataclass(frozen=True)
class Call:
    """What the model says of the patient of a test study.

    Attributes:
        study_id: Its name.
        patient_id: Whose study it is.
        studies: Of this patient, over which the prediction is made.
        label: 0 wildtype, 1 mutant.
        probability: P(mutant) of the patient, calibrated.
        called: 0 or 1.
        certainty: 0 at the threshold, 1 where the probability is 0 or 1.
    """

    study_id: str
    patient_id: str
    studies: int
    label: int
    probability: float
    called: int
    certainty: float

    @property
    def right(self) -> bool:
        """Whether the call is the truth."""
        return self.called == self.label

    @property
    def text(self) -> str:
        """The probability as it stands beside the study, and of how many studies it is the patient's."""
        over = "" if self.studies == 1 else f" over the patient’s {self.studies} studies"
        return f"P(mutant) {number(self.probability)}{over}"


@dataclass(frozen=True)
class Telling:
    """A test study that deserves a look, with its panel and its viewer where the run wrote them.

    Attributes:
        why: What makes it telling.
        call: What the model says of it.
        panel: Its panel, or None.
        viewer: Its slices to look through, or why there are none; None where the run wrote no map.
    """

    why: str
    call: Call
    panel: Picture | None = None
    viewer: Markup | None = None


@dataclass
class Gallery:
    """The panels of test studies that fit into a report, and the names of those that do not."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run folder, from what else is in it, and return its path.

    The figures are drawn anew. What the run did not compute is said to be so.

    Raises:
        EvaluationError: If there is no such folder or a file in it is damaged.
    """
    run = read_run(run_folder)
    drawn = save_figures(run)
    gallery = _gallery(run)
    telling = _telling(run, gallery)
    page = render(
        "report.html.j2",
        title=_title(run),
        place="/".join(run.folder.resolve().parts[-2:]),
        badges=badges(trained_on(run)),
        caveats=caveats(run),
        headline=_headline(run),
        tiles=_tiles(run),
        figures=inlined(run.folder, drawn),
        protocol=_protocol(run),
        external=external_section(run),
        folds=fold_tables(run),
        learns=run.node("external") is None and run.node("runs") is None,
        flow=_flow(run),
        cohort=_cohort_table(run),
        exclusions=_exclusions(run),
        metrics=_metrics_table(
            run,
            DISCRIMINATION,
            "Test patients"
            if run.node("validation") is None
            else "Test patients, and validation patients for comparison",
        ),
        predictive_values=_predictive_values(run),
        calibration=_metrics_table(run, CALIBRATION, "Calibration", raw=True),
        calibration_words=_calibration_words(run),
        baselines=_baselines(run),
        comparisons=_comparisons(run),
        subgroups=_subgroups(run),
        sensitivity_analyses=_sensitivity_analyses(run),
        conformal=_conformal(run),
        localisation=_localisation(run),
        compared=(run.folder / "explanations.html").is_file(),
        telling=telling,
        turning=_turning(run),
        gallery=gallery,
        classes=CLASSES,
        predictions=_predictions(run),
        weights=_weights_words(run),
        provenance=provenance_table(run),
        checklist=checklist(run),
    )
    path = run.folder / "report.html"
    write_text(path, page)
    logger.info("%s: %.1f MB", path, path.stat().st_size / 1e6)
    return path


def inlined(folder: Path, drawn: Mapping[str, str]) -> dict[str, Picture]:
    """Return the figures of a run folder, file name -> words, as pictures by name."""
    return {name.removesuffix(".png"): picture(folder / "figures" / name, words) for name, words in drawn.items()}


def _title(run: ReportedRun) -> str:
    name = run.provenance.get("cohort")
    return f"IDH status from MRI: {name}" if name else "IDH status from MRI"


def _headline(run: ReportedRun) -> list[str]:
    """Return what the run found, in sentences that carry their uncertainty."""
    auroc = run.auroc
    if auroc is None or auroc.value is None:
        return []
    people = run.patients("test")
    level = 100 * (run.number("settings", "confidence") or 0.95)
    whose = "held-out patients"
    if run.node("external") is not None:
        whose = f"patients of a cohort that it was not trained on, {run.provenance.get('cohort', 'unknown')}"
    elif run.node("runs") is not None:
        whose = f"patients, each judged in the one of {len(run.node('runs', 'folders') or {})} folds that left them out"
    mutant = f"{int(people['label'].sum())} mutant" if len(people) else ""
    count = f"On {len(people)} {whose} ({mutant})" if len(people) else "Held out"
    interval = ""
    if auroc.interval:
        interval = f" ({level:.0f} % interval {auroc.interval})"
    sentences = [
        f"{count}, the model ranks a random mutant above a random wildtype patient with probability "
        f"{number(auroc.value)}{interval}."
    ]
    internal = run.estimate("external", "internal", "auroc")
    if internal is not None and internal.value is not None:
        home = run.node("external", "trained_on")
        sentence = f"On the test patients of {home}, where it was trained, this was {internal.text}"
        difference = run.estimate("external", "differences", "auroc")
        if difference is not None and difference.value is not None:
            sentence += f"; the difference is {signed(difference)}"
        sentences.append(sentence + ".")
    age = run.estimate("baselines", "age", "test", "auroc")
    if age is not None and age.value is not None:
        sentence = f"Age alone reaches {age.text} in the same patients"
        difference = run.estimate("comparisons", "model_vs_age", "difference")
        p = run.number("comparisons", "model_vs_age", "p_value")
        if difference is not None and difference.value is not None and p is not None:
            better = "better" if difference.value > 0 else "worse"
            told = f"the model is {better} than age" if p < 0.05 else "the two cannot be told apart"
            sentence += f"; {told} (difference {signed(difference)}, {p_value_words(p)})"
        sentences.append(sentence + ".")
    cells = run.node("confusion", "test")
    if isinstance(cells, Mapping):
        tn, fp, fn, tp = (int(cells[cell]) for cell in ("tn", "fp", "fn", "tp"))
        threshold = "thresholds" if isinstance(run.node("operating_point", "runs"), Mapping) else "threshold"
        sentences.append(
            f"At the {threshold} fixed on validation patients it finds {tp} of {tp + fn} mutants and recognises "
            f"{tn} of {tn + fp} wildtypes."
        )
    return sentences


def _protocol(run: ReportedRun) -> str:
    """Return when test patients were looked at, and by what."""
    if run.node("external") is not None:
        return "Nothing was learnt from these patients: network, threshold and calibration came with the checkpoint."
    if run.node("runs") is not None:
        return (
            "Every patient was judged once, by the network of the fold that did not train on them, with the threshold "
            "and the calibration of that fold. Patients of different folds are ranked by calibrated probability."
        )
    return (
        "Test patients were touched once, after the epoch, the threshold and the calibration had been fixed on "
        "validation patients."
    )


def _tiles(run: ReportedRun) -> list[tuple[str, str, str]]:
    """Return (name, value, interval and n) of the numbers that stand at the top."""
    wanted = [
        *((METRICS[key].name, run.estimate("test", key)) for key in ("auroc", "sensitivity", "specificity", "ece")),
        ("age alone, ROC-AUC", run.estimate("baselines", "age", "test", "auroc")),
    ]
    tiles = []
    for name, estimate in wanted:
        if estimate is not None and estimate.value is not None:
            interval = f"{estimate.interval}, " if estimate.interval else ""
            tiles.append((name, number(estimate.value), f"{interval}{estimate.n} patients"))
    return tiles


def _metrics_table(
    run: ReportedRun, metrics: Mapping[str, Metric], caption: str, *, raw: bool = False
) -> ReportTable | None:
    """Return metrics of test and validation patients; with `raw` also those before calibration."""
    alone = run.node("validation") is None
    rows = []
    for key, metric in metrics.items():
        test, validation = run.estimate("test", key), run.estimate("validation", key)
        if test is None and validation is None:
            continue
        row = [metric.name, cell(test), count(test)]
        row += [cell(run.estimate("calibration", "raw", "test", key))] if raw else []
        row += [] if alone else [cell(validation)]
        rows.append([*row, metric.meaning])
    head = ["", "test (95 % interval)", "n"]
    head += ["test, uncalibrated"] if raw else []
    head += ["what it means"] if alone else ["validation (optimistic)", "what it means"]
    return ReportTable(caption, head, rows, (0, len(head) - 1)) if rows else None


def _flow(run: ReportedRun) -> dict[str, list[tuple[str, ...]]] | None:
    """Boxes of the flow of patients, step -> lines of each box, as in the cohort report."""
    parts = cohort_parts(run)
    if not parts:
        return None
    reasons = exclusion_reasons(run)
    studies, patients, mutant = (sum(part[k] for part in parts.values()) for k in range(3))
    boxes: dict[str, list[tuple[str, ...]]] = {
        "read": [(f"{counted(studies + sum(reasons.values()), 'study', 'studies')} found",)]
    }
    if reasons:
        lines = (f"{n} × {reason}" for reason, n in reasons.items())
        boxes["excluded"] = [(f"{sum(reasons.values())} left out", *lines)]
    used = f"{counted(studies, 'study', 'studies')} of {counted(patients, 'patient')}"
    boxes["used"] = [(used, f"{mutant} mutant ({mutant / patients:.0%})")]
    boxes["split"] = [
        (name, f"{counted(people, 'patient')}, {counted(n, 'study', 'studies')}", f"{m} mutant, {people - m} wildtype")
        for name, (n, people, m) in parts.items()
    ]
    return boxes


def _cohort_table(run: ReportedRun) -> ReportTable | None:
    if not {"split", "patient_id", "label"} <= set(run.cohort.columns):
        return None
    rows = []
    for split in PARTS:
        studies = run.cohort[run.cohort["split"] == split]
        people = studies.drop_duplicates("patient_id")
        if people.empty:
            continue
        mutant = int((people["label"].astype(int) == 1).sum())
        ages = people["age_years"].astype(float).dropna() if "age_years" in people else pd.Series(dtype=float)
        sexes = people["sex"].dropna().astype(str) if "sex" in people else pd.Series(dtype=str)
        women = int(sexes.str.upper().str.startswith("F").sum())
        rows.append(
            [
                split,
                str(len(people)),
                str(len(studies)),
                f"{mutant} ({mutant / len(people):.0%})",
                f"{ages.mean():.0f} ({ages.std():.0f})" if len(ages) > 1 else "unknown",
                f"{women} of {len(sexes)}" if len(sexes) else "unknown",
            ]
        )
    head = ["", "patients", "studies", "mutant", "age, mean (SD), years", "women"]
    return ReportTable("Who the patients are", head, rows) if rows else None


def _exclusions(run: ReportedRun) -> ReportTable | None:
    if "reason" not in run.exclusions or run.exclusions.empty:
        return None
    columns = [name for name in ("study_id", "patient_id", "reason") if name in run.exclusions]
    rows = [[str(value) for value in row] for row in run.exclusions[columns].itertuples(index=False)]
    reasons = ", ".join(f"{n} × {reason}" for reason, n in exclusion_reasons(run).items())
    return ReportTable(f"Studies left out: {reasons}", [in_words(name) for name in columns], rows, range(len(columns)))


def _predictive_values(run: ReportedRun) -> ReportTable | None:
    rows = [
        [
            f"{100 * float(row['prevalence']):.0f} %",
            cell(as_estimate(row.get("ppv"))),
            cell(as_estimate(row.get("npv"))),
        ]
        for row in run.node("predictive_values") or []
    ]
    head = ["share of mutants", "PPV: “mutant” is right", "NPV: “wildtype” is right"]
    return ReportTable("Predictive values where mutants are rarer or commoner", head, rows) if rows else None


def _calibration_words(run: ReportedRun) -> str | None:
    method, slope = run.node("calibration", "method"), run.number("calibration", "slope")
    if isinstance(run.node("calibration", "runs"), Mapping):
        slopes = [float(found["slope"]) for found in run.node("calibration", "runs").values()]
        return (
            f"Probabilities were calibrated in each fold on its own validation patients ({method}: slopes "
            f"{number(min(slopes))} to {number(max(slopes))}), which also brings the folds to one scale."
        )
    if method is None or slope is None:
        return None
    if method == "none":
        return "Probabilities are the network's own; the run did not calibrate them."
    temperature, shift = run.number("calibration", "temperature"), run.number("calibration", "intercept")
    n = run.number("calibration", "n")
    of = "" if n is None else f" {n:.0f}"
    return (
        f"Probabilities were calibrated on{of} validation patients ({method}: slope {number(slope)}, i.e. temperature "
        f"{number(temperature or 1 / slope)}, intercept {number(shift or 0)}); the loss and the balanced draws of "
        "training shift them otherwise. Ranking, and so the ROC-AUC, is unchanged."
    )


def _baselines(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("baselines") or {}).items():
        test = section.get("test", {})
        auroc, brier = as_estimate(test.get("auroc")), as_estimate(test.get("brier"))
        why = section.get("why") or test.get("why")
        if why:
            rows.append([in_words(name, BASELINES), f"not computed: {why}", "", "", ""])
            continue
        fitted = f"{section.get('n', '?')} {section.get('fitted_on', '')} patients"
        if "runs" in section:
            fitted = f"{section.get('fitted_on', '')} patients of each fold"
        rows.append([in_words(name, BASELINES), cell(auroc), count(auroc), cell(brier), fitted])
    if not rows:
        return None
    brier, n = run.estimate("test", "brier"), run.node("external", "n_train") or run.node("splits", "train", "n")
    fitted = "train patients of each fold" if run.node("runs") is not None else f"{n or '?'} train patients"
    rows.insert(0, ["model (MRI)", cell(run.auroc), count(run.auroc), cell(brier), fitted])
    head = ["", "ROC-AUC (95 % interval)", "n", "Brier score", "fitted on"]
    return ReportTable("The model, its parts, and what is known without a network", head, rows, (0, 4))


def _comparisons(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("comparisons") or {}).items():
        first, _, second = name.partition("_vs_")
        words = f"{in_words(first, BASELINES)} against {in_words(second, BASELINES)}"
        difference = as_estimate(section.get("difference"))
        if difference is None:
            rows.append([words, "", "", f"not computed: {section.get('why', 'no result')}", "", ""])
            continue
        p = section.get("p_value")
        areas = [number(float(section[key])) for key in ("first", "second")]
        rows.append(
            [
                words,
                *areas,
                signed(difference),
                "" if p is None else p_value_words(float(p)).removeprefix("p ").removeprefix("= "),
                count(difference),
            ]
        )
    head = ["", "first", "second", "difference (95 % interval)", "p", "n"]
    return ReportTable("Differences in ROC-AUC on the same patients (paired DeLong test)", head, rows) if rows else None


def _subgroups(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("subgroups") or {}).items():
        if "why" in section:
            rows.append([name.replace("_", " "), "", "", f"not computed: {section['why']}", "", ""])
            continue
        for group, found in section.get("groups", {}).items():
            values = [cell(as_estimate(found.get(key))) for key in ("auroc", "sensitivity", "specificity")]
            rows.append(
                [
                    f"{name.replace('_', ' ')}: {group_in_words(group)}",
                    str(found.get("n", "")),
                    str(found.get("n_mutant", "")),
                    *values,
                ]
            )
        within = as_estimate(section.get("within_auroc"))
        if within is not None:
            rows.append([f"within {name.replace('_', ' ')}", count(within), "", cell(within), "", ""])
    head = ["", "n", "mutant", "ROC-AUC", "sensitivity", "specificity"]
    caption = "Groups of test patients; “within” compares only patients of the same group"
    return ReportTable(caption, head, rows) if rows else None


def _sensitivity_analyses(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("sensitivity_analyses") or {}).items():
        metrics = section.get("metrics", {})
        estimates = [as_estimate(metrics.get(key)) for key in ("auroc", "sensitivity", "specificity")]
        values = [cell(estimate) if estimate is not None else "" for estimate in estimates]
        if "why" in section:
            values = [f"not computed: {section['why']}", "", ""]
        words = in_words(name, ANALYSES)
        if name == "every_study" and "studies" in section:
            words += f" ({section['studies']} studies)"
        rows.append([words, str(section.get("n", "")), str(section.get("n_mutant", "")), *values])
    head = ["", "n", "mutant", "ROC-AUC", "sensitivity", "specificity"]
    return ReportTable("Does the result hold without some patients?", head, rows) if rows else None


def _conformal(run: ReportedRun) -> ReportTable | None:
    section = run.node("conformal", "test")
    if not isinstance(section, Mapping):
        return None
    rows = [
        [in_words(key, PREDICTION_SETS), cell(estimate), count(estimate)]
        for key, estimate in ((str(key), as_estimate(value)) for key, value in section.items())
        if estimate is not None
    ]
    promised = run.number("conformal", "coverage")
    caption = "Prediction sets: the classes that cannot be excluded"
    if promised is not None:
        caption += f"; {promised:.0%} of each class shall be covered"
    if run.node("external") is not None:
        caption += ", which holds for patients like the validation ones alone: here it is measured, not promised"
    return ReportTable(caption, ["", "test patients (95 % interval)", "n"], rows) if rows else None


def _localisation(run: ReportedRun) -> list[ReportTable]:
    if not {"study_id", "method"} <= set(run.explanations.columns):
        return []
    scores = run.explanations.drop(columns="right", errors="ignore")
    if {"study_id", "label", "predicted"} <= set(run.predictions.columns):
        # Whether the study is called right, not its patient: the map explains the logit of this study.
        called = run.predictions.set_index("study_id")
        right = called["predicted"] == called["label"]
        scores = scores.assign(right=scores["study_id"].map(right)).dropna(subset="right")
    return localisation_tables(summarised(scores))


def _calls(run: ReportedRun) -> list[Call]:
    """Return the test studies with what the model says of their patients, the most certain first."""
    people, learnt = run.patients("test"), run.learnt
    if people.empty or learnt is None:
        return []
    calls = []
    for row in run.predictions[run.predictions["split"] == "test"].to_dict("records"):
        patient = people.loc[row["patient_id"]]
        own = learnt.of_run[str(row["run"])] if isinstance(learnt, Folds) else learnt
        p, threshold = float(patient["probability"]), own.operating_point.threshold
        reach = 1 - threshold if patient["predicted"] else threshold
        calls.append(
            Call(
                study_id=str(row["study_id"]),
                patient_id=str(row["patient_id"]),
                studies=int(patient["studies"]),
                label=int(patient["label"]),
                probability=p,
                called=int(patient["predicted"]),
                certainty=abs(p - threshold) / max(reach, 1e-9),
            )
        )
    return sorted(calls, key=lambda call: (-call.certainty, call.study_id))


def _most_telling(calls: Sequence[Call]) -> dict[str, Call]:
    """Return why -> study: the most confident right, the most confident wrong, the least certain; each study once."""
    wanted = {
        "Most confident and right": [call for call in calls if call.right][:1],
        "Most confident and wrong": [call for call in calls if not call.right][:1],
        "Least certain": list(calls[-1:]),
    }
    chosen: dict[str, Call] = {}
    for why, found in wanted.items():
        if found and found[0] not in chosen.values():
            chosen[why] = found[0]
    return chosen


def _telling(run: ReportedRun, gallery: Gallery) -> list[Telling]:
    """Return the most telling studies with their panels, which leave the gallery, and their viewers."""
    return [
        Telling(why, call, gallery.pictures.pop(call.study_id, None), _viewer(run, call.study_id))
        for why, call in _most_telling(_calls(run)).items()
    ]


def _viewer(run: ReportedRun, study_id: str) -> Markup | None:
    files, cam, mask = _images(run, study_id)
    if not files or cam is None:
        return None
    panel = run.folder_of(study_id) / "figures" / "cam" / f"{study_id}.png"

    def draw() -> Markup:
        return slice_viewer(read_scene(files, cam, mask, _cross_mm(panel)), study_id)

    return drawn_or_reason("Slices to look through", study_id, draw)


def _turning(run: ReportedRun) -> tuple[Call, Markup] | None:
    """Return the mutant test study that is called right with most certainty, of those with a mask, and its view.

    The view is also written as figures/brain_3d.gif.
    """
    path = run.folder / "figures" / "brain_3d.gif"
    path.unlink(missing_ok=True)
    for call in _calls(run):
        files, cam, mask = _images(run, call.study_id)
        if call.label == 1 and call.right and files and cam is not None and mask is not None:
            break
    else:
        return None

    def draw() -> Markup:
        frames = turning_frames(read_scene(files, cam, mask))
        save_gif(frames, path)
        return turning_view(frames, call.study_id)

    return call, drawn_or_reason("View from all around", call.study_id, draw)


def _images(run: ReportedRun, study_id: str) -> tuple[dict[str, Path], Path | None, Path | None]:
    """Return the sequences, the map and the mask of a study, as far as they are still where the run left them."""
    rows = run.cohort[run.cohort["study_id"] == study_id] if "study_id" in run.cohort else run.cohort
    names = {name.lower(): name for name in (*SEQUENCES, "mask") if name.lower() in rows}
    listed = {name: Path(str(path)) for column, name in names.items() for path in rows[column].dropna()}
    files = {name: path for name, path in listed.items() if path.is_file()}
    mask, cam = files.pop("mask", None), run.folder_of(study_id) / "explanations" / f"{study_id}_cam.nii.gz"
    return files, cam if cam.is_file() else None, mask


def _cross_mm(panel: Path) -> list[float] | None:
    """Return the point that the planes of a panel go through, or None where the file does not say."""
    if not panel.is_file():
        return None
    with Image.open(panel) as image:
        text = image.info.get(CROSS)
    return None if text is None else [float(x) for x in text.split()]


def _gallery(run: ReportedRun) -> Gallery:
    """Return the panels of the test studies, as far as there is room: telling ones first, then wrong ones, then all."""
    gallery, used = Gallery(), 0
    calls = _calls(run)
    telling = list(_most_telling(calls).values())
    files = {call: run.folder_of(call.study_id) / "figures" / "cam" / f"{call.study_id}.png" for call in calls}
    shown = [
        call for call in sorted(calls, key=lambda call: (call not in telling, call.right)) if files[call].is_file()
    ]

    def packed(call: Call) -> Picture:
        words = f"Sequences and map of {call.study_id}, IDH {CLASSES[call.label]}, {call.text}"
        return picture(files[call], words, photograph=True)

    for call, panel in zip(shown, map_in_threads(packed, shown), strict=True):
        if used + len(panel.source) > PANELS_MB * 1e6:
            gallery.left_out.append(call.study_id)
        else:
            used += len(panel.source)
            gallery.pictures[call.study_id] = panel
    return gallery


def picture(path: Path, words: str, *, photograph: bool = False) -> Picture:
    """Return an image as a data URI; a photograph is stored as WebP, at a tenth of the size of PNG."""
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if photograph:
            packed = io.BytesIO()
            image.convert("RGB").save(packed, "WEBP", quality=72, method=4)
            data, kind = packed.getvalue(), "webp"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", words, width, height)


def _predictions(run: ReportedRun) -> ReportTable | None:
    people = run.patients("test").sort_values("probability", ascending=False)
    if people.empty:
        return None
    studies = run.predictions.groupby("patient_id")["study_id"].agg(", ".join)
    rows = [
        [
            str(patient),
            str(studies[patient]),
            CLASSES[int(row["label"])],
            number(row["probability"]),
            CLASSES[int(row["predicted"])],
            "right" if row["predicted"] == row["label"] else "wrong",
        ]
        for patient, row in zip(people.index, people.to_dict("records"), strict=True)
    ]
    head = ["patient", "studies", "truth", "P(mutant)", "called", ""]
    caption = "Every test patient, from surely mutant to surely wildtype"
    return ReportTable(caption, head, rows, (0, 1, 2, 4, 5))


def _weights_words(run: ReportedRun) -> str | None:
    weights = run.provenance.get("weights")
    if not isinstance(weights, Mapping):
        return None
    source, requested, note = (str(weights.get(key) or "") for key in ("source", "requested", "note"))
    if source in ("", "none"):
        words = (
            f"The network started untrained: no pretrained weights were loaded (model.weights={requested or 'none'})."
        )
    else:
        words = f"The network started from {source} (model.weights={requested})."
    return f"{words} Note: {note}." if note else words


def provenance_table(run: ReportedRun) -> ReportTable | None:
    """Return provenance.json, flattened."""
    rows = [[key, value] for key, value in _flat(run.provenance)]
    return ReportTable("provenance.json", ["what", "value"], rows, (0, 1)) if rows else None


def _flat(node: object, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, inner in node.items():
            # Packages and runs keep their names; a unit stands behind a comma.
            name = str(key)
            if path not in ("versions", "runs"):
                name = re.sub("_(gb|mb)$", lambda unit: f", {unit[1].upper()}", name).replace("_", " ")
            yield from _flat(inner, f"{path}: {name}" if path else name)
    elif isinstance(node, list) and any(isinstance(item, Mapping | list) for item in node):
        for number, inner in enumerate(node):
            yield from _flat(inner, f"{path}: {number}")
    elif isinstance(node, list):
        yield path, ", ".join(map(str, node)) or "none"
    else:
        grouped = f"{node:,}" if isinstance(node, int) and not isinstance(node, bool) else group_in_words(node)
        yield path, "unknown" if node is None else grouped
