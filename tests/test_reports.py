"""Tests of the panels and of the report of a run."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit

from idh_lightning.evaluation import Evaluation
from idh_lightning.reports import cam_panel, write_report

HOSTILE = "<script>alert(1)</script>"
SEQUENCES = ("FLAIR", "T1", "T1c", "T2")


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


def make_run(folder: Path, *, n_test: int = 42, hostile: bool = False, images: int = 4, seed: int = 0) -> Path:
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
        last = cohort.index[-1]
        cohort.loc[last, ["study_id", "patient_id"]] = HOSTILE
    predicted = cohort[cohort["split"] != "train"]
    logit = rng.normal(size=len(predicted)) * 0.9 + 1.9 * predicted["label"] - 0.6
    predictions = predicted[["study_id", "patient_id", "split", "fold", "label"]].assign(
        logit=logit, probability=expit(logit)
    )
    results = Evaluation(bootstrap=200)(predictions, cohort)

    flair = folder / "nifti"
    for path in (folder / ".hydra", flair, folder / "figures" / "cam", folder / "explanations"):
        path.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-4.0, -4.0, 5.0, 1.0])
    test = list(results.predictions.query("split == 'test'").sort_values("probability")["study_id"])
    shown = list(dict.fromkeys([*test[: images // 2], *test[len(test) // 2 :][: images // 4], *test[-(images // 2) :]]))
    cohort["flair"] = None
    for number, study_id in enumerate(shown if images else []):
        if "/" in study_id:
            continue
        image, mask, cam = phantom(number)
        label = int(cohort.loc[cohort["study_id"] == study_id, "label"].iloc[0])
        nib.save(nib.Nifti1Image(np.where(image[0] != 0, image[0] + 5, 0).T, affine), flair / f"{study_id}.nii.gz")
        nib.save(nib.Nifti1Image(cam.T, affine), folder / "explanations" / f"{study_id}_cam.nii.gz")
        cohort.loc[cohort["study_id"] == study_id, "flair"] = str(flair / f"{study_id}.nii.gz")
        panel = cam_panel(image, SEQUENCES, cam, mask, (5, 4, 4), study_id, label=label, probability=0.5)
        panel.savefig(folder / "figures" / "cam" / f"{study_id}.png", dpi=60)
    cohort.to_csv(folder / "cohort.csv", index=False)
    results.predictions.to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps(results.metrics))
    pd.DataFrame(
        {
            "study_id": ["UCSF-PDGM-0900", "UCSF-PDGM-0901", HOSTILE if hostile else "UCSF-PDGM-0902"],
            "patient_id": ["UCSF-PDGM-0900", "UCSF-PDGM-0901", "UCSF-PDGM-0902"],
            "reason": ["unknown_label: IDH is 'pending'", "missing_sequence: no T2", "unknown_label: IDH is ''"],
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
                "monitor": {"metric": "val/auroc", "mode": "max"},
                "objective": {"_target_": "idh_lightning.objectives.FocalLoss", "gamma": 2.0, "alpha": None},
                "optimizer": {"_target_": "torch.optim.AdamW", "lr": 4e-4},
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
        train = {"train/loss_epoch": 0.2 - 0.14 * gain, "train/accuracy": 0.6 + 0.3 * gain, "train/auroc": 0.6 + 0.35 * gain}
        val = {"val/loss": 0.21 - 0.12 * gain, "val/accuracy": 0.58 + 0.28 * gain, "val/auroc": 0.62 + 0.3 * gain}
        rows += [{"epoch": epoch, "step": end, **values} for values in (val, train)]
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "2026-11-24" / "15-03-02_phantom", hostile=True)


def test_the_report_of_a_whole_run_is_one_file(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
