"""model_card.md says what a run found, and what it did not find."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from idh_lightning.reports.model_card import write_model_card


def write_run(folder: Path) -> None:
    rows = [(f"s{n}", f"p{n // 2}", split, n % 4 // 2, 40 + n) for n, split in enumerate(["train"] * 8 + ["test"] * 4)]
    columns = ["study_id", "patient_id", "split", "label", "age_years"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cohort.csv", index=False)
    (folder / "provenance.json").write_text(json.dumps({"cohort": "phantom (natural)", "sequences": ["FLAIR", "T1"]}))
    metrics = {"test": {"auroc": {"value": 0.75, "low": 0.5, "high": 0.9, "n": 2, "method": "bootstrap"}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_card_counts_patients_and_gives_results_with_their_intervals(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = write_model_card(tmp_path)
    assert text == (tmp_path / "model_card.md").read_text()
    assert "| train | 4 | 8 | 2 |" in text
    assert "| ROC-AUC | 0.75 | 0.50 to 0.90 | 2 |" in text
    assert "0 studies were left out" in text
    assert "These patients are synthetic" in text
    assert "**Not for clinical use** · **Trained on synthetic patients**" in text


def test_the_card_writes_the_grid_as_people_do(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("data: {grid: [49, 65, 49]}")
    assert "grid 49 × 65 × 49" in write_model_card(tmp_path)


def test_the_card_says_what_was_not_scored(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert "Not scored in this run." in write_model_card(tmp_path)
    scores = pd.DataFrame({"study_id": ["s8"], "method": ["GradCAM"], "energy_inside": [0.25]})
    scores.to_csv(tmp_path / "explanations.csv", index=False)
    assert "GradCAM, share of the map inside the tumour: mean 0.25 over 1 test studies." in write_model_card(tmp_path)


def test_the_card_names_files_without_their_folders(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("model: {locator: /home/me/locator.safetensors}")
    weights = {"requested": "/home/me/resnet.pth", "source": "/home/me/resnet.pth", "note": ""}
    (tmp_path / "provenance.json").write_text(json.dumps({"cohort": "table", "weights": weights}))
    text = write_model_card(tmp_path)
    assert "Starting weights: resnet.pth (asked for: resnet.pth)" in text
    assert "network (locator.safetensors) finds the tumour" in text
    assert "/home/me" not in text
