"""Pretrained weights from a hub tag or a local file, and the record of their origin."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from idh_lightning.errors import ModelError
from idh_lightning.hub import UnreachableError, hub_file
from idh_lightning.models.encoders import MedicalNetEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WeightsOrigin:
    """Origin of a network's weights, written to provenance.json and into the checkpoint.

    Attributes:
        requested: The setting `model.weights`.
        source: "none", a timm tag or a path.
        note: Why the source is not what was requested, or what was adapted; empty if nothing.
    """

    requested: str
    source: str
    note: str = ""

    @property
    def pretrained(self) -> bool:
        """Whether any weights were loaded; without, BatchNorm must be calibrated before training."""
        return self.source != "none"

    def as_dict(self) -> dict[str, str]:
        """The three fields as primitives."""
        return asdict(self)


LATER = "later"
"""Stands for weights that the caller fills in."""


def load_weights(network: nn.Module, backbone: str, requested: str, *, tag: str) -> WeightsOrigin:
    """Origin of the weights that are loaded into a timm_3d network.

    Args:
        network: Changed in place.
        backbone: Its timm name without a tag.
        requested: "auto", "none", "later" (the caller fills them in), a timm tag, or a local file (.safetensors, or
            anything `torch.load` reads with `weights_only=True`).
        tag: The tag that "auto" tries.

    Raises:
        ModelError: If weights that were asked for by name cannot be had or do not fit.
    """
    if requested in ("none", LATER):
        return WeightsOrigin(requested=requested, source="none")
    source, file = f"{backbone}.{tag}" if requested == "auto" else requested, Path(requested)
    if isinstance(network, MedicalNetEncoder) and not file.is_file():
        depth = backbone.removeprefix("medicalnet_resnet")
        raise ModelError(
            f"model.weights: found '{requested}', which is no file; expected one of MedicalNet, such as "
            f"resnet_{depth}_23dataset.pth, or none. Name a file that exists, or start untrained: model.weights=none"
        )
    if requested == "auto" or not file.is_file():
        import timm  # here, since it takes two seconds, and most networks come with their weights

        if requested != "auto" and not timm.is_model(requested.split(".")[0]):
            raise ModelError(
                f"model.weights: found '{requested}', which is neither a file nor a timm model; expected 'auto', "
                f"'none', a tag such as '{backbone}.{tag}', or a file that exists. Correct the setting."
            )
        try:
            file = _download(source)
        except UnreachableError as error:
            if requested != "auto":
                raise ModelError(
                    f"model.weights: {requested} cannot be had ({error}); expected a reachable hub or a filled cache. "
                    "Give a local file, or model.weights=none to start untrained."
                ) from error
            note = f"{source} cannot be had ({error}); the network starts untrained and its BatchNorm is calibrated"
            logger.warning("model.weights=auto: %s.", note)
            return WeightsOrigin(requested=requested, source="none", note=note)
    return WeightsOrigin(requested=requested, source=source, note=_fit(network, _read(file), source))


def inflate(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weight of a 2D convolution as a 3D one of the given shape, or the weight itself if it is 3D already.

    The kernel is repeated along depth and divided by its depth, so that a volume that is constant along depth gives
    what the 2D network gives on one of its slices. Input channels beyond those of the weight are filled by repeating
    them and scaling by the ratio, so that the expected response keeps its size.

    Args:
        weight: [O, I, H, W], [O, I, D, H, W], or of any other rank (returned unchanged).
        shape: The shape that the 3D network wants.

    Source: Carreira and Zisserman 2017, arXiv:1705.07750, section 2.4.
    """
    if weight.ndim == 4 and len(shape) == 5:
        depth = shape[2]
        weight = weight.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth
    if weight.ndim == 5 and len(shape) == 5 and weight.shape[1] != shape[1] and weight.shape[0] == shape[0]:
        had, wanted = weight.shape[1], shape[1]
        repeats = -(-wanted // had)
        weight = weight.repeat(1, repeats, 1, 1, 1)[:, :wanted] * (had / wanted)
    return weight


def _fit(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> str:
    """Note on what was adapted while loading weights of 2D or 3D shape into the network.

    A classifier of another number of classes is left as it was initialised.
    """
    if isinstance(network, MedicalNetEncoder):
        weights = {network.renamed(name): one for name, one in weights.items()}
    fitted: dict[str, Tensor] = {}
    for name, wanted in network.state_dict().items():
        if name not in weights:
            if name.startswith("classifier.") or name.endswith("num_batches_tracked"):
                continue
            raise ModelError(
                f"{source}: tensor '{name}' is absent; expected the weights of this encoder. "
                "Give weights of the same model.backbone."
            )
        found = inflate(weights[name], tuple(wanted.shape))
        if found.shape == wanted.shape:
            fitted[name] = found.to(wanted.dtype)
        elif not name.startswith("classifier."):
            raise ModelError(
                f"{source}: tensor '{name}' has shape {tuple(weights[name].shape)}; expected one that fits "
                f"{tuple(wanted.shape)}. Give weights of the same model.backbone."
            )
    if strange := [name for name in weights if name.startswith("blocks.") and name not in network.state_dict()]:
        raise ModelError(
            f"{source}: tensor '{strange[0]}' has no place in this encoder; expected the weights of one as deep. "
            "Give weights of the same model.backbone."
        )
    if broken := [name for name, tensor in fitted.items() if not tensor.isfinite().all()]:
        raise ModelError(f"{source}: tensor '{broken[0]}' is not finite; expected numbers. Download the file again.")
    network.load_state_dict(fitted, strict=False)
    flat = sum(weights[name].ndim == 4 for name in fitted)
    spread = sum(weights[name].shape[1] != one.shape[1] for name, one in fitted.items() if one.ndim == 5)
    notes = {"2D convolutions inflated to 3D": flat, "convolution spread over other input channels": spread}
    return ", ".join(f"{number} {note}" for note, number in notes.items() if number)


def torch_content(file: Path) -> Any:
    """Content of a file of `torch.save`, tensors and plain values alone; a ValueError if it is damaged or holds others.

    Of what is no such file at all, another error may come.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():  # torch reads on over what does not fit its check sum
                raise ValueError(f"{broken} in it does not fit its check sum")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch advises to load it all the same, and so to run what is in it
        raise ValueError("it holds other objects than tensors and plain values") from error


def _read(file: Path) -> dict[str, Tensor]:
    loaded: Any
    try:
        loaded = load_file(file) if file.suffix == ".safetensors" else torch_content(file)
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, KeyError, zipfile.BadZipFile) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{file}: cannot be read as weights ({said}); expected tensors only. Give a .safetensors or .pt file."
        ) from error
    weights: dict[str, Tensor] = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    for prefix in ("network.network.", "module.", "network."):
        if weights and any(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ModelError(f"{file}: holds no mapping of names to tensors; expected a state dict. Give another file.")
    return weights


def _download(name: str) -> Path:
    """Local file of a timm tag, from the cache or the hub, without waiting for a network that is absent."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ModelError(
            f"model.weights: timm knows no weights for '{name}'; expected one of "
            f"{', '.join(timm.list_pretrained(name.split('.')[0] + '*'))}. Correct the tag."
        )
    return hub_file(config.hf_hub_id, "model.safetensors")
