"""Brain extraction in heads with skull and scalp, by the two networks of deepbet."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from idh_lightning.errors import ModelError

_PACKAGE, _VERSION = "deepbet", "1.0.2"

EXTRACTION = f"{_PACKAGE}-{_VERSION}"
"""Stands in the names of store entries: another method, other entries."""

_WEIGHTS = {
    "bbox_model.pt": "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
    "model.pt": "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
}
"""Files of the wheel and their SHA-256. Of its code nothing is imported: that needs a toolkit for windows."""

_GROWN_MM = 1.6
"""The networks learnt healthy brains: at a tumour that reaches the surface they end a little too far inside."""

_BOX_EDGE, _CROP_EDGE = 128, 256
"""Voxels along each axis that the two networks read, whatever the size of the head."""

_BOX_ROOM = 1.2
_BOX_LEAST = 0.02  # share of a plane that is brain, for the plane to belong to the box
_MEAN, _DEVIATION = 0.449, 0.226  # of what the networks were taught with

_Network = Callable[[Any], Any]  # volume [1, 1, X, Y, Z] -> probabilities [1, 2, X, Y, Z] of background and brain

_one_at_a_time = threading.Lock()  # the larger network takes some GB


def extract_brain(image: sitk.Image) -> NDArray[np.bool_]:
    """Brain mask [D, H, W] of a head in LPS orientation, one piece without holes; all False where none is found.

    The first network finds the box of the brain in the whole head, the second the brain in that box.

    Args:
        image: FLAIR or T1, also after contrast or T2; voxels of any size.

    Raises:
        ModelError: If the weights are not there, or are others.

    Source: Fisch et al. 2024, Computers in Biology and Medicine 179:108845.
    """
    finder, segmenter = _networks()
    head = sitk.GetArrayViewFromImage(image)
    voxels = head[:, ::-1, ::-1].transpose(2, 1, 0)  # to right, anterior and superior, as the networks know axes
    found = np.zeros(voxels.shape, dtype=bool)
    with _one_at_a_time:
        small = _resized(voxels, (_BOX_EDGE,) * 3)
        low, high = np.percentile(small, (0.5, 99.5))
        box = _box(_largest(_probability(finder, small, low, high) > 0.5), voxels.shape)
        if box is not None:
            crop = _probability(segmenter, _resized(voxels[box], (_CROP_EDGE,) * 3), low, high)
            found[box] = ndimage.binary_fill_holes(_largest(_resized(crop, voxels[box].shape) > 0.5))
    brain = np.ascontiguousarray(found.transpose(2, 1, 0)[:, ::-1, ::-1])
    return _grown(brain, image.GetSpacing()[::-1], _GROWN_MM)


@cache
def _networks() -> tuple[_Network, _Network]:
    """Networks that find the box of the brain, and the brain in that box."""
    import torch  # not above: that takes seconds, and most cohorts need no extraction

    try:
        files = {Path(file).name: Path(str(file.locate())) for file in distribution(_PACKAGE).files or ()}
    except PackageNotFoundError:
        files = {}
    networks: list[Any] = []
    for name, expected in _WEIGHTS.items():
        path = files.get(name)
        content = path.read_bytes() if path is not None and path.is_file() else b""
        if (found := hashlib.sha256(content).hexdigest()) != expected:
            raise ModelError(
                f"{path or name}: {f'SHA-256 {found[:12]}...' if content else 'there is no such file'}; expected "
                f"{expected[:12]}..., weights of {_PACKAGE} {_VERSION}, which find the brain in a head with its skull. "
                f"Install them again: python -m pip install --force-reinstall --no-deps {_PACKAGE}=={_VERSION}"
            )
        with warnings.catch_warnings():  # torch >= 2.10 says that TorchScript is old; deepbet has nothing newer
            warnings.simplefilter("ignore")
            networks.append(torch.jit.load(io.BytesIO(content), map_location="cpu").eval())  # type: ignore[no-untyped-call]
    return networks[0], networks[1]


def _probability(network: _Network, voxels: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Probability of brain at each voxel, like the voxels [X, Y, Z] between whose ends low and high intensities lie."""
    import torch

    scaled = torch.from_numpy(((voxels - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32))
    scaled = (scaled - scaled.mean()) / scaled.std().clamp(min=1e-6)
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return np.asarray(network((_DEVIATION * scaled + _MEAN)[None, None])[0, 1].numpy())


def _resized(voxels: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Volume of another shape that shows the same, each voxel the one that its centre lies in."""
    nearest = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(shape, voxels.shape, strict=True))
    return np.ascontiguousarray(voxels[np.ix_(*nearest)])


def _box(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[slice, slice, slice] | None:
    """Box of a mask with some room, in voxels of a volume of another shape that shows the same; None if it is empty."""
    box = []
    for axis, length in enumerate(shape):
        planes = np.flatnonzero(mask.mean(axis=tuple({0, 1, 2} - {axis})) > _BOX_LEAST)
        if not planes.size:
            return None
        scale = length / mask.shape[axis]
        centre = round(scale * (planes[0] + planes[-1] + 1) / 2)
        half = round(_BOX_ROOM * scale * (planes[-1] + 1 - planes[0])) / 2
        box.append(slice(max(0, int(centre - half)), min(length, int(centre + half))))
    return box[0], box[1], box[2]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Largest piece of a mask, whose voxels touch by a face, an edge or a corner."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _grown(mask: NDArray[np.bool_], spacing_mm: tuple[float, ...], by_mm: float) -> NDArray[np.bool_]:
    """Mask with all voxels whose centre lies at most this far from the centre of one of its own."""
    reach = [int(by_mm / mm) for mm in spacing_mm]
    steps = np.meshgrid(*(np.arange(-n, n + 1) * mm for n, mm in zip(reach, spacing_mm, strict=True)), indexing="ij")
    ball = sum(step**2 for step in steps) <= by_mm**2
    return np.asarray(ndimage.binary_dilation(mask, ball))
