"""Caveats of a run: one list, from metrics.json and provenance.json, to be read before any number is believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from idh_lightning.cohort.checks import counted
from idh_lightning.reports.run_folder import ReportedRun

FEW_EPOCHS = 5
FEW_PATIENTS = 30
FEW_OF_A_CLASS = 10
"""Below these a run says that it was hardly trained, that its calibration and its test rest on little."""


def trained_on(run: ReportedRun) -> str:
    """Name of the cohort that the network was trained on."""
    return str(run.provenance.get("trained_on") or run.provenance.get("cohort", ""))


def caveats(run: ReportedRun) -> list[str]:
    """Caveats that weaken the numbers of a run, the gravest first; empty where nothing is known against them."""
    return [*_synthetic(run), *_torn(run), *_test(run), *_network(run), *_calibrated(run), *_left_out(run)]


def _synthetic(run: ReportedRun) -> Iterator[str]:
    """Name synthetic patients, tested or trained on, and the control that was drawn into them."""
    if "phantom" not in str(run.provenance.get("cohort", "")):
        if "phantom" in trained_on(run):
            yield "The network was trained on synthetic patients: it has never seen a real tumour."
        return
    yield (
        "These patients are synthetic. The numbers say whether the machinery works, not how well MRI shows IDH status "
        "in people."
    )
    control = str(run.config.get("control", "natural"))
    if control != "natural":
        words = {
            "trivial": "one certain sign was drawn into every mutant, so the AUC must be about 1",
            "shortcut": "a mark outside the tumour agrees with most labels, so the maps must expose it",
        }
        yield f"Control run: {words.get(control, 'labels were shuffled, so the AUC must hold 0.5')}."


def _torn(run: ReportedRun) -> Iterator[str]:
    if run.torn_patients:
        yield f"{counted(run.torn_patients, 'patient')} are in more than one partition: the test is not independent."


def _test(run: ReportedRun) -> Iterator[str]:
    auroc = run.auroc
    if auroc is not None and auroc.low is not None and auroc.high is not None and auroc.low <= 0.5 <= auroc.high:
        yield "The interval holds 0.5: on these patients the model cannot be told from guessing."
    n, mutant = (run.number("splits", "test", key) for key in ("n", "n_mutant"))
    if n is None or mutant is None:
        return
    if min(mutant, n - mutant) < FEW_OF_A_CLASS:
        rarer = f"{mutant:.0f} mutant" if 2 * mutant <= n else f"{n - mutant:.0f} wildtype"
        yield f"Only {rarer} test patients of {n:.0f}: every interval below is wide for that reason."


def _network(run: ReportedRun) -> Iterator[str]:
    weights, epochs = run.provenance.get("weights"), run.provenance.get("epochs")
    if isinstance(weights, Mapping) and str(weights.get("source") or "none") == "none":
        parameters = run.provenance.get("parameters") or {}
        total, trainable = (parameters.get(key) or 0 for key in ("total", "trainable"))
        frozen = "" if total <= trainable else f", and {(total - trainable) / total:.0%} of its parameters stayed so"
        yield (
            f"The network started untrained{frozen}: no pretrained weights were loaded "
            f"(model.weights={weights.get('requested', 'none')})."
        )
    if isinstance(epochs, int) and 0 < epochs < FEW_EPOCHS:
        yield f"It was trained for {counted(epochs, 'epoch')} only (trainer.max_epochs)."


def _calibrated(run: ReportedRun) -> Iterator[str]:
    """Name thresholds and calibrations that rest on few validation patients; of pooled folds, the fewest."""
    each = run.node("calibration", "runs")
    found = list(each.values()) if isinstance(each, Mapping) else [run.node("calibration")]
    sizes = [int(one["n"]) for one in found if isinstance(one, Mapping) and one.get("n") is not None]
    n, mutant = (run.number("splits", "validation", key) for key in ("n", "n_mutant"))
    if not sizes:
        return
    rarer = None if n is None or mutant is None or n != min(sizes) else int(min(mutant, n - mutant))
    if min(sizes) < FEW_PATIENTS or (rarer is not None and rarer < FEW_OF_A_CLASS):
        least = "" if rarer is None else f", {rarer} of the rarer class"
        yield (
            f"Threshold, calibration and prediction sets were chosen on {counted(min(sizes), 'validation patient')} "
            f"only{least}: calls and probabilities could be quite different with others."
        )


def _left_out(run: ReportedRun) -> Iterator[str]:
    among = "among the folds" if run.node("runs", "relation") == "folds" else "compared"
    for folder in run.node("runs", "left_out") or []:
        yield f"{folder} came to no predictions and is not {among}."
