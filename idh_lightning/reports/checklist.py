"""Two reporting guidelines: every item of CLAIM 2024, with an answer where the run's own files have one.

Source: Tejani et al. 2024, CLAIM 2024 update (its 44 items, in words of our own), doi:10.1148/ryai.240300; Collins et
al. 2024, TRIPOD+AI, doi:10.1136/bmj-2023-078378.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from idh_lightning.attribution.scores import BASELINE
from idh_lightning.cohort import SPLITS
from idh_lightning.reports.run_folder import ReportedRun
from idh_lightning.reports.vocabulary import ANALYSES, CALIBRATION_METHODS, METRICS, SUBGROUPS, in_words

_QUESTIONS = {
    "CLAIM 1": "Does the title name the kind of AI?",
    "CLAIM 2": "Does the abstract say design, methods, results and conclusions?",
    "CLAIM 3": "What is the background, and what is the model meant for?",
    "CLAIM 4": "What are the aims and hypotheses?",
    "CLAIM 5": "Is the study prospective or retrospective?",
    "CLAIM 6": "What is the goal of the study?",
    "CLAIM 7, TRIPOD+AI 5a": "Where do the data come from?",
    "CLAIM 8, TRIPOD+AI 6b": "Who was eligible, who was left out?",
    "CLAIM 9, TRIPOD+AI 7": "How were the images prepared?",
    "CLAIM 10": "Was part of the data selected, and how?",
    "CLAIM 11": "How were the data de-identified?",
    "CLAIM 12, TRIPOD+AI 11": "How were missing data handled?",
    "CLAIM 13": "How were the images acquired?",
    "CLAIM 14, TRIPOD+AI 8a": "What is predicted, and how is the reference standard defined?",
    "CLAIM 15": "Why this reference standard?",
    "CLAIM 16": "Who annotated, with which training?",
    "CLAIM 17": "How were the test data annotated?",
    "CLAIM 18": "How far do annotators agree?",
    "CLAIM 19, TRIPOD+AI 12a": "How were patients assigned to partitions?",
    "TRIPOD+AI 13": "How was class imbalance handled?",
    "CLAIM 20": "At which level are partitions disjoint?",
    "CLAIM 21, TRIPOD+AI 10": "How many patients were to be tested, and why so many?",
    "CLAIM 22, TRIPOD+AI 12c": "What is the model?",
    "CLAIM 23": "With which software and hardware?",
    "CLAIM 24": "How were parameters initialised?",
    "CLAIM 25, TRIPOD+AI 12c": "How was it trained?",
    "CLAIM 26": "How was the final model chosen?",
    "CLAIM 27": "Are models combined, and how?",
    "CLAIM 28, TRIPOD+AI 12e": "How is performance measured?",
    "CLAIM 29": "How is uncertainty measured?",
    "TRIPOD+AI 12f": "Was the model updated or recalibrated?",
    "CLAIM 30": "Is the result robust?",
    "CLAIM 31": "How is the model explained?",
    "CLAIM 32": "Was it tested on data of its own source?",
    "CLAIM 33": "Was it tested on external data?",
    "CLAIM 34": "Is a clinical trial registered?",
    "CLAIM 35, TRIPOD+AI 20a": "How many were included and left out?",
    "CLAIM 36, TRIPOD+AI 20b": "Who are the participants in each partition?",
    "CLAIM 37, TRIPOD+AI 14 and 23b": "Does performance differ between groups?",
    "CLAIM 38, TRIPOD+AI 23a": "What is the performance, with intervals?",
    "CLAIM 39": "Which cases failed?",
    "CLAIM 40": "What are the limits of the study?",
    "CLAIM 41": "What follows for practice?",
    "CLAIM 42": "Where is the full protocol?",
    "CLAIM 43, TRIPOD+AI 18f and 22": "Where are the code, the full model and the data?",
    "CLAIM 44": "Who paid, and in which role?",
}
"""Items -> question, in the order of a paper: data, model, training, evaluation, results."""

_Answers = Iterator[tuple[str, str | None]]


@dataclass(frozen=True)
class ChecklistItem:
    """One item, or several that ask the same.

    Attributes:
        items: Their numbers: "CLAIM 33, TRIPOD+AI 20a".
        question: In words of our own.
        answer: From the files of the run, or None where they have none.
    """

    items: str
    question: str
    answer: str | None


def checklist(run: ReportedRun) -> list[ChecklistItem]:
    """Items of both guidelines in the order of a paper, answered where the files of the run can."""
    answers = dict([*_data(run), *_model(run), *_evaluation(run), *_results(run)])
    return [ChecklistItem(items, question, answers.get(items.split(",")[0])) for items, question in _QUESTIONS.items()]


def _data(run: ReportedRun) -> _Answers:
    name = run.provenance.get("cohort")
    if name is not None:
        yield "CLAIM 7", f"Cohort {name}; studies, patients and labels in cohort.csv."
    yield "CLAIM 9", _settings(run, "data", "preprocessing")
    yield "CLAIM 19", _settings(run, "split")
    torn = run.torn_patients
    if torn:
        yield "CLAIM 20", f"NOT disjoint: {torn} patients are in more than one partition."
    elif torn is not None:
        words = "Patients: counted from cohort.csv, no patient is in two partitions; follow-up studies stay together."
        yield "CLAIM 20", words
    splits = {split: counts for split in SPLITS if isinstance(counts := run.node("splits", split), Mapping)}
    sizes = "; ".join(f"{split} {n['n']} patients ({n['n_mutant']} mutant)" for split, n in splits.items())
    yield "CLAIM 21", f"{sizes}." if sizes else None
    if run.cohort.empty:
        return
    listed = ", ".join(f"{n} × {reason}" for reason, n in run.exclusion_reasons.items())
    lost = f"left out: {listed} (exclusions.csv names each)" if listed else "none was left out"
    yield "CLAIM 8", f"Studies with the sequences asked for and a known IDH status; {lost}."
    ages = "age_years" in run.cohort and int(run.cohort["age_years"].isna().sum())
    filled = {"error": "No study may lack a sequence. ", "zero": "Sequences that a study lacks are filled with zero. "}
    told = filled.get(str(_at(run.config, "data", "missing")), "")
    known = f"{told}Age is unknown in {int(ages)} of {len(run.cohort)} studies"
    yield "CLAIM 12", f"{known}; these do not enter comparisons with age."
    yield "CLAIM 14", "IDH mutation (1) or wildtype (0) from the cohort's table, matched against a closed vocabulary."
    yield "CLAIM 35", "See the figure of the cohort flow; cohort.csv and exclusions.csv name everyone."
    yield "CLAIM 36", "See the table of patients: counts, age and sex per partition."


def _model(run: ReportedRun) -> _Answers:
    provenance, config = run.provenance, run.config
    model, parameters = _settings(run, "model"), provenance.get("parameters")
    if isinstance(parameters, Mapping):
        counts = f"{_millions(parameters.get('total'))} parameters, {_millions(parameters.get('trainable'))} trainable"
        model = f"{model.rstrip('.')}; {counts}." if model else f"{counts}."
    yield "CLAIM 22", model
    versions, hardware = provenance.get("versions"), provenance.get("hardware")
    if isinstance(versions, Mapping):
        words = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield "CLAIM 23", f"{words}. {_plain(hardware)}." if hardware else f"{words}."
    weights = provenance.get("weights")
    if isinstance(weights, Mapping):
        yield "CLAIM 24", _plain({k: v for k, v in weights.items() if v}) + "."
    training = [text for key in ("objective", "optimizer", "scheduler") if (text := _settings(run, key))]
    epochs = provenance.get("epochs")
    yield "CLAIM 25", " ".join([*training, *([] if epochs is None else [f"Epochs: {epochs}."])]) or None
    metric, mode = (_at(config, "monitor", key) for key in ("metric", "mode"))
    if metric is not None:
        yield "CLAIM 26", f"The epoch with the {'lowest' if mode == 'min' else 'highest'} {metric}."
    share, target = _at(config, "data", "batches", "mutant_fraction"), _at(config, "objective", "_target_")
    balance = (
        [] if share is None else [f"{_plain(share)} of the training draws are mutant, whatever the cohort's share"]
    )
    balance += [] if target is None else [f"loss: {str(target).split('.')[-1]}"]
    method = run.node("calibration", "method")
    method = None if method is None else in_words(str(method), CALIBRATION_METHODS)
    balance += [] if method is None else [f"probabilities calibrated afterwards: {method}"]
    yield "TRIPOD+AI 13", "; ".join(balance) + "." if balance else None
    yield "TRIPOD+AI 12f", None if method is None else f"Calibration on validation patients: {method}."
    yield "CLAIM 42", "Every setting is in .hydra/config.yaml of the run folder." if config else None
    if (commit := provenance.get("git_commit")) is not None:
        command = provenance.get("command", "?")
        yield "CLAIM 43", f"Commit {commit}; checkpoints/best.ckpt carries its own recipe; command: {command}"


def _evaluation(run: ReportedRun) -> _Answers:
    test = run.node("test")
    if isinstance(test, Mapping):
        yield "CLAIM 28", ", ".join(in_words(str(name), METRICS) for name in test if name in METRICS) + "."
    confidence, bootstrap = run.number("settings", "confidence"), run.number("settings", "bootstrap")
    if confidence is not None:
        yield (
            "CLAIM 29",
            (
                f"{confidence:.0%} intervals over patients: stratified bootstrap ({bootstrap or 0:.0f} resamples) for "
                "areas, Wilson for proportions; paired DeLong tests between models."
            ),
        )
    if "method" in run.explanations:
        names = run.explanations["method"].astype(str).unique()
        methods = ", ".join(sorted(name for name in names if not name.startswith(BASELINE)))
        studies = run.explanations["study_id"].nunique()
        yield "CLAIM 31", f"{methods} for {studies} test studies, scored against the tumour masks."
    if test is None:
        return
    internal = "Yes: test patients of the same cohort, who had no part in training or choosing."
    external = "No: training, validation and test patients are of one cohort."
    if run.node("runs") is not None:
        external = "No: training, validation and test patients of every fold are of one cohort."
    elif run.node("validation") is None:
        internal = "No: the tested cohort is not the one that the model was trained on."
        external = (
            "Yes: nothing was learnt from this cohort; the model, its threshold and its calibration came with it."
        )
    yield from (("CLAIM 32", internal), ("CLAIM 33", external))


def _results(run: ReportedRun) -> _Answers:
    analyses = (
        (name, run.estimate("sensitivity_analyses", name, "metrics", "auroc"))
        for name in run.node("sensitivity_analyses") or {}
    )
    robust = [f"{in_words(name, ANALYSES)}: ROC-AUC {estimate.text}" for name, estimate in analyses if estimate]
    yield "CLAIM 30", "; ".join(robust) + "." if robust else None
    groups = [
        in_words(str(name), SUBGROUPS) for name, found in (run.node("subgroups") or {}).items() if "groups" in found
    ]
    yield "CLAIM 37", f"Computed for {', '.join(groups)}; see the tables of groups." if groups else None
    found = [(name, run.estimate("test", name)) for name in ("auroc", "sensitivity", "specificity", "ece")]
    words = [f"{in_words(name, METRICS)} {estimate.text}" for name, estimate in found if estimate is not None]
    yield "CLAIM 38", f"Test: {', '.join(words)}." if words else None
    people = run.patients("test")
    if len(people):
        wrong = int((people["predicted"] != people["label"]).sum())
        named = f"{wrong} of {len(people)} test patients are called wrong; the table of test patients names them."
        yield "CLAIM 39", named


def _settings(run: ReportedRun, *path: str) -> str | None:
    node = _at(run.config, *path)
    return None if not isinstance(node, Mapping) else _plain(node) + "."


def _at(node: Any, *path: str) -> Any:
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _plain(node: Any) -> str:
    """Settings as words: the name of the class first, then its values."""
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
