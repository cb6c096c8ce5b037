"""Exported networks: the same probabilities, and all that is needed to use them."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny_checkpoint import tiny_cohort, write_run
from torch import nn

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import SEQUENCES, Study
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.inference import exported
from idh_lightning.inference.ensemble import Member
from idh_lightning.inference.exported import EXPORT_SUFFIXES, METADATA, Format, PortableNetwork, export, loaded
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.models.segmentation import dense_vote, load_segmenter
from idh_lightning.volumes import Preprocessing

LOADS_ALONE = """
import sys, numpy, torch
sys.modules["idh_lightning"] = sys.modules["timm_3d"] = None  # an import of either fails
run = torch.export.load(sys.argv[1]).module()
numpy.save(sys.argv[3], run(torch.from_numpy(numpy.load(sys.argv[2])))[1].detach().numpy())
"""


def grids() -> list[tuple[int, ...]]:
    """Every grid that the configuration or the documents name."""
    root = CONF_DIR.parent
    files = [*CONF_DIR.rglob("*.yaml"), root / "README.md", *root.glob("docs/**/*.md")]
    found = {
        tuple(edges) if isinstance(edges := yaml.safe_load(text), list) else (edges,) * 3
        for file in files
        for text in re.findall(r"grid[=:] *(\[[\d, ]+\]|\d+)", file.read_text(encoding="utf-8"))
    }
    return sorted({grid for grid in found if len(grid) == 3} | {(48, 65, 50), (33, 33, 33)})


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return tiny_cohort(tmp_path_factory.mktemp("cohort"), 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cohort: list[Study]) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", cohort)


def written(run: Path, folder: Path, form: Format) -> Path:
    """Return an exported file; skip the test where the extra is not installed."""
    if form == "onnx":
        for name in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name, reason="the extra 'export' is not installed")
    return export(run, folder / f"model{EXPORT_SUFFIXES[form]}", form=form)


def told_by(path: Path) -> dict[str, Any]:
    """Return the JSON in an exported file."""
    extra = {METADATA: ""}
    if path.suffix == ".onnx":
        import onnx

        (extra[METADATA],) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA)
    else:
        torch.export.load(path, extra_files=extra)
    told: dict[str, Any] = json.loads(extra[METADATA])
    return told


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_a_network_with_every_part_is_exported_and_gives_the_predictions_of_its_run(
    form: Format, run: Path, cohort: list[Study], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", exported.__name__)
    path = written(run, tmp_path, form)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert "(3 test studies)" in caplog.text
    content = told_by(path)
    assert content["sequences"] == list(SEQUENCES)
    assert content["operating_point"]["threshold"] == pytest.approx(0.4)
    preprocessing = Preprocessing(**content["preprocessing"])
    images = np.stack([preprocessing(study, content["sequences"]).image for study in cohort[-3:]]).astype(np.float32)
    stored = pd.read_csv(run / "predictions.csv").set_index("study_id")["probability"]
    for number in (1, 3):
        found = loaded(path)(images[:number])["probability"]
        np.testing.assert_allclose(found, stored[[study.study_id for study in cohort[-3:][:number]]], atol=0.005)
        if form == "torch_export":
            np.save(tmp_path / "in.npy", images[:number])
            places = [str(tmp_path / name) for name in (path.name, "in.npy", "out.npy")]
            subprocess.run([sys.executable, "-W", "ignore", "-c", LOADS_ALONE, *places], check=True, cwd=tmp_path)
            np.testing.assert_allclose(np.load(tmp_path / "out.npy"), found, atol=1e-6)


class Sum(nn.Module):
    """A network of one convolution with the outputs of a portable one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(4, 2, 3)

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.layer(volumes).mean((1, 2, 3, 4))
        return found, torch.sigmoid(found)


@pytest.mark.slow
def test_exported_files_name_no_folder_of_whoever_exported_them(tmp_path: Path) -> None:
    program = exported._program(Sum().eval(), torch.randn(2, 4, 5, 5, 5))  # type: ignore[arg-type]
    torch.export.save(program, str(tmp_path / "model.pt2"))
    with zipfile.ZipFile(tmp_path / "model.pt2") as content:
        parts = [content.read(name) for name in content.namelist()]
    if importlib.util.find_spec("onnxscript"):
        exported._write_onnx(program, {}, tmp_path / "model.onnx")
        parts.append((tmp_path / "model.onnx").read_bytes())
    folders = (Path(__file__).parent, Path(torch.__file__).parent)
    assert [part for part in parts if any(str(folder).encode() in part for folder in folders)] == []


