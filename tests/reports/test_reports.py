"""Tests of the panels and of the report of a run."""

from __future__ import annotations

import asyncio
import html
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from browser import needs_chromium, opened
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from idh_lightning.cli.tables import number as printed
from idh_lightning.cohort import IDH, TARGETS, Study, Target, target_of
from idh_lightning.errors import EvaluationError, ExplanationError
from idh_lightning.evaluation import Evaluation, covariate_shift, covariate_summary
from idh_lightning.reports.drawing import panel_title
from idh_lightning.reports.model_card import write_model_card
from idh_lightning.reports.panels import CROSS, cam_panel, plane_words, save_cam_panel, tumour_planes
from idh_lightning.reports.run_figures import save_figures
from idh_lightning.reports.run_folder import caveats, read_run
from idh_lightning.reports.run_page import write_report
from idh_lightning.reports.run_results import localisation_tables, provenance_table
from idh_lightning.reports.vocabulary import group_in_words

HOSTILE = "<script>alert(1)</script>"
SEQUENCES = ("FLAIR", "T1", "T1c", "T2")
AFFINE = np.diag([-4.0, -4.0, 5.0, 1.0])


def phantom(seed: int, shape: tuple[int, int, int] = (24, 32, 28)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image [4, D, H, W], mask and map of an ellipsoid head with a ball of tumour on the patient's right."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    head = sum((g / 0.85) ** 2 for g in grid) < 1
    centre = (0.2 * rng.standard_normal(), 0.2 * rng.standard_normal(), -0.4)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    mask = ((distance < 0.3) & head).astype(np.uint8)
    image = np.stack([np.where(head, rng.normal(size=shape) * 0.2 + float(c) * mask, 0) for c in (2, -1, 1, 3)])
    cam = np.exp(-((distance / 0.35) ** 2)) * head
    return image.astype(np.float32), mask, (cam / cam.max()).astype(np.float32)


def make_run(
    folder: Path, *, n_test: int = 42, hostile: bool = False, images: int = 4, seed: int = 0, target: Target = IDH
) -> Path:
    """Write a run folder as training writes it: real tables and metrics, small synthetic images."""
    rng = np.random.default_rng(seed)
    sizes = {"train": 120, "validation": 30, "test": n_test}
    rows = []
    for split, size in sizes.items():
        for number in range(size):
            label = int(number % 5 == 0)
            rows.append(
                {
                    "study_id": f"UCSF-PDGM-{len(rows):04d}",
                    "patient_id": f"UCSF-PDGM-{len(rows):04d}",
                    "label": label,
                    "split": split,
                    "fold": 0,
                    "age_years": round(float(rng.normal(40 if label else 60, 12)), 1),
                    "sex": "FM"[int(rng.random() < 0.55)],
                    "follow_up": False,
                    "WHO CNS Grade": int(rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2] if label else [0.05, 0.1, 0.85])),
                }
            )
    cohort = pd.DataFrame(rows)
    if hostile:
        cohort.loc[cohort.index[-1], "study_id"] = HOSTILE
        cohort.loc[cohort.index[-2], "study_id"] = "<b>bold</b> & $x$"
    predicted = cohort[cohort["split"] != "train"]
    logit = rng.normal(size=len(predicted)) * 0.9 + 1.9 * predicted["label"] - 0.6
    predictions = predicted[["study_id", "patient_id", "split", "fold", "label"]].assign(
        logit=logit, probability=expit(logit)
    )
    results = Evaluation(bootstrap=100, target=target)(predictions, cohort)

    flair = folder / "nifti"
    for path in (folder / ".hydra", flair, folder / "figures" / "cam", folder / "explanations"):
        path.mkdir(parents=True, exist_ok=True)
    test = results.predictions.query("split == 'test'").sort_values("probability")
    threshold = results.metrics["operating_point"]["threshold"]
    distance = test["probability"] - threshold
    near = (distance / np.where(distance >= 0, 1 - threshold, threshold)).abs()
    wrong = test.loc[test["label"] != test["predicted"], "study_id"]
    ends = test["study_id"].iloc[[0, -1]]
    shown = [*ends, *wrong.iloc[[0]], *test.loc[near.sort_values().index, "study_id"]]
    for number, study_id in enumerate(dict.fromkeys(shown[:images])):
        image, mask, cam = phantom(number)
        row = test.loc[test["study_id"] == study_id].iloc[0]
        for name, voxels in zip((*SEQUENCES, "mask"), (*np.where(image != 0, image + 5, 0), mask), strict=True):
            path = flair / f"{number}_{name}.nii.gz"
            nib.save(nib.Nifti1Image(voxels.T, AFFINE), path)
            cohort.loc[cohort["study_id"] == study_id, name.lower()] = str(path)
        nib.save(nib.Nifti1Image(cam.T, AFFINE), folder / "explanations" / f"{study_id}_cam.nii.gz")
        save_cam_panel(
            folder / "figures" / "cam" / f"{study_id}.png",
            image=image, sequences=SEQUENCES, cam=cam, mask=mask, affine_ras=AFFINE,
            title=f"{study_id}   ·   {target.named(row['label'])}   ·   {target.chance} {row['probability']:.2f}",
        )  # fmt: skip
    test = list(test["study_id"])
    cohort.to_csv(folder / "cohort.csv", index=False)
    results.predictions.to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps(results.metrics))
    pd.DataFrame(
        {
            "study_id": ["UCSF-PDGM-0900", "UCSF-PDGM-0901", HOSTILE if hostile else "UCSF-PDGM-0902"],
            "patient_id": ["UCSF-PDGM-0900", "UCSF-PDGM-0901", "UCSF-PDGM-0902"],
            "reason": [
                f"unknown_label: {target.marker} is 'pending'",
                "missing_sequence: no T2",
                "unknown_label: is ''",
            ],
        }
    ).to_csv(folder / "exclusions.csv", index=False)
    pd.DataFrame(
        {
            "study_id": test,
            "method": "GradCAM",
            "pointing_game": (rng.random(len(test)) < 0.6).astype(float),
            "energy_inside": rng.beta(2, 4, len(test)),
            "auprc": rng.beta(3, 3, len(test)),
            "best_iou": rng.beta(2, 3, len(test)),
            "outside_brain": rng.beta(1, 9, len(test)),
        }
    ).to_csv(folder / "explanations.csv", index=False)
    write_log(folder / "metrics.csv")
    (folder / ".hydra" / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "seed": 0,
                "control": "natural",
                "monitor": {"metric": "val/study_auroc", "mode": "max"},
                "objective": {"_target_": "idh_lightning.objectives.FocalLoss", "gamma": 2.0, "alpha": None},
                "optimizer": {"_target_": "torch.optim.AdamW", "lr": 4e-4},
                "model": {
                    "_target_": "idh_lightning.models.efficientnet",
                    "trainable_from": "blocks.5",
                    "weights": "auto",
                },
                "data": {"preprocessing": {"_target_": "idh_lightning.volumes.Preprocessing", "grid": [64, 64, 64]}},
                "split": {"_target_": "idh_lightning.cohort.HoldoutSplit", "seed": "${seed}"},
            }
        )
    )
    provenance = {
        "command": "python -m idh_lightning.train",
        "git_commit": "0123456789abcdef",
        "versions": {"python": "3.11.9", "torch": "2.14.1"},
        "hardware": {"cpu_cores": 2, "memory_gb": 7.8, "gpus": []},
        "cohort": "phantom",
        "sequences": list(SEQUENCES),
        "weights": {"requested": "auto", "source": "none", "note": "the tag could not be downloaded"},
        "parameters": {"total": 68770000, "trainable": 54600000},
        "precision": "bf16-mixed",
        "seconds": {"prepare": 61.2, "fit": 301.0, "test": 44.1},
        "peak_memory_gb": {"resident": 4.6},
        "epochs": 8,
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def write_log(path: Path, epochs: int = 8, steps: int = 10) -> None:
    """Write what Lightning's CSVLogger writes: a row per thing logged, most cells empty."""
    rows: list[dict[str, float]] = []
    for epoch in range(epochs):
        end = (epoch + 1) * steps - 1
        for step in range(epoch * steps, end + 1):
            rows.append({"step": step, "lr-AdamW": 4e-4 * float(np.sin(np.pi * (step + 1) / (epochs * steps + 1)))})
            noise = 0.02 * float(np.cos(step * 7))
            rows.append({"epoch": epoch, "step": step, "train/loss_step": 0.17 * np.exp(-epoch / 4) + 0.04 + noise})
        gain = 1 - np.exp(-epoch / 3)
        train = {
            "train/loss_epoch": 0.2 - 0.14 * gain,
            "train/study_accuracy": 0.6 + 0.3 * gain,
            "train/study_auroc": 0.6 + 0.35 * gain,
        }
        val = {
            "val/loss": 0.21 - 0.12 * gain,
            "val/study_accuracy": 0.58 + 0.28 * gain,
            "val/study_auroc": 0.62 + 0.3 * gain,
        }
        rows += [{"epoch": epoch, "step": end, **values} for values in (val, train)]
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with hostile names and four explained studies, and its report."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "2026-11-24" / "15-03-02_phantom", hostile=True)
    return write_report(folder)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 test studies without images."""
    return make_run(tmp_path_factory.mktemp("tables") / "run", n_test=60, images=0)


@pytest.fixture
def run_folder(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `tables` to change at will; figures are made as always but written as one pixel, which is quick."""
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: Path(path).write_bytes(pixel.getvalue()))
    return Path(shutil.copytree(tables, tmp_path / "run"))


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def test_the_report_says_the_headline_with_its_interval(report: Path) -> None:
    metrics = json.loads((report.parent / "metrics.json").read_text())
    auroc = metrics["test"]["auroc"]
    sentence = (
        "On 42 held-out patients (9 mutant), the model ranks a random mutant above a random wildtype patient with "
        f"probability {auroc['value']:.2f} (95% interval {auroc['low']:.2f} to {auroc['high']:.2f})."
    )
    text = Parsed(report.read_text()).text
    assert sentence in text
    assert "Age alone reaches" in text
    assert "Not for clinical use" in text


