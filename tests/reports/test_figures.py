"""Tests of the figures: what is drawn is what was given."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from idh_lightning.evaluation.intervals import Bootstrap
from idh_lightning.reports import course_figures, drawing, figures, style
from idh_lightning.reports.panels import cam_panel
from idh_lightning.reports.tables import Estimate

TEMPLATES = Path(course_figures.__file__).parent / "templates"


@pytest.fixture
def patients() -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of 40 patients, with ties."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [30, 10])
    scores = 1 / (1 + np.exp(-(rng.normal(size=40) + 1.5 * labels - 1)))
    return labels, np.round(scores, 1)


def line(figure: Figure, label: str, axes: int = 0) -> Line2D:
    found = [line for line in figure.axes[axes].lines if line.get_label() == label]
    assert len(found) == 1
    return found[0]


def epochs_along_the_top(figure: Figure) -> list[str]:
    (top,) = figure.axes[0].child_axes
    return [label.get_text() for label in top.get_xticklabels()]


def words(figure: Figure) -> str:
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    texts = [text.get_text() for part in (*figure.axes, *legends) for text in getattr(part, "texts", [])]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    return "\n".join([figure.get_suptitle(), *titles, *texts])


def test_a_decision_curve_ends_where_the_model_does_harm_or_calls_too_few() -> None:
    curves = pd.DataFrame({"threshold": [0.1, 0.3, 0.5, 0.7, 0.9], "model": [0.2, 0.1, 0.02, -0.3, 0.1]})
    curves["treat_none"] = 0.0
    band = {"low": [0.1] * 5, "high": [0.3] * 5}
    for last, end, why in ((None, 0.7, "the model does harm"), (0.6, 0.5, "the model calls too few mutant")):
        figure = figures.decision_curve(curves, band=band, prevalence=0.25, last=last)
        drawn = line(figure, "model").get_xdata()
        assert max(drawn) == end
        assert figure.axes[0].get_xlim()[1] == end
        assert why in words(figure)
    whole = figures.decision_curve(curves.assign(model=0.1), band=band, prevalence=0.25)
    assert max(line(whole, "model").get_xdata()) == 0.9
    assert "not drawn" not in words(whole)


def test_epochs_along_the_top_do_not_lie_on_each_other() -> None:
    for epochs in (3, 8, 30, 200):
        log = pd.DataFrame(
            {"epoch": range(epochs), "step": np.cumsum(np.r_[[1] * (epochs // 2), [10] * (epochs - epochs // 2)])}
        )
        log["train/loss"] = log["val/loss"] = 0.5
        for narrow in (False, True):
            figure = course_figures.learning_curves(log, narrow=narrow)
            figure.draw_without_rendering()
            (top,) = figure.axes[0].child_axes
            boxes = [label.get_window_extent() for label in top.get_xticklabels() if label.get_text()]
            assert len(boxes) > 1
            assert all(one.x1 + 2 < other.x0 for one, other in pairwise(boxes)), (epochs, narrow)


def test_a_run_of_one_epoch_has_whole_steps_along_its_axis() -> None:
    log = pd.DataFrame({"epoch": [0, 0], "step": [7, 7], "train/loss": [0.5, np.nan], "val/loss": [np.nan, 0.4]})
    figure = course_figures.learning_curves(log)
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert ticks
    assert all(text.isdigit() for text in ticks), ticks


def test_a_legend_lies_on_no_curve_and_on_no_other_words_however_few_patients_there_are() -> None:
    curves = pd.DataFrame({"threshold": np.linspace(0.01, 0.99, 50)})
    for name, shift in (("model", 0.0), ("age", 0.02), ("treat_all", 0.04), ("treat_none", 0.06)):
        curves[name] = 0.25 * np.cos(9 * curves["threshold"]) ** 2 + shift
    figure = figures.decision_curve(curves, prevalence=0.25)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= figure.axes[0].get_tightbbox().y0
    labels = np.array([0, 1] * 6)
    for seed in range(5):
        figure = figures.roc(labels, np.random.default_rng(seed).random(12) + 0.3 * labels, threshold=0.6)
        figure.draw_without_rendering()
        assert not [text for text in figure.axes[0].texts if "sensitivity" in text.get_text()], "which the legend says"
        assert "sensitivity" in words(figure)


def test_the_letters_of_a_panel_can_be_read_on_a_telephone() -> None:
    image = np.random.default_rng(0).normal(size=(4, 20, 24, 20)).astype(np.float32)
    cam = np.linspace(0, 1, image[0].size).reshape(image[0].shape)
    affine = np.diag([-8.0, -8, 8, 1])
    figure = cam_panel(image, ("FLAIR", "T1", "T1c", "T2"), cam, cam > 0.9, affine, "a study   ·   IDH mutant")
    rule = re.search(r"\.panel img[^{]*{ width: (\d+)rem; max-width: none; }", (TEMPLATES / "page.css").read_text())
    assert rule is not None
    shrunk = 16 * int(rule[1]) / (72 * figure.get_figwidth())
    sizes = {text.get_text(): text.get_fontsize() * shrunk for text in figure.findobj(Text) if text.get_text()}
    assert min(sizes.values()) >= 9, sizes


def test_a_forest_plot_for_a_telephone_is_narrow_and_its_words_do_not_lie_on_each_other() -> None:
    rows = [
        ("# age", Estimate(None)),
        ("tumour size, shape, intensity", Estimate(0.9, 0.8, 0.97, 120)),
        ("b", Estimate(None)),
    ]
    title = "A title that is longer than a telephone is wide, by far"
    figure = figures.forest(rows, title=title, narrow=True, reference=("all", 0.95))
    figure.draw_without_rendering()
    assert figure.get_figwidth() == style.NARROW
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    (dashes,) = figure.axes[0].collections
    ends = [figure.axes[0].transData.transform(part) for part in dashes.get_segments()]
    assert len(ends) == len(rows)
    assert not any(
        box.y0 < high and low < box.y1 for box in boxes for (_, high), (_, low) in ends if box.x1 > ends[0][0][0]
    )


def test_an_estimate_is_written_with_its_interval() -> None:
    assert Estimate(0.9, 0.8, 0.97, 42).text == "0.90 (0.80 to 0.97)"
    assert Estimate(-0.123).text == "−0.12"
    assert Estimate(None, why="too few: 3 mutant, 5 needed").text == "too few"
    assert Estimate(None).text == "not known"


def test_the_area_under_the_drawn_roc_curve_is_the_auc(patients: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = patients
    curve = line(figures.roc(labels, scores), "model")
    x, y = curve.get_data()
    assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(labels, scores))


def test_the_operating_point_lies_at_its_sensitivity_and_specificity(patients: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = patients
    figure = figures.roc(labels, scores, threshold=0.5, auroc=Estimate(0.8, 0.7, 0.9, 40))
    (tn, fp), (fn, tp) = confusion_matrix(labels, scores >= 0.5)
    told = f"operating point:\nsensitivity {tp / (tp + fn):.2f}\nspecificity {tn / (tn + fp):.2f}"
    point = line(figure, told)
    assert point.get_xdata() == pytest.approx([fp / (fp + tn)])
    assert point.get_ydata() == pytest.approx([tp / (tp + fn)])
    assert told in words(figure)
    assert "ROC-AUC 0.80 (0.70 to 0.90); n = 40, 10 mutant" in words(figure)


def test_the_roc_band_is_made_of_the_curves_of_the_resamples(patients: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = patients
    grid = np.linspace(0, 1, 11)
    found = figures._resampled_sensitivity(grid, labels, scores, resamples=20, seed=3)
    weights = Bootstrap.draw(labels, resamples=20, seed=3).weights[-20:].astype(int)
    for row, weight in zip(found, weights, strict=True):
        false_rate, true_rate, _ = roc_curve(
            np.repeat(labels, weight), np.repeat(scores, weight), drop_intermediate=False
        )
        np.testing.assert_allclose(row, np.interp(grid, false_rate, true_rate))


def test_the_roc_band_is_the_same_every_time(patients: tuple[np.ndarray, np.ndarray]) -> None:
    bands = [
        next(item for item in figures.roc(*patients).axes[0].collections if isinstance(item, PolyCollection))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(bands[0].get_paths()[0].vertices, bands[1].get_paths()[0].vertices)


def test_the_steps_of_the_precision_recall_curve_add_up_to_average_precision(
    patients: tuple[np.ndarray, np.ndarray],
) -> None:
    labels, scores = patients
    figure = figures.precision_recall(labels, scores)
    recall, precision = line(figure, "model").get_data()
    assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(average_precision_score(labels, scores))
    assert line(figure, "prevalence 0.25: guessing").get_ydata() == pytest.approx([0.25, 0.25])


def test_the_confusion_matrix_shows_counts_and_shares_of_rows() -> None:
    figure = figures.confusion_matrix([[57, 3], [6, 10]], threshold=0.37)
    shown = [text.get_text() for text in figure.axes[0].texts]
    for text in ("57", "3", "6", "10", "95% of row", "5% of row", "38% of row", "62% of row", "missed mutant"):
        assert text in shown
    assert "called mutant from P = 0.37 on" in words(figure)


def test_the_reliability_curve_shows_the_intervals_it_was_given(patients: tuple[np.ndarray, np.ndarray]) -> None:
    curve = {"predicted": [0.2, 0.7], "observed": [0.1, 0.8], "low": [0.0, 0.6], "high": [0.3, 0.9]}
    figure = figures.reliability(curve, *patients, raw={"predicted": [0.4, 0.5], "observed": [0.1, 0.8]})
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [[0.0, 0.3], [0.6, 0.9]], atol=1e-12)
    np.testing.assert_allclose(line(figure, "uncalibrated").get_xdata(), [0.4, 0.5])
    drawn = sum(patch.get_height() for patch in figure.axes[1].patches)
    assert drawn == len(patients[0]), "the histogram holds every patient"


def test_the_decision_curve_draws_every_strategy_and_the_model_on_top() -> None:
    thresholds = np.arange(1, 100) / 100
    curves = pd.DataFrame(
        {"threshold": thresholds, "model": 0.2, "age": 0.1, "treat_all": 0.2 - thresholds, "treat_none": 0.0}
    )
    figure = figures.decision_curve(curves, prevalence=0.25)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels[-1] == "model"
    assert set(labels) == {"model", "age", "call everyone mutant", "call no one mutant"}
    np.testing.assert_array_equal(line(figure, "model").get_ydata(), curves["model"])


def test_a_group_that_is_too_small_has_words_and_no_mark() -> None:
    rows = [
        ("# grade", Estimate(None)),
        ("2 $x$", Estimate(None, n=3, why="too few: 3 mutant, 5 needed")),
        ("4", Estimate(0.8, 0.6, 0.95, 30)),
    ]
    figure = figures.forest(rows, title="groups", reference=("all", 0.85))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert [mark.get_ydata()[0] for mark in marks] == [2]
    assert "too few" in words(figure)
    assert "0.80 (0.60 to 0.95)" in words(figure)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["grade", "2 $x$", "4"]
    figure.canvas.draw()  # a dollar sign in a table is no formula


@pytest.mark.parametrize("narrow", [False, True])
def test_every_patient_stands_on_the_line_of_the_site_at_the_score(
    patients: tuple[np.ndarray, np.ndarray], narrow: bool
) -> None:
    labels, scores = map(pd.Series, patients)
    sites = pd.Series(np.arange(40) % 2).map({0: "A$x$", 1: "B"})
    areas = {"A$x$": Estimate(0.8, 0.6, 0.9, 20), "B": Estimate(None, why="too few: 4 mutant patients, 5 needed")}
    figure = figures.scores_by_group(scores, labels, sites, areas, threshold=0.4, narrow=narrow)
    drawn = [line for line in figure.axes[0].lines if line.get_marker() in "oD" and len(line.get_xdata())]
    places = sorted((round(np.mean(dot.get_ydata())), x) for dot in drawn for x in dot.get_xdata())
    assert places == sorted((int(site == "B"), score) for site, score in zip(sites, scores, strict=True))
    assert line(figure, "threshold 0.40").get_xdata()[0] == 0.4
    told = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert told == ["A$x$, n = 20\n0.80 (0.60 to 0.90)", "B, n = 20\ntoo few"]


def test_the_cohort_flow_adds_up() -> None:
    parts = {"train": (146, 140, 31), "validation": (31, 30, 7), "test": (44, 42, 9)}
    figure = course_figures.draw_cohort_flow({"unknown label": 2, "missing $T2$": 1}, parts)
    text = words(figure)
    assert "224 studies found" in text
    assert "3 left out\n2 × unknown label\n1 × missing $T2$" in text
    assert "221 studies of 212 patients\n47 mutant (22%)" in text
    assert "test\n42 patients (44 studies)\n9 mutant, 33 wildtype" in text
    figure.canvas.draw()


def test_learning_curves_are_read_from_the_file_that_lightning_writes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    for epoch in range(4):
        for step in range(epoch * 5, epoch * 5 + 5):
            logger.log_metrics({"lr": 0.1 * step, "epoch": epoch}, step=step)
            logger.log_metrics({"train/loss_step": 1.0 / (step + 1), "epoch": epoch}, step=step)
        values = {"loss": 0.5 - 0.1 * epoch, "study_accuracy": 0.6, "study_auroc": [0.6, 0.9, 0.7, 0.8][epoch]}
        logger.log_metrics({**{f"val/{k}": v for k, v in values.items()}, "epoch": epoch}, step=epoch * 5 + 4)
        logger.log_metrics(
            {f"train/{'loss_epoch' if k == 'loss' else k}": v for k, v in values.items()} | {"epoch": epoch},
            step=epoch * 5 + 4,
        )
    logger.save()
    figure = course_figures.learning_curves(
        pd.read_csv(tmp_path / "metrics.csv"), monitor="val/study_auroc", mode="max"
    )
    titles = [next(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert titles == ["Loss", "Accuracy of studies at 0.5", "ROC-AUC of studies", "Learning rate"]
    np.testing.assert_allclose(line(figure, "validation", 2).get_xdata(), [4, 9, 14, 19])
    np.testing.assert_allclose(line(figure, "validation", 2).get_ydata(), [0.6, 0.9, 0.7, 0.8])
    np.testing.assert_allclose(line(figure, "training, batch").get_xdata(), np.arange(20))
    assert figure.axes[2].get_xlabel() == "optimizer step (line: best, 0.900 in epoch 2)"  # Lightning counts from 0
    assert epochs_along_the_top(figure) == ["1", "2", "3", "4"]
    figure.canvas.draw()


def test_curves_of_one_figure_differ_in_more_than_colour() -> None:
    log = pd.DataFrame(
        {"epoch": [0, 1], "step": [4, 9], "train/loss": [0.5, 0.4], "val/loss": [0.6, 0.5], "lr": [0.1, 0.2]}
    )
    curves = pd.DataFrame({"threshold": [0.1, 0.5], "model": 0.2, "age": 0.1, "treat_all": 0.1, "treat_none": 0.0})
    for figure in (course_figures.learning_curves(log), figures.decision_curve(curves)):
        drawn = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
        assert len(drawn) > 1
        for one, other in combinations(drawn, 2):
            looks = [(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in (one, other)]
            assert looks[0] != looks[1]


def test_processes_that_draw_import_neither_torch_nor_what_reads_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take 0.06 GB so, and 0.5 GB with torch."""
    monkeypatch.setattr(drawing, "save_cam_panel", exec)
    code: Any = "import sys; found = {'torch', 'SimpleITK', 'pandas'} & sys.modules.keys(); assert not found, found"
    with drawing.drawing_processes() as draw:
        draw(code, {})


def test_drawing_leaves_no_figure_open(patients: tuple[np.ndarray, np.ndarray]) -> None:
    before = plt.get_fignums()
    figures.roc(*patients)
    figures.confusion_matrix([[1, 0], [0, 1]])
    assert plt.get_fignums() == before