class Vote(nn.Module):
    """The locator in the package, with the outputs of a portable network."""

    def __init__(self) -> None:
        super().__init__()
        self.segmenter = load_segmenter().eval().requires_grad_(False)

    def forward(self, volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = dense_vote(self.segmenter(volumes))
        return found, torch.sigmoid(found)


@pytest.mark.slow
def test_a_locator_on_a_grid_finer_than_it_has_learnt_on_is_exported(tmp_path: Path) -> None:
    network, volumes = Vote().eval(), torch.randn(2, 4, 67, 81, 67, generator=torch.Generator().manual_seed(0))
    expected = network(volumes)[0]
    program = exported._program(network, volumes)  # type: ignore[arg-type]
    for some in (volumes, volumes[:1]):
        torch.testing.assert_close(program.module()(some)[0], expected[: len(some)], rtol=1e-4, atol=1e-6)
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    exported._write_onnx(program, {}, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found, *_) = session.run(None, {session.get_inputs()[0].name: volumes.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def whole(small_network: Callable[..., StemTailNetwork], grid: tuple[int, ...], **settings: object) -> StemTailNetwork:
    """Return a network whose locator finds something and whose reader has an opinion."""
    precise = {"stem_precision": "float32", "tail_precision": "float32"}
    network = small_network(locator="pretrained", **precise, **settings).eval()
    assert network.radiomics is not None
    calibrate_batch_norm(network, [torch.randn(2, 4, *(min(edge, 33) for edge in grid))])
    nn.init.normal_(network.radiomics.weigh.weight, std=1e-4)
    return network


@pytest.mark.parametrize("missing", ["error", "zero"])
@pytest.mark.parametrize(
    "grid",
    [pytest.param(grid, marks=[pytest.mark.slow] if math.prod(grid) > 10**6 else []) for grid in grids()],
    ids=str,
)
@torch.no_grad()
def test_what_is_exported_computes_the_network_on_every_grid(
    grid: tuple[int, ...], missing: str, small_network: Callable[..., StemTailNetwork]
) -> None:
    if missing == "zero" and np.prod(grid) > 2e5:
        pytest.skip("a small grid shows it")
    network = whole(small_network, grid, missing=missing)
    volumes = torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(0))
    expected = network(volumes)
    assert float((expected - network.answer(network.stem(volumes)).branch_logits[0]).abs().max()) > 1e-4
    calibrator = type("Line", (), {"slope": 1.0, "intercept": 0.0})
    portable = PortableNetwork(type("One", (), {"network": network, "calibrator": calibrator}))  # type: ignore[arg-type]
    found = portable(volumes)[0]
    torch.testing.assert_close(found, expected[:, 1] - expected[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_predictions_that_are_not_those_of_the_network_are_refused_and_nothing_is_written(
    run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    table = pd.read_csv(other / "predictions.csv")
    table.loc[table["study_id"] == "head-11", "probability"] += 0.01
    table.to_csv(other / "predictions.csv", index=False)
    path = tmp_path / "model.pt2"
    with pytest.raises(ModelError, match=r"probability of study head-11 would be .*predictions\.csv says"):
        export(other, path, form="torch_export")
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: shutil.rmtree(run / ".hydra"), "the run does not say where"),
        (lambda run: (run / "predictions.csv").unlink(), r"predictions\.csv is not there"),
    ],
)
def test_why_a_file_was_not_compared_with_predictions_is_said(
    change: Callable[[Path], object], reason: str, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("store"))
    change(other)
    member = Member.of(Checkpoint.read(other))
    assert re.search(reason, exported._compared_with_predictions(lambda _: {}, member, Path("model.onnx")))


def test_a_file_that_does_not_end_as_its_format_is_refused_before_the_network_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Give output=\S+exp\.onnx\."):
        export(tmp_path / "nowhere", tmp_path / "exp", form="onnx")


def test_an_unknown_format_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match="found 'tflite'"):
        export(run, form="tflite")  # type: ignore[arg-type]


def test_absent_packages_are_named_before_anything_is_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"not installed \(onnxscript\).*idh_lightning\[export\]"):
        export(run / "nowhere")
