"""Two reporting guidelines: every item of CLAIM 2024, with an answer where the run's own files have one.

Source: Tejani et al. 2024, CLAIM 2024 update (its 44 items, in words of our own), doi:10.1148/ryai.240300; Collins et
al. 2024, TRIPOD+AI, doi:10.1136/bmj-2023-078378.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idh_lightning.attribution.scores import BASELINE
from idh_lightning.reports.run_tables import PARTS, ReportedRun, exclusion_reasons
from idh_lightning.reports.vocabulary import ANALYSES, METRICS, in_words


@dataclass(frozen=True)
class ChecklistItem:
    """One item, or several that ask the same.

    Attributes:
        items: Where it stands: "CLAIM 33, TRIPOD+AI 20a".
        question: What is asked.
        answer: What this run says, or None where it has not computed it.
    """

    items: str
    question: str
    answer: str | None


def checklist(run: ReportedRun) -> list[ChecklistItem]:
    """Return the items in the order of a paper: data, model, training, evaluation, results."""
    return [
        ChecklistItem("CLAIM 1", "Does the title name the kind of AI?", None),
        ChecklistItem("CLAIM 2", "Does the abstract say design, methods, results and conclusions?", None),
        ChecklistItem("CLAIM 3", "What is the background, and what is the model meant for?", None),
        ChecklistItem("CLAIM 4", "What are the aims and hypotheses?", None),
        ChecklistItem("CLAIM 5", "Is the study prospective or retrospective?", None),
        ChecklistItem("CLAIM 6", "What is the goal of the study?", None),
        ChecklistItem("CLAIM 7, TRIPOD+AI 5a", "Where do the data come from?", _source(run)),
        ChecklistItem("CLAIM 8, TRIPOD+AI 6b", "Who was eligible, who was left out?", _eligible(run)),
        ChecklistItem("CLAIM 9, TRIPOD+AI 7", "How were the images prepared?", _settings(run, "data", "preprocessing")),
        ChecklistItem("CLAIM 10", "Was part of the data selected, and how?", None),
        ChecklistItem("CLAIM 11", "How were the data de-identified?", None),
        ChecklistItem("CLAIM 12, TRIPOD+AI 11", "How were missing data handled?", _missing(run)),
        ChecklistItem("CLAIM 13", "How were the images acquired?", None),
        ChecklistItem(
            "CLAIM 14, TRIPOD+AI 8a", "What is predicted, and how is the reference standard defined?", _outcome(run)
        ),
        ChecklistItem("CLAIM 15", "Why this reference standard?", None),
        ChecklistItem("CLAIM 16", "Who annotated, with which training?", None),
        ChecklistItem("CLAIM 17", "How were the test data annotated?", None),
        ChecklistItem("CLAIM 18", "How far do annotators agree?", None),
        ChecklistItem("CLAIM 19, TRIPOD+AI 12a", "How were patients assigned to partitions?", _settings(run, "split")),
        ChecklistItem("TRIPOD+AI 13", "How was class imbalance handled?", _imbalance(run)),
        ChecklistItem("CLAIM 20", "At which level are partitions disjoint?", _disjoint(run)),
        ChecklistItem("CLAIM 21, TRIPOD+AI 10", "How many patients were to be tested, and why so many?", _sizes(run)),
        ChecklistItem("CLAIM 22, TRIPOD+AI 12c", "What is the model?", _model(run)),
        ChecklistItem("CLAIM 23", "With which software and hardware?", _software(run)),
        ChecklistItem("CLAIM 24", "How were parameters initialised?", _initialised(run)),
        ChecklistItem("CLAIM 25, TRIPOD+AI 12c", "How was it trained?", _training(run)),
        ChecklistItem("CLAIM 26", "How was the final model chosen?", _chosen(run)),
        ChecklistItem("CLAIM 27", "Are models combined, and how?", None),
        ChecklistItem("CLAIM 28, TRIPOD+AI 12e", "How is performance measured?", _measures(run)),
        ChecklistItem("CLAIM 29", "How is uncertainty measured?", _uncertainty(run)),
        ChecklistItem("TRIPOD+AI 12f", "Was the model updated or recalibrated?", _recalibrated(run)),
        ChecklistItem("CLAIM 30", "Is the result robust?", _robust(run)),
        ChecklistItem("CLAIM 31", "How is the model explained?", _explained(run)),
        ChecklistItem("CLAIM 32", "Was it tested on data of its own source?", _internal(run)),
        ChecklistItem("CLAIM 33", "Was it tested on external data?", _external(run)),
        ChecklistItem("CLAIM 34", "Is a clinical trial registered?", None),
        ChecklistItem("CLAIM 35, TRIPOD+AI 20a", "How many were included and left out?", _flow(run)),
        ChecklistItem("CLAIM 36, TRIPOD+AI 20b", "Who are the participants in each partition?", _demographics(run)),
        ChecklistItem("CLAIM 37, TRIPOD+AI 14 and 23b", "Does performance differ between groups?", _groups(run)),
        ChecklistItem("CLAIM 38, TRIPOD+AI 23a", "What is the performance, with intervals?", _performance(run)),
        ChecklistItem("CLAIM 39", "Which cases failed?", _failures(run)),
        ChecklistItem("CLAIM 40", "What are the limits of the study?", None),
        ChecklistItem("CLAIM 41", "What follows for practice?", None),
        ChecklistItem("CLAIM 42", "Where is the full protocol?", _protocol(run)),
        ChecklistItem("CLAIM 43, TRIPOD+AI 18f and 22", "Where are the code, the full model and the data?", _code(run)),
        ChecklistItem("CLAIM 44", "Who paid, and in which role?", None),
    ]


def _source(run: ReportedRun) -> str | None:
    name = run.provenance.get("cohort")
    return None if name is None else f"Cohort {name}; studies, patients and labels in cohort.csv."


def _eligible(run: ReportedRun) -> str | None:
    if run.cohort.empty:
        return None
    listed = ", ".join(f"{n} × {reason}" for reason, n in exclusion_reasons(run).items())
    lost = f"left out: {listed} (exclusions.csv names each)" if listed else "none was left out"
    return f"Studies with the sequences asked for and a known IDH status; {lost}."


def _missing(run: ReportedRun) -> str | None:
    if run.cohort.empty:
        return None
    ages = "age_years" in run.cohort and int(run.cohort["age_years"].isna().sum())
    setting = _at(run.config, "data", "missing")
    words = {"error": "No study may lack a sequence. ", "zero": "Sequences that a study lacks are filled with zero. "}
    return (
        f"{words.get(str(setting), '')}Age is unknown in {int(ages)} of {len(run.cohort)} studies; these do not enter "
        "comparisons with age."
    )


def _outcome(run: ReportedRun) -> str | None:
    if run.cohort.empty:
        return None
    return "IDH mutation (1) or wildtype (0) from the cohort's table, matched against a closed vocabulary."


def _sizes(run: ReportedRun) -> str | None:
    parts = []
    for split in PARTS:
        counts = run.node("splits", split)
        if isinstance(counts, Mapping):
            parts.append(f"{split} {counts['n']} patients ({counts['n_mutant']} mutant)")
    return "; ".join(parts) + "." if parts else None


def _disjoint(run: ReportedRun) -> str | None:
    if not {"patient_id", "split"} <= set(run.cohort.columns):
        return None
    torn = int((run.cohort.groupby("patient_id")["split"].nunique() > 1).sum())
    if torn:
        return f"NOT disjoint: {torn} patients are in more than one partition."
    return "Patients: counted from cohort.csv, no patient is in two partitions; follow-up studies stay together."


def _model(run: ReportedRun) -> str | None:
    parameters = run.provenance.get("parameters")
    model = _settings(run, "model")
    if not isinstance(parameters, Mapping):
        return model
    counts = f"{_millions(parameters.get('total'))} parameters, {_millions(parameters.get('trainable'))} trainable"
    return f"{model.rstrip('.')}; {counts}." if model else f"{counts}."


def _software(run: ReportedRun) -> str | None:
    versions, hardware = run.provenance.get("versions"), run.provenance.get("hardware")
    if not isinstance(versions, Mapping):
        return None
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{words}. {_plain(hardware)}." if hardware else f"{words}."


def _initialised(run: ReportedRun) -> str | None:
    weights = run.provenance.get("weights")
    return None if not isinstance(weights, Mapping) else _plain({k: v for k, v in weights.items() if v}) + "."


def _training(run: ReportedRun) -> str | None:
    words = [text for key in ("objective", "optimizer", "scheduler") if (text := _settings(run, key))]
    epochs = run.provenance.get("epochs")
    if epochs is not None:
        words.append(f"Epochs: {epochs}.")
    return " ".join(words) or None


def _chosen(run: ReportedRun) -> str | None:
    metric, mode = (_at(run.config, "monitor", key) for key in ("metric", "mode"))
    return None if metric is None else f"The epoch with the {'lowest' if mode == 'min' else 'highest'} {metric}."


def _imbalance(run: ReportedRun) -> str | None:
    share, target = _at(run.config, "data", "batches", "mutant_fraction"), _at(run.config, "objective", "_target_")
    words = [] if share is None else [f"{_plain(share)} of the training draws are mutant, whatever the cohort's share"]
    if target is not None:
        words.append(f"loss: {str(target).split('.')[-1]}")
    method = run.node("calibration", "method")
    if method is not None:
        words.append(f"probabilities calibrated afterwards: {method}")
    return "; ".join(words) + "." if words else None


def _measures(run: ReportedRun) -> str | None:
    test = run.node("test")
    return (
        None
        if not isinstance(test, Mapping)
        else ", ".join(in_words(str(name), METRICS) for name in test if name in METRICS) + "."
    )


def _uncertainty(run: ReportedRun) -> str | None:
    confidence, bootstrap = run.number("settings", "confidence"), run.number("settings", "bootstrap")
    if confidence is None:
        return None
    return (
        f"{confidence:.0%} intervals over patients: stratified bootstrap ({bootstrap or 0:.0f} resamples) for areas, "
        "Wilson for proportions; paired DeLong tests between models."
    )


def _recalibrated(run: ReportedRun) -> str | None:
    method = run.node("calibration", "method")
    return None if method is None else f"Calibration on validation patients: {method}."


def _robust(run: ReportedRun) -> str | None:
    done = [
        f"{in_words(name, ANALYSES)}: ROC-AUC {estimate.text}"
        for name in run.node("sensitivity_analyses") or {}
        if (estimate := run.estimate("sensitivity_analyses", name, "metrics", "auroc")) is not None
    ]
    return "; ".join(done) + "." if done else None


def _explained(run: ReportedRun) -> str | None:
    if "method" not in run.explanations:
        return None
    names = run.explanations["method"].astype(str).unique()
    methods = ", ".join(sorted(name for name in names if not name.startswith(BASELINE)))
    return f"{methods} for {run.explanations['study_id'].nunique()} test studies, scored against the tumour masks."


def _internal(run: ReportedRun) -> str | None:
    if run.node("test") is None:
        return None
    if run.node("validation") is None and run.node("runs") is None:
        return "No: the tested cohort is not the one that the model was trained on."
    return "Yes: test patients of the same cohort, who had no part in training or choosing."


def _external(run: ReportedRun) -> str | None:
    if run.node("test") is None:
        return None
    if run.node("runs") is not None:
        return "No: training, validation and test patients of every fold are of one cohort."
    if run.node("validation") is None:
        return "Yes: nothing was learnt from this cohort; the model, its threshold and its calibration came with it."
    return "No: training, validation and test patients are of one cohort."


def _flow(run: ReportedRun) -> str | None:
    return (
        None if run.cohort.empty else "See the figure of the cohort flow; cohort.csv and exclusions.csv name everyone."
    )


def _demographics(run: ReportedRun) -> str | None:
    return None if run.cohort.empty else "See the table of patients: counts, age and sex per partition."


def _performance(run: ReportedRun) -> str | None:
    found = [(name, run.estimate("test", name)) for name in ("auroc", "sensitivity", "specificity", "ece")]
    words = [f"{in_words(name, METRICS)} {estimate.text}" for name, estimate in found if estimate is not None]
    return f"Test: {', '.join(words)}." if words else None


def _groups(run: ReportedRun) -> str | None:
    groups = (run.node("subgroups") or {}).items()
    names = [name.replace("_", " ") for name, found in groups if "groups" in found]
    return f"Computed for {', '.join(names)}; see the tables of groups." if names else None


def _failures(run: ReportedRun) -> str | None:
    people = run.patients("test")
    if people.empty:
        return None
    wrong = int((people["predicted"] != people["label"]).sum())
    return f"{wrong} of {len(people)} test patients are called wrong; the table of test patients names them."


def _protocol(run: ReportedRun) -> str | None:
    return "Every setting is in .hydra/config.yaml of the run folder." if run.config else None


def _code(run: ReportedRun) -> str | None:
    commit = run.provenance.get("git_commit")
    if commit is None:
        return None
    return (
        f"Commit {commit}; checkpoints/best.ckpt carries its own recipe; command: {run.provenance.get('command', '?')}"
    )


def _settings(run: ReportedRun, *path: str) -> str | None:
    node = _at(run.config, *path)
    return None if not isinstance(node, Mapping) else _plain(node) + "."


def _at(node: Any, *path: str) -> Any:
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _plain(node: Any) -> str:
    """Return settings as words: the name of the class first, then its values."""
    if isinstance(node, Mapping):
        values = [
            f"{in_words(str(key))} {_plain(value)}" for key, value in node.items() if not str(key).startswith("_")
        ]
        name = [str(node["_target_"]).split(".")[-1]] if "_target_" in node else []
        return ": ".join([*name, *([", ".join(values)] if values else [])])
    if isinstance(node, list | tuple):
        return " ".join(map(_plain, node)) or "none"
    return {"None": "none", "True": "yes", "False": "no"}.get(str(node), str(node))


def _millions(count: object) -> str:
    return f"{count / 1e6:.2f} M" if isinstance(count, int | float) else "unknown"
