"""Exported networks: the same probabilities, and all that is needed to use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_predict import cohort, run  # noqa: F401 - fixtures

from idh_lightning.cohort import SEQUENCES, Study
from idh_lightning.errors import ConfigError
from idh_lightning.inference.exported import METADATA, export, run_exported
from idh_lightning.inference.predictor import Member
from idh_lightning.volumes import Preprocessing


def probabilities(run: Path, volumes: torch.Tensor) -> np.ndarray:  # noqa: F811
    """Return those of our own network with all of it in float32."""
    member = Member.load(run)
    member.network.stem_precision = "float32"
    with torch.no_grad():
        logits = member.network(volumes)
    return member.calibrator((logits[:, 1] - logits[:, 0]).numpy())


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_exported_probabilities_are_ours_for_any_number_of_studies(
    form: str,
    run: Path,  # noqa: F811
    cohort: list[Study],  # noqa: F811
    tmp_path: Path,
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
        pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    path = export(run, tmp_path / ("model.onnx" if form == "onnx" else "model.pt2"), form=form)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if form == "onnx":
        import onnx

        (told,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA)
    else:
        extra = {METADATA: ""}
        torch.export.load(path, extra_files=extra)
        told = extra[METADATA]
    content = json.loads(told)
    assert content["sequences"] == list(SEQUENCES)
    assert content["operating_point"]["threshold"] == pytest.approx(0.4)
    preprocessing = Preprocessing(**content["preprocessing"])
    images = np.stack([preprocessing(study, content["sequences"]).image for study in cohort[:3]])
    for number in (1, 3):
        found = run_exported(path, images[:number])["probability"]
        np.testing.assert_allclose(found, probabilities(run, torch.from_numpy(images[:number])), atol=1e-4)


def test_an_unknown_format_is_named(run: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="found 'tflite'"):
        export(run, form="tflite")  # type: ignore[arg-type]
