"""A checkpoint as one file for other programs: volumes in, logit and calibrated probability out."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.evaluation import read_table
from idh_lightning.files import atomic_write
from idh_lightning.inference.ensemble import Member, one_checkpoint
from idh_lightning.inference.sharing import FolderFormat, beside, share
from idh_lightning.models.fast.convolutions import restore_convolutions
from idh_lightning.models.segmentation import PRETRAINED
from idh_lightning.volumes import VolumeStore

logger = logging.getLogger(__name__)

Format = Literal["onnx", "torch_export"]

ExportedFunction = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]
"""Runs an exported file; see `loaded`."""

EXPORT_SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch_export": ".pt2"}

METADATA = "idh_lightning"
"""Name of the entry that holds the JSON: in the metadata of an ONNX file, among the extra files of a .pt2."""

TOLERANCE = 1e-3
"""Largest difference of logit between an exported network and ours in float32; of logits beyond one, as a share."""

STORED_TOLERANCE = 0.005
"""Largest difference of probability from predictions.csv, whose run may have had its stem in bfloat16 or float16."""

STORED_STUDIES = 40
"""Studies of predictions.csv that an exported file is run on."""


class PortableNetwork(nn.Module):
    """A member in float32 throughout, with torch's own convolutions and its calibration inside."""

    def __init__(self, member: Member) -> None:
        """Take the network over, which must compute in float32; it is changed in place."""
        super().__init__()
        self.network = member.network
        restore_convolutions(self.network)
        self.slope = member.calibrator.slope
        self.intercept = member.calibrator.intercept

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logit [B] of the positive class and calibrated probability [B], of volumes [B, C, D, H, W]."""
        logits = self.network.explainable_forward(volumes)
        logit = logits[:, 1] - logits[:, 0]
        return logit, torch.sigmoid(self.slope * logit + self.intercept)


def export_checkpoint(config: DictConfig) -> None:
    """Export what a configuration names, and say where."""
    path = Path(config.output) if config.output else None
    write = share if config.format in get_args(FolderFormat) else export
    path = write(config.checkpoint, path, form=config.format)
    Console().print(f"{path}", soft_wrap=True, highlight=False)


def export(checkpoint: str | Path, path: Path | None = None, *, form: Format = "onnx") -> Path:
    """Write the network of a checkpoint as one file, compare it with ours, and return its path.

    The file carries, as JSON under the name `idh_lightning`: preprocessing, sequences, calibration, operating point,
    conformal sets and cohort. Its input `volumes` is [B, C, D, H, W] float32 as `volumes.Preprocessing` makes them, its
    outputs `logit` and `probability` are [B].

    It computes in float32, as ours predicts on a CPU. Where the checkpoint lies in its run folder and the volumes of
    its test studies are still in the store, the file is run on them and compared with predictions.csv as well.

    Args:
        checkpoint: See `one_checkpoint`.
        path: By default model.onnx or model.pt2 beside the .ckpt; of another checkpoint in the working folder.
        form: "onnx", or "torch_export" for `torch.export.load`.

    Raises:
        ConfigError: If the format is unknown, or its packages are not installed.
        CheckpointError: If the checkpoint cannot be used.
        ModelError: If the file would give other probabilities than the network, or than the run did.
    """
    if form not in get_args(Format):
        known = ", ".join((*get_args(Format), *get_args(FolderFormat)))
        raise ConfigError(f"format: found '{form}'; expected one of {known}. Correct it.")
    if path is not None and path.suffix != EXPORT_SUFFIXES[form]:
        raise ConfigError(
            f"output: found {path}; expected a file that ends in {EXPORT_SUFFIXES[form]}, as format={form} gives. "
            f"Give output={path.with_suffix(EXPORT_SUFFIXES[form])}."
        )
    if form == "onnx":
        _require_packages()
    member = Member.of(one_checkpoint(checkpoint))
    path = path or beside(member.file) / f"model{EXPORT_SUFFIXES[form]}"
    grid = member.recipe["preprocessing"]["grid"]
    edges = [grid] * 3 if isinstance(grid, int) else list(grid)
    shape = (2, len(member.recipe["sequences"]), *edges)
    volumes = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    network = member.network.float().eval().cpu()
    network.stem_precision = network.tail_precision = "float32"
    with torch.no_grad():
        logits = network(volumes)  # as it predicts, before it becomes portable
    ours = (logits[:, 1] - logits[:, 0]).numpy()
    program = _program(PortableNetwork(member), volumes)
    instead = " in place of the file that was there" if path.exists() else ""
    with atomic_write(path) as temporary:
        if form == "onnx":
            _write_onnx(program, metadata(member), temporary)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of weights that are views of one another
                torch.export.save(program, str(temporary), extra_files={METADATA: json.dumps(metadata(member))})
        run = loaded(temporary)
        apart = float((np.abs(run(volumes.numpy())["logit"] - ours) / np.maximum(np.abs(ours), 1)).max())
        if not apart <= TOLERANCE:
            raise ModelError(
                f"{path}: logits would differ by {apart:.1e} from those of the network; expected at most "
                f"{TOLERANCE:g}. Nothing was written; please report it with the recipe of the run."
            )
        told = f"its logits differ by at most {apart:.1e} from those of the network in float32"
        told += _compared_with_predictions(run, member, path)
    logger.info("%s: written%s; %s.", path, instead, told)
    return path


def _compared_with_predictions(run: ExportedFunction, member: Member, path: Path) -> str:
    """Return in words how far an exported file is from the predictions of the run, or why that is not known.

    Raises:
        ModelError: If it is too far.
    """
    if member.file == PRETRAINED:
        return "; of the network in the package there is no run with predictions to compare with"
    if known := member.recipe["model"].get("sites"):
        return f"; not compared with predictions of the run, which harmonises {', '.join(known)}, and the file no site"
    folder = member.file.absolute().parent.parent
    file = folder / "predictions.csv"
    if member.file.name != "best.ckpt" or not file.is_file():
        why = f"{file} is not there" if member.file.name == "best.ckpt" else "they are made by its best.ckpt"
        return f"; not compared with predictions of the run, since {why}"
    table = read_table(file)
    predictions = table[table["split"] == "test"].set_index("study_id")["probability"]
    store = _store_of(folder, member)
    studies = store.of_names(predictions.index)[:STORED_STUDIES] if store else []
    if not studies:
        where = "the run does not say where" if store is None else f"{store.folder} does not hold them"
        return f"; not compared with {file}, since the volumes of its test studies are not there ({where})"
    apart = pd.Series(
        {one.study_id: run(one.image[None].astype(np.float32))["probability"][0] for one in studies}
    ) - predictions.reindex([one.study_id for one in studies])
    worst = str(apart.abs().idxmax())
    if not apart.abs().max() <= STORED_TOLERANCE:
        raise ModelError(
            f"{path}: the probability of study {worst} would be {predictions[worst] + apart[worst]:.4f}, {file} says "
            f"{predictions[worst]:.4f}; expected a difference of at most {STORED_TOLERANCE:g}. If made by this "
            f"{member.file.name}, it was rounded to half precision by so much, on a GPU or by "
            "model.stem_precision=bfloat16: copy it out of the run folder and export the copy, which is compared with "
            "the network in float32 alone."
        )
    return f", its probabilities by at most {apart.abs().max():.1e} from {file} ({len(studies)} test studies)"


def _store_of(folder: Path, member: Member) -> VolumeStore | None:
    """Return the store that a run used, by its own configuration, or None where that is not there."""
    try:
        recorded = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
        working = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        place = Path(working["hydra"]["runtime"]["cwd"]) / recorded["paths"]["store"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    return VolumeStore(place, member.preprocessing(), member.sequences)


def metadata(member: Member) -> dict[str, Any]:
    """Metadata that a program needs beside the network, in primitives."""
    preprocessing = {key: value for key, value in member.recipe["preprocessing"].items() if key != "_target_"}
    learnt = member.learnt
    return {
        "input": "[B, C, D, H, W] float32: z-scores in the brain, 0 outside; D to superior, H to posterior, W to left",
        "target": learnt.target.to_dict(),
        "sequences": list(member.recipe["sequences"]),
        "preprocessing": preprocessing,
        "calibration": learnt.calibrator.to_dict(),
        "operating_point": learnt.operating_point.to_dict(),
        "conformal": learnt.conformal.to_dict(),
        "cohort": member.recipe.get("cohort"),
        "weights": member.recipe.get("weights"),
    }


def loaded(path: Path) -> ExportedFunction:
    """Function of an exported file: volumes [B, C, D, H, W] -> logit and probability [B]."""
    names = ("logit", "probability")
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda volumes: dict(zip(names, session.run(names, {"volumes": volumes}), strict=True))
    program = torch.export.load(str(path)).module()

    def run(volumes: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.no_grad():
            return {name: one.numpy() for name, one in zip(names, program(torch.from_numpy(volumes)), strict=True)}

    return run


def _program(network: PortableNetwork, volumes: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.export.export(network, (volumes,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for module in made.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # holds folders of whoever exports, and goes into the files
    return made


def _require_packages() -> None:
    absent = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"format: onnx needs packages that are not installed ({', '.join(absent)}); expected the extra 'export'. "
            "pip install 'idh_lightning[export]', or use format=torch_export."
        )


def _write_onnx(program: torch.export.ExportedProgram, content: Mapping[str, Any], path: Path) -> None:
    import onnx

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
