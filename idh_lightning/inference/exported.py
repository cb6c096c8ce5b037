"""A checkpoint as one file for other programs: volumes in, logit and calibrated probability out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.files import replacing
from idh_lightning.inference.predictor import Member
from idh_lightning.models.convolutions import restore_convolutions

logger = logging.getLogger(__name__)

Format = Literal["onnx", "torch_export"]

SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch_export": ".pt2"}

METADATA = "idh_lightning"
"""Name of the entry that holds the JSON: in the metadata of an ONNX file, among the extra files of a .pt2."""

TOLERANCE = 1e-4
"""Largest difference of probability between an exported network and ours in float32."""


class PortableNetwork(nn.Module):
    """A member in float32 throughout, with plain convolutions and its calibration inside."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self.network = member.network.float().eval().cpu()
        self.network.stem_precision = self.network.tail_precision = "float32"
        restore_convolutions(self.network.network)
        self.slope = member.calibrator.slope
        self.intercept = member.calibrator.intercept

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logit [B], mutant minus wildtype, and calibrated probability [B], of volumes [B, C, D, H, W]."""
        logits = self.network.explainable_forward(volumes)
        logit = logits[:, 1] - logits[:, 0]
        return logit, torch.sigmoid(self.slope * logit + self.intercept)


def export(checkpoint: Path, path: Path | None = None, *, form: Format = "onnx") -> Path:
    """Write the network of a checkpoint as one file, compare it with ours, and return its path.

    The file carries, as JSON under the name `idh_lightning`: preprocessing, sequences, calibration, operating point,
    conformal sets and cohort. Its input `volumes` is [B, C, D, H, W] float32 as `volumes.Preprocessing` makes them, its
    outputs `logit` and `probability` are [B].

    It computes in float32. Ours runs its stem in bfloat16 on many machines, so the two differ by its rounding.

    Args:
        checkpoint: A run folder or a .ckpt.
        path: By default model.onnx or model.pt2 beside the checkpoint.
        form: "onnx", or "torch_export" for `torch.export.load`.

    Raises:
        ConfigError: If the format is unknown, or its packages are not installed.
        CheckpointError: If the checkpoint cannot be used.
        ModelError: If the file gives other probabilities than the network.
    """
    if form not in get_args(Format):
        raise ConfigError(f"format: found '{form}'; expected one of {', '.join(get_args(Format))}. Correct it.")
    member = Member.load(checkpoint)
    path = path or member.file.with_name(f"model{SUFFIXES[form]}")
    network = PortableNetwork(member)
    grid = member.recipe["preprocessing"]["grid"]
    edges = [grid] * 3 if isinstance(grid, int) else list(grid)
    shape = (2, len(member.recipe["sequences"]), *edges)
    volumes = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = _program(network, volumes)
    with replacing(path) as temporary:
        if form == "onnx":
            _write_onnx(program, metadata(member), temporary)
        else:
            torch.export.save(program, str(temporary), extra_files={METADATA: json.dumps(metadata(member))})
    with torch.no_grad():
        ours = network(volumes)[1].numpy()
    apart = float(np.abs(run_exported(path, volumes.numpy())["probability"] - ours).max())
    if apart > TOLERANCE:
        raise ModelError(
            f"{path}: probabilities differ by {apart:.1e} from the network; expected at most {TOLERANCE:g}."
        )
    logger.info("%s: written; its probabilities differ by at most %.1e from the network in float32", path, apart)
    return path


def metadata(member: Member) -> dict[str, Any]:
    """Return what a program needs beside the network, in primitives."""
    preprocessing = {key: value for key, value in member.recipe["preprocessing"].items() if key != "_target_"}
    learnt = member.learnt
    return {
        "input": "[B, C, D, H, W] float32: z-scores in the brain, 0 outside; D to superior, H to posterior, W to left",
        "sequences": list(member.recipe["sequences"]),
        "preprocessing": preprocessing,
        "calibration": learnt.calibrator.to_dict(),
        "operating_point": learnt.operating_point.to_dict(),
        "conformal": learnt.conformal.to_dict(),
        "cohort": member.recipe.get("cohort"),
        "weights": member.recipe.get("weights"),
    }


def run_exported(path: Path, volumes: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return logit and probability [B] of volumes [B, C, D, H, W] by an exported file."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(["logit", "probability"], {"volumes": np.ascontiguousarray(volumes)})
    else:
        program = torch.export.load(str(path)).module()
        with torch.no_grad():
            found = [one.numpy() for one in program(torch.from_numpy(volumes))]
    return dict(zip(("logit", "probability"), found, strict=True))


def _program(network: PortableNetwork, volumes: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(network, (volumes,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _write_onnx(program: torch.export.ExportedProgram, content: Mapping[str, Any], path: Path) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - the result is compared with it
        import onnxscript  # noqa: F401 - torch needs it
    except ImportError as error:
        raise ConfigError(
            f"format: onnx needs packages that are not installed ({error}); expected the extra 'export'. "
            "pip install 'idh_lightning[export]', or use format=torch_export."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            f=str(path),
            input_names=["volumes"],
            output_names=["logit", "probability"],
            external_data=False,
            verbose=False,
        )
    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(content)
    onnx.save(model, str(path))
