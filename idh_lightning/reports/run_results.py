"""Tables of a run's report, each from metrics.json, the tables of the run folder or provenance.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from idh_lightning.attribution.scores import BASELINE, summarised
from idh_lightning.cli.tables import number
from idh_lightning.reports import vocabulary
from idh_lightning.reports.run_folder import ReportedRun
from idh_lightning.reports.tables import Estimate, ReportTable, as_estimate, cell, count, p_value_cell, signed
from idh_lightning.reports.vocabulary import Metric, group_in_words, in_words

PAIRED_CAPTION = "Differences in ROC-AUC on the same patients (paired DeLong test)"
_CALLS = ("auroc", "sensitivity", "specificity")


def _calls_head(run: ReportedRun) -> list[str]:
    return ["", "n", run.target.positive, *(vocabulary.METRICS[key].short for key in _CALLS)]


def result_tables(run: ReportedRun) -> dict[str, Any]:
    """Tables of report.html.j2 by their names there; None where the run has not computed them."""
    whose = "Test patients" + ("" if run.node("validation") is None else ", and validation patients for comparison")
    return {
        "cohort": _cohort(run),
        "exclusions": _exclusions(run),
        "metrics": _metrics(run, vocabulary.DISCRIMINATION, whose),
        "predictive_values": _predictive_values(run),
        "calibration": _metrics(run, vocabulary.CALIBRATION, "Calibration", raw=True),
        "baselines": _baselines(run),
        "comparisons": _comparisons(run),
        "subgroups": _subgroups(run),
        "sensitivity_analyses": _sensitivity_analyses(run),
        "conformal": _conformal(run),
        "segmentation": _segmentation(run),
        "localisation": _localisation(run),
        "predictions": _predictions(run),
        "differences": _differences(run),
        "shift": _shift(run),
        "provenance": provenance_table(run),
    }


def _cohort(run: ReportedRun) -> ReportTable | None:
    rows = []
    for split, (studies, patients, mutant) in run.partitions.items():
        people = run.cohort[run.cohort["split"] == split].drop_duplicates("patient_id")
        ages = people["age_years"].astype(float).dropna() if "age_years" in people else pd.Series(dtype=float)
        sexes = people["sex"].dropna().astype(str) if "sex" in people else pd.Series(dtype=str)
        women = int(sexes.str.upper().str.startswith("F").sum())
        rows.append(
            [
                split,
                str(patients),
                str(studies),
                f"{mutant} ({mutant / patients:.0%})",
                f"{ages.mean():.0f} ({ages.std():.0f})" if len(ages) > 1 else "unknown",
                f"{women} of {len(sexes)}" if len(sexes) else "unknown",
            ]
        )
    head = ["", "patients", "studies", run.target.positive, "age, mean (SD), years", "women"]
    return ReportTable("Who the patients are", head, rows) if rows else None


def _exclusions(run: ReportedRun) -> ReportTable | None:
    if "reason" not in run.exclusions or run.exclusions.empty:
        return None
    columns = [name for name in ("study_id", "patient_id", "reason") if name in run.exclusions]
    rows = [[str(value) for value in row] for row in run.exclusions[columns].itertuples(index=False)]
    reasons = ", ".join(f"{n} × {reason}" for reason, n in run.exclusion_reasons.items())
    return ReportTable(f"Studies left out: {reasons}", [in_words(name) for name in columns], rows, range(len(columns)))


def _metrics(run: ReportedRun, metrics: Mapping[str, Metric], caption: str, *, raw: bool = False) -> ReportTable | None:
    """Metrics of test and validation patients; with `raw` also those before calibration."""
    alone = run.node("validation") is None
    rows = []
    for key, metric in metrics.items():
        test, validation = run.estimate("test", key), run.estimate("validation", key)
        if test is None and validation is None:
            continue
        row = [metric.name, cell(test), count(test)]
        row += [cell(run.estimate("calibration", "raw", "test", key))] if raw else []
        row += [] if alone else [cell(validation)]
        rows.append([*row, metric.meant(run.target)])
    head = ["", "test (95% interval)", "n"]
    head += ["test, uncalibrated"] if raw else []
    head += ["what it means"] if alone else ["validation (optimistic)", "what it means"]
    return ReportTable(caption, head, rows, (0, len(head) - 1)) if rows else None


def _predictive_values(run: ReportedRun) -> ReportTable | None:
    rows = [
        [f"{100 * float(row['prevalence']):.0f}%", *(cell(as_estimate(row.get(key))) for key in ("ppv", "npv"))]
        for row in run.node("predictive_values") or []
    ]
    negative, positive = run.target.classes
    head = [f"share of {positive} patients", f"PPV: “{positive}” is right", f"NPV: “{negative}” is right"]
    caption = f"Predictive values where {positive} patients are rarer or commoner"
    return ReportTable(caption, head, rows) if rows else None


def _baselines(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("baselines") or {}).items():
        test = section.get("test", {})
        auroc, brier = as_estimate(test.get("auroc")), as_estimate(test.get("brier"))
        why = section.get("why") or test.get("why")
        if why:
            rows.append([in_words(name, vocabulary.BASELINES), f"not computed: {why}", "", "", ""])
            continue
        fitted = f"{section.get('n', '?')} {section.get('fitted_on', '')} patients"
        if "runs" in section:
            fitted = f"{section.get('fitted_on', '')} patients of each fold"
        rows.append([in_words(name, vocabulary.BASELINES), cell(auroc), count(auroc), cell(brier), fitted])
    if not rows:
        return None
    brier, n = run.estimate("test", "brier"), run.node("external", "n_train") or run.node("splits", "train", "n")
    fitted = "train patients of each fold" if run.node("runs") is not None else f"{n or '?'} train patients"
    rows.insert(0, ["model (MRI)", cell(run.auroc), count(run.auroc), cell(brier), fitted])
    head = ["", "ROC-AUC (95% interval)", "n", "Brier score", "fitted on"]
    return ReportTable("The model, its parts, and what is known without a network", head, rows, (0, 4))


def _comparisons(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("comparisons") or {}).items():
        words = " against ".join(in_words(one, vocabulary.BASELINES) for one in name.split("_vs_", 1))
        difference = as_estimate(section.get("difference"))
        if difference is None:
            rows.append([words, "", "", f"not computed: {section.get('why', 'no result')}", "", ""])
            continue
        areas = [number(float(section[key])) for key in ("first", "second")]
        p = p_value_cell(section.get("p_value"))
        rows.append([words, *areas, signed(difference), p, count(difference)])
    head = ["", "first", "second", "difference (95% interval)", "p", "n"]
    return ReportTable(PAIRED_CAPTION, head, rows) if rows else None


def _subgroups(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("subgroups") or {}).items():
        words = in_words(name, vocabulary.SUBGROUPS)
        if "why" in section:
            rows.append([words, "", "", f"not computed: {section['why']}", "", ""])
            continue
        shared = f" ({vocabulary.OVERLAPPING})" if run.groups_overlap(name) else ""
        for group, found in section.get("groups", {}).items():
            values = [cell(as_estimate(found.get(key))) for key in _CALLS]
            counts = [str(found.get(key, "")) for key in ("n", "n_mutant")]
            rows.append([f"{words}: {group_in_words(group)}{shared}", *counts, *values])
        within = as_estimate(section.get("within_auroc"))
        if within is not None:
            rows.append([f"within {words}", count(within), "", cell(within), "", ""])
        if len(section.get("groups", {})) > 1:
            rows.append([f"largest gap, {words}", "", "", *(gap_in_words(section.get("gaps"), key) for key in _CALLS)])
    caption = (
        "Groups of test patients; “within” compares only patients of the same group; the largest gap in sensitivity is "
        "the difference in equal opportunity; the interval of a gap holds for all pairs of groups together"
    )
    return ReportTable(caption, _calls_head(run), rows) if rows else None


def gap_in_words(gaps: object, key: str) -> str:
    """Largest difference between two groups in a metric, with its interval and the groups."""
    found = gaps.get(key) if isinstance(gaps, Mapping) else None
    estimate = as_estimate(found)
    if found is None or estimate is None or estimate.value is None:
        return cell(estimate)
    return f"{signed(estimate)}, {' against '.join(map(group_in_words, found['groups']))}"


def _sensitivity_analyses(run: ReportedRun) -> ReportTable | None:
    rows = []
    for name, section in (run.node("sensitivity_analyses") or {}).items():
        values = [cell(as_estimate(section.get("metrics", {}).get(key)), "") for key in _CALLS]
        if "why" in section:
            values = [f"not computed: {section['why']}", "", ""]
        words = in_words(name, vocabulary.ANALYSES)
        if name == "every_study" and "studies" in section:
            words += f" ({section['studies']} studies)"
        rows.append([words, *(str(section.get(key, "")) for key in ("n", "n_mutant")), *values])
    return ReportTable("Does the result hold without some patients?", _calls_head(run), rows) if rows else None


def _conformal(run: ReportedRun) -> ReportTable | None:
    section = run.node("conformal", "test")
    if not isinstance(section, Mapping):
        return None
    rows = [
        [in_words(key, vocabulary.PREDICTION_SETS, run.target), cell(estimate), count(estimate)]
        for key, estimate in ((str(key), as_estimate(value)) for key, value in section.items())
        if estimate is not None
    ]
    promised = run.number("conformal", "coverage")
    caption = "Prediction sets: the classes that cannot be excluded"
    if promised is not None:
        caption += f"; {promised:.0%} of each class shall be covered"
    if run.node("external") is not None:
        caption += ", which holds for patients like the validation ones alone: here it is measured, not promised"
    return ReportTable(caption, ["", "test patients (95% interval)", "n"], rows) if rows else None


def _segmentation(run: ReportedRun) -> ReportTable | None:
    rows = [
        [
            split,
            *(
                found.text if (found := run.estimate("segmentation", split, key)) else ""
                for key in vocabulary.SEGMENTATION
            ),
            str(n),
        ]
        for split in ("test", "validation")
        if (n := run.number("segmentation", split, "dice", "n"))
    ]
    head = ["", *(metric.name for metric in vocabulary.SEGMENTATION.values()), "patients"]
    return (
        ReportTable("Does the locator, fine-tuned in this run, find the tumour? (95% interval)", head, rows)
        if rows
        else None
    )


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


def _predictions(run: ReportedRun) -> ReportTable | None:
    people = run.patients("test").sort_values("probability", ascending=False)
    if people.empty:
        return None
    studies = run.predictions.groupby("patient_id")["study_id"].agg(", ".join)
    rows = [
        [
            str(patient),
            str(studies[patient]),
            run.target.classes[int(row["label"])],
            number(row["probability"]),
            run.target.classes[int(row["predicted"])],
            "right" if row["predicted"] == row["label"] else "wrong",
        ]
        for patient, row in zip(people.index, people.to_dict("records"), strict=True)
    ]
    head = ["patient", "studies", "truth", run.target.chance, "called", ""]
    caption = f"Every test patient, from surely {run.target.positive} to surely {run.target.negative}"
    return ReportTable(caption, head, rows, (0, 1, 2, 4, 5))


def _differences(run: ReportedRun) -> ReportTable | None:
    """Another cohort beside the internal test patients of the network."""
    rows = []
    for key, metric in (vocabulary.DISCRIMINATION | vocabulary.CALIBRATION).items():
        difference = run.estimate("external", "differences", key)
        if difference is not None:
            here, there = run.estimate("test", key), run.estimate("external", "internal", key)
            rows.append([metric.name, cell(here), count(here), cell(there), count(there), signed(difference)])
    head = ["", "this cohort", "n", f"{run.node('external', 'trained_on')}, test", "n", "difference (95% interval)"]
    caption = "This cohort and the internal test patients, two samples without a common patient"
    return ReportTable(caption, head, rows) if rows else None


def _shift(run: ReportedRun) -> ReportTable | None:
    """Another cohort beside the training patients of the network."""
    rows = []
    for key, found in (run.node("external", "shift") or {}).items():
        name = in_words(key, vocabulary.COVARIATES, run.target)
        if "why" in found:
            rows.append([name, "", "", f"not computed: {found['why']}", "", ""])
            continue
        parts, words = (
            (found["reference"], found["other"]),
            "{mean:.0%}" if key == "mutant" else "{mean:.4g} ({sd:.3g})",
        )
        difference, ks = as_estimate(found["difference"]), "" if found["ks"] is None else number(found["ks"])
        told = "" if difference is None else signed(difference)
        rows.append(
            [
                name,
                *(words.format(**part).replace("-", "−") for part in parts),
                told,
                ks,
                p_value_cell(found["p_value"]),
            ]
        )
    head = ["", "training patients", "these patients", "standardised difference", "KS distance", "p"]
    caption = "What the network meets that it was not trained on: mean (SD); intensities are z-scores within the brain"
    return ReportTable(caption, head, rows) if rows else None


def localisation_tables(summary: pd.DataFrame) -> list[ReportTable]:
    """All methods and baselines with all scores, then the methods where the call is right and where it is wrong."""
    found = {(str(row.method), str(row.group), str(row.score)): row for row in summary.itertuples(index=False)}
    methods = list(dict.fromkeys(summary["method"].astype(str)))
    known = set(summary["score"])
    scores = {score: metric.short for score, metric in vocabulary.LOCALISATION.items() if score in known}
    if not scores:
        return []
    referenced = any(f"{score}_reference" in known for score in scores)
    n = int(summary["n"].max())
    caption = f"Do the maps lie on the tumour? Means over {n} studies (95% interval)"
    if referenced:
        reference = f"{vocabulary.REFERENCE_MAP}: a map of the same cells that holds the share of tumour in each"
        caption += f"; in brackets the {reference}"
    rows = [[method, *_cells(found, method, "all", scores)] for method in methods]
    tables = [ReportTable(caption, ["", *scores.values()], rows)]
    split = [
        [f"{method}, call {group}, n = {n}", *_cells(found, method, group, scores)]
        for method in methods
        if not method.startswith(BASELINE)
        for group in ("right", "wrong")
        if (n := max((int(str(found[method, group, s].n)) for s in scores if (method, group, s) in found), default=0))
    ]
    if split:
        tables.append(
            ReportTable("The same where the network is right and where it is wrong", ["", *scores.values()], split)
        )
    return tables


def _cells(found: Mapping[tuple[str, str, str], Any], method: str, group: str, scores: Iterable[str]) -> Iterable[str]:
    for score in scores:
        row, best = found.get((method, group, score)), found.get((method, group, f"{score}_reference"))
        if row is None:
            yield ""
            continue
        low, high = (None if pd.isna(end) else float(end) for end in (row.low, row.high))
        text = Estimate(float(row.value), low, high).text
        yield text if best is None else f"{text} [{number(best.value)}]"


def fold_tables(run: ReportedRun) -> list[ReportTable]:
    """Scores of the runs of a pooled cross-validation one by one, and their spread."""
    if run.node("runs", "relation") != "folds":
        return []
    return [table for table in (each_run(run), spread_table(run)) if table is not None]


def each_run(run: ReportedRun) -> ReportTable | None:
    """Scores of each of several runs, with the settings that tell them apart."""
    each = run.node("runs", "spread", "runs")
    if not isinstance(each, Mapping):
        return None
    rows = []
    column = run.node("subgroups", "site", "column")
    for name, found in each.items():
        settings = " ".join((run.node("runs", "settings") or {}).get(name, []))
        if {column, "run"} <= set(run.cohort.columns):
            sites = run.cohort.loc[run.cohort["run"].astype(str) == str(name), column].unique()
            settings += f", site {sites[0]}" if len(sites) == 1 else ""
        rows.append([str(name), *(number(float(value)) for value in found.values()), settings])
    scores = [in_words(str(score), vocabulary.METRICS) for score in next(iter(each.values()))]
    return ReportTable("Each run on its own test patients", ["", *scores, "settings"], rows, (0, len(scores) + 1))


def spread_table(run: ReportedRun) -> ReportTable | None:
    """Mean, spread and range of each score over the runs."""
    summary = run.node("runs", "spread", "summary")
    if not isinstance(summary, Mapping):
        return None
    rows = [
        [
            in_words(str(name), vocabulary.METRICS),
            number(found["mean"]),
            "" if found["sd"] is None else number(found["sd"], 3),
            f"{number(found['minimum'])} to {number(found['maximum'])}",
            str(found["n"]),
        ]
        for name, found in summary.items()
    ]
    return ReportTable("Spread over the runs", ["", "mean", "SD", "range", "runs"], rows)


def provenance_table(run: ReportedRun) -> ReportTable | None:
    """Content of provenance.json, flattened."""
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