def test_a_hostile_study_id_is_shown_as_text(report: Path) -> None:
    page = report.read_text()
    parsed = Parsed(page)
    assert HOSTILE not in page
    assert parsed.text.count(HOSTILE) == 2  # among the test studies and among the exclusions
    assert "<b>bold</b> & $x$" in parsed.text
    # Of the page itself, of the view from all around, and data and code of three studies' slices.
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1 + 1 + 2 * 3


def test_the_report_asks_nothing_of_the_network(report: Path) -> None:
    page = report.read_text()
    for tag, attributes in Parsed(page).tags:
        for name in ("src", "href", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
    assert page.count('<figure class="slices"') == 3


def test_every_picture_has_words_for_those_who_do_not_see_it(report: Path) -> None:
    pictures = [attributes for tag, attributes in Parsed(report.read_text()).tags if tag == "img"]
    # Four panels; the flow of patients is text on the page, so its figure is not there.
    assert len(pictures) == len(list((report.parent / "figures").glob("*.png"))) - 1 + 4
    assert all(len(attributes["alt"] or "") > 20 for attributes in pictures)


def test_every_figure_of_the_contract_is_drawn(report: Path) -> None:
    drawn = {path.stem for path in (report.parent / "figures").glob("*.png")}
    assert drawn == {
        "cohort_flow",
        "learning_curves",
        "roc",
        "precision_recall",
        "confusion_matrix",
        "reliability",
        "baselines",
        "decision_curve",
        "subgroups",
    }


@pytest.mark.slow
def test_figures_are_a_pure_function_of_the_run_folder(report: Path) -> None:
    path = report.parent / "figures" / "roc.png"
    before = path.read_bytes()
    path.unlink()
    save_figures(read_run(report.parent))
    assert path.read_bytes() == before


def test_a_figure_of_an_earlier_evaluation_does_not_outlive_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc.png").write_bytes(b"old")
    assert save_figures(read_run(tmp_path)) == {}
    assert not (tmp_path / "figures" / "roc.png").exists()


def test_an_empty_run_folder_gives_a_report_that_says_so(tmp_path: Path) -> None:
    text = Parsed(write_report(tmp_path).read_text()).text
    assert "Held-out performance: not computed in this run." in text
    assert "ROC curve: not computed in this run." in text
    assert "Not for clinical use" in text


@pytest.mark.parametrize(
    "lost",
    [
        "cohort.csv",
        "exclusions.csv",
        "predictions.csv",
        "metrics.json",
        "explanations.csv",
        "provenance.json",
        "metrics.csv",
        ".hydra/config.yaml",
    ],
)
def test_a_report_is_written_without_any_one_file(run_folder: Path, lost: str) -> None:
    (run_folder / lost).unlink()
    text = Parsed(write_report(run_folder).read_text()).text
    assert "Not for clinical use" in text
    assert lost == "exclusions.csv" or "not computed in this run" in text


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"test": {"auroc"')
    with pytest.raises(EvaluationError, match=r"metrics\.json.*expected a whole file"):
        write_report(tmp_path)


def test_a_missing_run_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such folder; expected a run folder"):
        write_report(tmp_path / "absent")


def test_a_damaged_map_costs_a_sentence_on_the_page_and_not_the_report(
    report: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(report.parent, tmp_path / "run")
    for cam in (folder / "explanations").glob("*_cam.nii.gz"):
        cam.write_bytes(cam.read_bytes()[:200])
    text = Parsed(write_report(folder).read_text()).text
    assert len(re.findall(r"Slices to look through: not drawn\. .*_cam\.nii\.gz.*truncated or damaged", text)) == 3
    assert "View from all around: not drawn." in text
    assert not (folder / "figures" / "brain_3d.gif").exists()
    assert len(re.findall(r"Study .*: Slices to look through not drawn: .*_cam\.nii\.gz", caplog.text)) == 3


@pytest.mark.parametrize(
    "target",
    [TARGETS["mgmt"], pytest.param(target_of("ATRX", ["kept", "lost"]), marks=pytest.mark.slow)],
    ids=lambda one: one.name,
)
def test_a_run_with_another_target_speaks_of_its_classes_and_not_of_idh(tmp_path: Path, target: Target) -> None:
    folder = make_run(tmp_path / "run", images=1, target=target)
    page, card = Parsed(write_report(folder).read_text()).text, write_model_card(folder)
    predictions = pd.read_csv(folder / "predictions.csv")
    assert set(predictions["prediction_set"]) <= {*target.classes, "both", "none"}
    for text in (page, card, *save_figures(read_run(folder)).values()):
        known = text.replace("without “Astrocytoma, IDH-wildtype”", "").replace("idh_lightning", "")
        assert re.findall(r"(?i).{0,40}(?:mutant|wildtype|mutation|\bidh).{0,20}", known) == []
    for words in (f"{target.title} from MRI", f"Does it tell {target.positive} from {target.negative}?", target.chance):
        assert words in page
    assert f"P({target.marker} {target.positive})" in card


def test_a_result_no_better_than_guessing_is_called_so(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text())
    metrics["test"]["auroc"] |= {"value": 0.55, "low": 0.38, "high": 0.71}
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    assert (
        "No better than chance: the interval of the ROC-AUC contains 0.5."
        in Parsed(write_report(run_folder).read_text()).text
    )


def test_patients_of_two_partitions_are_denounced_in_the_checklist(run_folder: Path) -> None:
    cohort = pd.read_csv(run_folder / "cohort.csv")
    cohort.loc[cohort.index[-1], "patient_id"] = cohort.loc[0, "patient_id"]
    cohort.to_csv(run_folder / "cohort.csv", index=False)
    text = Parsed(write_report(run_folder).read_text()).text
    assert "NOT disjoint: 1 patients are in more than one partition." in text


@pytest.mark.slow
def test_the_report_of_sixty_test_studies_stays_under_15_mb(run_folder: Path) -> None:
    # Noise is the worst that a picture can be for compression: panels of it do not all fit, and the rest are named.
    pixels = np.random.default_rng(0).integers(0, 255, (900, 1276, 3), dtype=np.uint8)
    panel = io.BytesIO()
    Image.fromarray(pixels).save(panel, "PNG", compress_level=1)
    studies = pd.read_csv(run_folder / "predictions.csv").query("split == 'test'")["study_id"]
    assert len(studies) == 60
    for study_id in studies.iloc[:12]:
        (run_folder / "figures" / "cam" / f"{study_id}.png").write_bytes(panel.getvalue())
    path = write_report(run_folder)
    assert 6e6 < path.stat().st_size < 15e6
    assert "more are in figures/cam of the run folder" in Parsed(path.read_text()).text


def test_a_panel_refuses_arrays_of_different_grids() -> None:
    image, mask, cam = phantom(0)
    with pytest.raises(ExplanationError, match="Resample the map and the mask"):
        cam_panel(image, SEQUENCES, cam[1:], mask, AFFINE, "study")


def test_a_panel_marks_right_left_front_back_top_and_bottom() -> None:
    image, mask, cam = phantom(0)
    study = Study(study_id="study", patient_id="p", label=1, files={})
    figure = cam_panel(image, SEQUENCES, cam, mask, AFFINE, panel_title(study, IDH, probability=0.875))
    assert figure.get_suptitle() == "study   ·   IDH mutant   ·   P(mutant) 0.88"
    planes = [axes for axes in figure.axes if axes.images and axes.texts]
    letters = ["".join(text.get_text() for text in axes.texts) for axes in planes]
    assert letters == ["RLAP"] * 4 + ["RLAP", "RLSI", "APSI"]


def test_a_panel_names_its_planes_by_the_millimetres_of_the_file() -> None:
    image, mask, cam = phantom(0)
    affine = AFFINE.copy()
    affine[:3, 3] = (60.4, 20.6, -31.0)
    d, h, w = tumour_planes(mask, cam, mask.shape)
    figure = cam_panel(image, SEQUENCES, cam, mask, affine, "study")
    titles = [axes.get_title() for axes in figure.axes if axes.images and axes.texts]
    x, y, z = (affine @ (w, h, d, 1))[:3]
    assert titles == [
        *SEQUENCES,
        f"FLAIR, axial, z {z:.0f} mm".replace("-", "−"),
        f"FLAIR, coronal, y {y:.0f} mm".replace("-", "−"),
        f"FLAIR, sagittal, x {x:.0f} mm".replace("-", "−"),
    ]


@pytest.mark.parametrize(("plane", "number"), [("axial", 4), ("coronal", 5), ("sagittal", 6)])
def test_a_spot_is_drawn_beside_the_letters_of_where_it_lies(plane: str, number: int) -> None:
    # The only bright voxel lies superior (last D), anterior (first H) and to the right (first W) of the middle.
    image = np.full((1, 21, 25, 23), 1.0, dtype=np.float32)
    spot = (16, 6, 5)
    image[0][spot] = 9.0
    mask = np.zeros(image.shape[1:], dtype=np.uint8)
    mask[spot] = 1
    figure = cam_panel(image, ["FLAIR"], None, mask, np.diag([-1.0, -1.0, 1.0, 1.0]), "study")
    figure.canvas.draw()
    axes = [axes for axes in figure.axes if axes.images][number - 3]
    shown = np.ma.filled(axes.images[0].get_array(), 0)
    row, column = np.unravel_index(int(np.argmax(shown)), shown.shape)
    x, y = axes.transAxes.inverted().transform(axes.transData.transform((column, row)))
    at = {text.get_text(): text.get_position() for text in axes.texts if len(text.get_text()) == 1}
    wanted = {"axial": "RA", "coronal": "RS", "sagittal": "AS"}[plane]
    for letter in wanted:
        nearer = np.abs(np.array(at[letter]) - (x, y))
        opposite = np.abs(np.array(at[{"R": "L", "A": "P", "S": "I"}[letter]]) - (x, y))
        side = 0 if at[letter][1] == 0.5 else 1
        assert nearer[side] < opposite[side]


def test_the_shown_slices_are_the_largest_cross_sections() -> None:
    mask = np.zeros((10, 12, 14), dtype=np.uint8)
    mask[3, 2:9, 4:11] = 1
    mask[2:8, 5, 6] = 1
    assert tumour_planes(mask, None, mask.shape) == (3, 5, 6)
    assert tumour_planes(np.zeros_like(mask), None, mask.shape) == (5, 6, 7)


KEYS = (("ArrowRight", "ArrowLeft"), ("ArrowUp", "ArrowDown"), ("PageUp", "PageDown"))


async def look(report: Path, profile: Path) -> dict[str, Any]:
    """Open a report as a reader would, turn the head, click into the first slices, press keys; return what happened."""
    async with opened(report, profile) as page:
        broken = await page.evaluate(
            "document.querySelectorAll('details').forEach(d => d.open = true);"
            "[...document.images].filter(i => i.loading !== 'lazy')"
            ".filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt)"
        )
        wide = await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")

        async def place(selector: str) -> list[float]:
            return json.loads(
                await page.evaluate(
                    f"var f = document.querySelector({selector!r});"
                    "f.scrollIntoView({behavior: 'instant', block: 'center'});"
                    "var r = f.getBoundingClientRect(); JSON.stringify([r.x, r.y, r.width, r.height])"
                )
            )

        box = await place(".turning div")
        turning = [await page.shot(*box)]
        await page.evaluate("document.querySelector('.turning input').focus()")
        await page.press("ArrowRight")
        turning.append(await page.shot(*box))
        words = await page.evaluate(
            "[...document.querySelector('.slices').querySelectorAll('p')].map(p => p.innerText)"
        )
        box = await place(".slices")
        shots = {"first": await page.shot(*box)}
        canvas = json.loads(
            await page.evaluate(
                "var r = document.querySelector('.slices canvas').getBoundingClientRect();"
                "JSON.stringify([r.x, r.y, r.width, r.height])"
            )
        )
        await page.click(canvas[0] + 0.7 * canvas[2], canvas[1] + 0.6 * canvas[3])
        shots["click"] = await page.shot(*box)
        # The first key also draws the ring of the focus; what follows is compared with the state after it.
        for name, key in (("", "ArrowUp"), ("ring", "ArrowDown"), *((key, key) for pair in KEYS for key in pair)):
            await page.press(key)
            shots[name] = await page.shot(*box)
        return {
            "complaints": page.browser.complaints,
            "requests": [url for url in page.browser.requests if not url.startswith(("data:", "file:", "about:"))],
            "broken": broken,
            "wide": wide,
            "shots": shots,
            "turning": turning,
            "words": words,
        }


def test_the_caveats_of_a_run_stand_under_its_headline_before_any_number(report: Path) -> None:
    page = report.read_text()
    listed = page[page.index('<ul class="warning"') : page.index('<ul class="tiles">')]
    for words in (
        "These patients are synthetic",
        "Only 9 mutant test patients of 42",
        "The network started untrained, and 21% of its parameters stayed so",
        "chosen on 30 validation patients only, 6 of the rarer class",
    ):
        assert words in listed
    assert page.index("ranks a random mutant") < page.index(listed)
    for badge in ("Not for clinical use", "Trained on synthetic patients"):
        assert f'<span class="stamp">{badge}</span>' in page[: page.index("<h1>")]


def test_caveats_name_what_is_weak_and_nothing_else(tables: Path) -> None:
    run = read_run(tables)
    sizes = {"n": 120, "n_mutant": 30}
    metrics = {**run.metrics, "calibration": {"n": 120}, "splits": {"validation": sizes}}
    provenance = {"cohort": "ucsf_pdgm", "weights": {"source": "timm tf_efficientnet_b7"}, "epochs": 20}
    sound = replace(run, metrics=metrics, provenance=provenance)
    assert caveats(sound) == []
    untrained = {"source": "none", "requested": "auto"}
    for changed, words in (
        ({"provenance": {**provenance, "epochs": 3}}, "It was trained for 3 epochs only"),
        ({"provenance": {**provenance, "weights": untrained}}, "The network started untrained: no pretrained weights"),
        ({"provenance": {**provenance, "trained_on": "phantom"}}, "The network was trained on synthetic patients"),
        ({"metrics": {**metrics, "calibration": {"n": 8}}}, "chosen on 8 validation patients only"),
        (
            {"metrics": {**metrics, "calibration": {"runs": {"0": {"n": 90}, "1": {"n": 8}}}}},
            "on 8 validation patients",
        ),
        ({"cohort": pd.concat([run.cohort, run.cohort.tail(1).assign(split="train")])}, "more than one partition"),
    ):
        (told,) = caveats(replace(sound, **changed))
        assert words in told


@needs_chromium
def test_the_report_works_in_a_browser_with_the_network_off(report: Path, tmp_path: Path) -> None:
    seen = asyncio.run(look(report, tmp_path))
    assert seen["complaints"] == []
    assert seen["requests"] == []
    assert seen["broken"] == []
    assert not seen["wide"], "the page must not scroll sideways"
    shots = seen["shots"]
    assert seen["turning"][0] != seen["turning"][1], "the slider turns the head"
    assert shots["click"] != shots["first"], "a click moves the cross"
    for there, back in KEYS:
        assert shots[there] != shots["ring"], f"{there} moves the cross"
        assert shots[back] == shots["ring"], f"{back} moves it back"
    study_id = re.search(r'aria-label="Slices of (\S+) through', report.read_text())[1]
    with Image.open(report.parent / "figures" / "cam" / f"{study_id}.png") as panel:
        cross_mm = [float(x) for x in panel.info[CROSS].split()]
    assert seen["words"][1:] == [plane_words(plane, cross_mm) for plane in ("axial", "coronal", "sagittal")]


def checklist_of(page: str) -> dict[str, str | None]:
    """Items of the checklist of a page -> answer, or None where it is left to the reader."""
    row = r'<tr><th scope="row">([^<]*)</th><td data-head="question">[^<]+</td><td data-head="answer">([^<]*)</td></tr>'
    answers = {items: html.unescape(answer) for items, answer in re.findall(row, page)}
    return {items: None if "for you to write" in answer else answer for items, answer in answers.items()}


TRIPOD_AI = (
    "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17 18a 18b 18c "
    "18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
)


def test_the_checklist_has_the_44_items_of_claim_2024_in_their_order_and_all_52_of_tripod_ai(report: Path) -> None:
    rows = checklist_of(report.read_text())
    numbers = [int(items.split(",")[0].removeprefix("CLAIM ")) for items in rows if items.startswith("CLAIM")]
    assert numbers == list(range(1, 45))
    tripod = [one for items in rows for one in re.findall(r"\d+[a-g]?", items.partition("TRIPOD+AI")[2])]
    assert set(tripod) == set(TRIPOD_AI.split())
    assert {one for one in tripod if tripod.count(one) > 1} == {"12c"}, "how it is built, and how it is trained"
    answered = {items.split(",")[0] for items, answer in rows.items() if answer is not None}
    assert {"CLAIM 12", "CLAIM 19", "CLAIM 21", "CLAIM 32", "CLAIM 33", "CLAIM 35", "CLAIM 38", "CLAIM 43"} <= answered
    assert "44 items of CLAIM (2024 update) and the 52 of TRIPOD+AI (2024)" in Parsed(report.read_text()).text


def test_the_checklist_tells_results_from_calls_and_names_the_gap_in_equal_opportunity(report: Path) -> None:
    page = report.read_text()
    rows, metrics = checklist_of(page), json.loads((report.parent / "metrics.json").read_text())
    results, calls = str(rows["CLAIM 37, TRIPOD+AI 23a"]), str(rows["CLAIM 38"])
    assert f"ROC-AUC {metrics['test']['auroc']['value']:.2f} (" in results
    assert f"sensitivity (recall) {metrics['test']['sensitivity']['value']:.2f} (" in calls
    gap = metrics["subgroups"]["age"]["gaps"]["specificity"]
    between = " against ".join(gap["groups"])
    fair = str(rows["TRIPOD+AI 14"])
    assert re.search(rf"Largest gap by age: sensitivity \(equal opportunity\) .*; specificity \+.*, {between};", fair)
    assert "the largest gap in sensitivity is the difference in equal opportunity" in Parsed(page).text
    threshold = metrics["operating_point"]["threshold"]
    assert f"Called mutant from {threshold:.2f} on" in str(rows["TRIPOD+AI 12g and 15"])


def test_the_checklist_says_how_patients_of_another_cohort_differ(run_folder: Path) -> None:
    content, cohort = (json.loads((run_folder / "metrics.json").read_text()), pd.read_csv(run_folder / "cohort.csv"))
    volumes = cohort[["study_id"]].assign(brain_ml=np.arange(len(cohort)) % 7)
    there = covariate_summary(cohort.assign(age_years=cohort["age_years"] + 20), volumes)
    external = {"trained_on": "elsewhere", "n_train": 9, "left_out": 0, "seen_by": ["patient_id"], "why": "no results"}
    content["external"] = external | {"shift": covariate_shift(there, covariate_summary(cohort, volumes))}
    del content["validation"]
    (run_folder / "metrics.json").write_text(json.dumps(content))
    rows = checklist_of(write_report(run_folder).read_text())
    assert str(rows["TRIPOD+AI 16 and 20c"]).startswith("They differ (p below 0.05) in: age, years. See the table")
    assert "chosen before this test" in str(rows["TRIPOD+AI 12g and 15"])
    assert "the checkpoint that the command names carries" in str(rows["CLAIM 43, TRIPOD+AI 18e, 18f and 22"])
    assert str(rows["TRIPOD+AI 12f and 24"]).startswith("No: threshold and calibration")


def test_the_checklist_and_the_provenance_speak_in_words_not_in_values_of_a_program(run_folder: Path) -> None:
    config = {
        "data": {"preprocessing": {"edge_mm": None}, "missing": "error"},
        "model": {"checkpoint_tail": False, "_target_": "x.Net"},
        "monitor": {"metric": "val/loss", "mode": "min"},
    }
    provenance = {"memory_gb": {"free": 1.5}, "versions": {"timm_3d": "1.0.1"}, "frozen": True, "cuda": None}
    (run_folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (run_folder / "provenance.json").write_text(json.dumps(provenance))
    answers = checklist_of(write_report(run_folder).read_text())
    assert answers["CLAIM 9, TRIPOD+AI 7 and 12b"] == "edge mm none."
    assert answers["CLAIM 22, TRIPOD+AI 12c"] == "Net: checkpoint tail no."
    assert answers["CLAIM 26"] == "The epoch with the lowest val/loss."
    assert str(answers["CLAIM 12, TRIPOD+AI 11"]).startswith("No study may lack a sequence. Age is unknown in")
    assert str(answers["CLAIM 8, TRIPOD+AI 6b"]).startswith("Studies with the sequences asked for")
    (run_folder / ".hydra" / "config.yaml").write_text("data: {missing: zero}\nsplit: {_target_: a.LeaveSiteOut}\n")
    answers = checklist_of(write_report(run_folder).read_text())
    assert str(answers["CLAIM 8, TRIPOD+AI 6b"]).startswith("Studies with one or more of the sequences asked for")
    assert str(answers["TRIPOD+AI 16 and 20c"]).startswith("Both are of one cohort but of other sites")
    table = provenance_table(read_run(run_folder))
    assert table is not None
    assert list(map(tuple, table.rows)) == [
        ("memory, GB: free", "1.5"), ("versions: timm_3d", "1.0.1"), ("frozen", "yes"), ("cuda", "unknown"),
    ]  # fmt: skip


def test_scores_of_right_and_of_wrong_calls_say_over_how_many_studies_they_are() -> None:
    rows = [("Evidence", "all", 5), ("Evidence", "right", 3), ("Evidence", "wrong", 2)]
    table = pd.DataFrame(rows, columns=["method", "group", "n"])
    tables = localisation_tables(table.assign(score="auprc", value=0.5, low=0.4, high=0.6))
    assert [row[0] for row in tables[1].rows] == ["Evidence, call right, n = 3", "Evidence, call wrong, n = 2"]


def test_half_a_millimetre_is_rounded_one_way_whatever_the_sum_of_floats() -> None:
    for y in (110.5, 110.5 - 1e-9, 110.5 + 1e-9):
        assert plane_words("coronal", (0, y, 0)) == "coronal, y 111 mm"
    assert plane_words("sagittal", (-0.5 - 1e-9, 0, 0)) == "sagittal, x 0 mm"


def test_a_number_that_rounds_to_zero_has_no_sign_of_its_own() -> None:
    assert [printed(-0.004), printed(-0.004, signed=True), printed(-0.04)] == ["0.00", "+0.00", "−0.04"]


def test_groups_of_a_yes_or_no_column_are_named_in_words() -> None:
    assert [group_in_words(name) for name in (True, "False", "grade 4")] == ["yes", "no", "grade 4"]


def test_the_row_of_every_study_says_how_many_and_leaves_open_what_is_never_computed(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text())
    metrics["sensitivity_analyses"] = {
        "every_study": {"n": 120, "n_mutant": 25, "studies": 121, "metrics": {"auroc": metrics["test"]["auroc"]}}
    }
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    text = write_report(run_folder).read_text()
    row = re.search(r"<tr>(?:(?!</tr>).)*every study instead of every patient.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert "(121 studies)" in row[0]
    assert "not computed in this run" not in row[0]
