"""Spatial augmentation in one resampling: flip, affine map and elastic deformation composed as one map.

Three facts make it fast:

* The displacement of an elastic deformation is a tensor product of cubic B-splines, so a dense field is three small
  matrix products, not one evaluation per voxel.
* Cubic B-splines reproduce affine maps. Moving the control points by the affine map and the flip therefore gives the
  control points of the composed map: no second grid, no second pass.
* Most of a volume is background. Only the part of the output that can see anything else is resampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from idh_lightning.errors import VolumeError
from idh_lightning.machine import map_in_threads
from idh_lightning.volumes.reading import RAS_LPS
from idh_lightning.volumes.transforms import (
    PATIENT_AXES,
    Background,
    Box,
    DrawnTransform,
    background_of,
    check_fusable,
    happens,
    memory_order,
    occupied_box,
    stack_images,
    unstack_images,
)

_Floats = NDArray[np.float64]

SPLINE_ORDER = 3
# ITK widens the domain of a B-spline by this part of a voxel on each side (itkBSplineTransformInitializer.hxx).
DOMAIN_MARGIN_VOXELS = 0.125


class RandomSpatial(DrawnTransform, tio.SpatialTransform):  # type: ignore[misc]
    """Flip, affine and elastic deformation in one resampling: linear for images, nearest neighbour for label maps.

    Equal to the three transforms of TorchIO one after the other, but for the blur of resampling twice.

    Raises:
        ConfigError: If flip axes are not named by anatomy, or interpolation is not linear and nearest.
    """

    def __init__(
        self,
        flip: tio.RandomFlip | None = None,
        affine: tio.RandomAffine | None = None,
        elastic: tio.RandomElasticDeformation | None = None,
        background: Background = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fusable(flip=flip, affine=affine, elastic=elastic)
        self.flip: Any = flip
        self.affine: Any = affine
        self.elastic: Any = elastic
        self.background = background

    def draw(self, channels: int = 0) -> Spatial | None:
        """Transform for one study, or None if nothing happens to it; the number of channels does not matter."""
        drawn: dict[str, Any] = {}
        if happens(self.flip):
            axes = {PATIENT_AXES[name[0].upper()] for name in self.flip.axes}
            hot = self.flip.get_params(self.flip.flip_probability)
            drawn["flips"] = tuple(bool(hot[axis]) and axis in axes for axis in range(3))
        if happens(self.affine):
            ranges = (self.affine.scales, self.affine.degrees, self.affine.translation, self.affine.isotropic)
            values = (tuple(value.tolist()) for value in self.affine.get_params(*ranges))
            drawn.update(zip(("scales", "degrees", "translation"), values, strict=True), center=self.affine.center)
        if happens(self.elastic):
            drawn["control_points"] = self.elastic.get_params(
                self.elastic.num_control_points, self.elastic.max_displacement, self.elastic.num_locked_borders
            )
        transform = Spatial(**drawn, background=self.background, include=self.include, exclude=self.exclude)
        return None if transform.is_identity else transform


class Spatial(tio.SpatialTransform):  # type: ignore[misc]
    """Flip, then affine map, then elastic deformation, in one resampling.

    Args:
        flips: Whether to mirror along the patient's left-right, anterior-posterior and inferior-superior axis.
        scales: See `torchio.Affine`; 1.5 makes things look larger by half.
        degrees: See `torchio.Affine`.
        translation: See `torchio.Affine`, in mm towards right, anterior and superior.
        center: Of scaling and rotation: "image", or "origin" of the world.
        control_points: [n, n, n, 3] displacement in mm at the control points of cubic B-splines, in LPS order and
            direction as in `torchio.ElasticDeformation`, or None.
        background: See `Augmentation`.
        **kwargs: See `torchio.Transform`.
    """

    def __init__(
        self,
        flips: Sequence[bool] = (False, False, False),
        scales: Sequence[float] = (1.0, 1.0, 1.0),
        degrees: Sequence[float] = (0.0, 0.0, 0.0),
        translation: Sequence[float] = (0.0, 0.0, 0.0),
        center: str = "image",
        control_points: NDArray[np.floating[Any]] | None = None,
        background: Background = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.flips, self.scales, self.degrees, self.translation = flips, scales, degrees, translation
        self.center, self.control_points, self.background = center, control_points, background
        self.args_names = ["flips", "scales", "degrees", "translation", "center", "control_points", "background"]

    @property
    def is_affine_identity(self) -> bool:
        """Whether nothing is scaled, turned or shifted."""
        return {*self.scales} == {1.0} and {*self.degrees, *self.translation} == {0.0}

    @property
    def is_identity(self) -> bool:
        """Whether the output is the input."""
        return self.is_affine_identity and not any(self.flips) and self.control_points is None

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Resample all images of a subject."""
        images = self.get_images(subject)
        scalars, label_maps = ([i for i in images if isinstance(i, kind)] for kind in (tio.ScalarImage, tio.LabelMap))
        if not images or self.is_identity:
            return subject
        try:
            subject.check_consistent_space()
        except RuntimeError as error:
            raise VolumeError(
                f"augmentation: the images {list(subject.get_images_dict(intensity_only=False))} of a subject lie on "
                "different grids; expected one grid. Resample the study before it is augmented."
            ) from error
        order = memory_order(images[0].data)
        affine = (RAS_LPS @ images[0].affine)[:, [*order, 3]]
        flipped = [1 + int(a) for a, (p, _) in enumerate(nib.io_orientation(affine)) if self.flips[int(p)]]
        shape = [images[0].data.shape[1 + axis] for axis in order]
        only_flip = self.is_affine_identity and self.control_points is None
        mapping = None if only_flip else _sampling_map(self, shape, affine)
        for group, mode, fill in ((scalars, "bilinear", self.background), (label_maps, "nearest", 0.0)):
            if group:
                volume = stack_images(group, order)
                if mapping is None:
                    moved = volume.flip(flipped)
                else:
                    moved = _resample(volume, mapping, mode, background_of(volume, fill))
                unstack_images(moved, group, order)
        return subject


@dataclass(frozen=True)
class _SamplingMap:
    """From output voxels to input voxels, as a tensor product of splines.

    Attributes:
        control_points: [k0, k1, k2, 3] input voxel of every control point.
        bases: Per axis, [size, k] weight of every control point at every output voxel.
        affine: [4, 4] output voxel to input voxel, without the elastic part.
        reach: Per axis, the largest elastic displacement in voxels.
    """

    control_points: _Floats
    bases: tuple[_Floats, _Floats, _Floats]
    affine: _Floats
    reach: _Floats

    def seen_from(self, box: Box) -> Box:
        """Output box outside which nothing of an input box is seen; it may be empty."""
        corners = np.stack(np.meshgrid(*([part.start - 1, part.stop] for part in box), indexing="ij"), -1)
        inverse = np.linalg.inv(self.affine)
        corners = corners.reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
        sizes = [len(basis) for basis in self.bases]
        starts = np.clip(np.floor(corners.min(0) - self.reach), 0, sizes).astype(int)
        stops = np.clip(np.ceil(corners.max(0) + self.reach) + 1, 0, sizes).astype(int)
        return tuple(map(slice, starts.tolist(), stops.tolist()))  # type: ignore[return-value]

    def grid(self, output: Box, source: Box) -> Tensor:
        """Grid [1, *output shape, 3] with which `grid_sample` fills an output box from a source box."""
        starts, stops = np.array([part.start for part in source]), np.array([part.stop for part in source])
        points = (2 * (self.control_points - starts) + 1) / (stops - starts) - 1
        dense, x, y, z = (
            torch.from_numpy(values.copy()).float()
            for values in (points[..., ::-1], *map(np.ndarray.__getitem__, self.bases, output))
        )
        # The three coordinates stay apart in memory: faster here, and as fast in grid_sample.
        dense = torch.einsum("ijkc,xi->cxjk", dense, x)
        dense = torch.einsum("cxjk,yj->cxyk", dense, y)
        return torch.einsum("cxyk,zk->xyzc", dense, z)[None]


def _sampling_map(transform: Spatial, shape: Sequence[int], affine: _Floats) -> _SamplingMap:
    """Compose flip, affine map and elastic deformation for an array of this shape and affine (index to LPS mm)."""
    orientation = [(int(axis), int(sign)) for axis, sign in nib.io_orientation(affine)]
    flip = np.eye(4)
    for axis, (patient_axis, _) in enumerate(orientation):
        if transform.flips[patient_axis]:
            flip[axis, axis], flip[axis, 3] = -1, shape[axis] - 1
    center = affine[:3] @ [*((np.array(shape) - 1) / 2), 1]
    moves = _affine_lps(transform, center if transform.center == "image" else np.zeros(3))
    to_input = flip @ np.linalg.inv(affine) @ np.linalg.inv(moves) @ affine
    if transform.control_points is None:
        positions = [np.array([-0.5, size - 0.5]) for size in shape]
        bases = [np.stack([1 - part, part], 1) for part in ((np.arange(size) + 0.5) / size for size in shape)]
        displacement = np.zeros((2, 2, 2, 3))
    else:
        # Control points come in the order of the patient's axes, whatever the order of the array's.
        displacement = np.asarray(transform.control_points, float).transpose(*(p for p, _ in orientation), 3)
        displacement = np.flip(displacement, tuple(axis for axis, (_, sign) in enumerate(orientation) if sign < 0))
        _warn_of_folding(displacement, shape, affine)
        displacement = displacement @ np.linalg.inv(affine[:3, :3]).T
        positions, bases = zip(*map(_cubic_basis, shape, displacement.shape[:3]), strict=True)  # type: ignore[assignment]
    points = np.stack(np.meshgrid(*positions, indexing="ij"), -1) + displacement
    reach = np.abs(displacement).max((0, 1, 2))
    return _SamplingMap(points @ to_input[:3, :3].T + to_input[:3, 3], tuple(bases), to_input, reach)  # type: ignore[arg-type]


def _affine_lps(transform: Spatial, center: _Floats) -> _Floats:
    """Map [4, 4] from input to output in LPS mm: first the turn and shift, then the scaling, as in TorchIO."""
    to_lps = np.diag(RAS_LPS)[:3]
    x, y, z = to_lps * transform.degrees
    turn, scale = np.eye(4), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("ZXY", [z, x, y], degrees=True).as_matrix()
    turn[:3, 3] = center - turn[:3, :3] @ center + to_lps * transform.translation
    scale[:3, :3] = np.diag(transform.scales)
    scale[:3, 3] = center - scale[:3, :3] @ center
    return scale @ turn


def _cubic_basis(size: int, points: int) -> tuple[_Floats, _Floats]:
    """Positions of control points along an axis, [points] in voxels, and their weights [size, points] per voxel."""
    start, spacing = -0.5 - DOMAIN_MARGIN_VOXELS, (size + 2 * DOMAIN_MARGIN_VOXELS) / (points - SPLINE_ORDER)
    knots = start + spacing * (np.arange(points + SPLINE_ORDER + 1) - SPLINE_ORDER)
    weights: _Floats = BSpline.design_matrix(np.arange(size, dtype=float), knots, SPLINE_ORDER).toarray()
    return np.float64(start) + spacing * (np.arange(points) - 1), weights


def _warn_of_folding(displacement_mm: _Floats, shape: Sequence[int], affine: _Floats) -> None:
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0) * shape / (np.array(displacement_mm.shape[:3]) - SPLINE_ORDER)
    largest_mm = np.abs(displacement_mm).max()
    if largest_mm > spacing_mm.min() / 2:
        warnings.warn(
            f"augmentation: elastic displacements of {largest_mm:.1f} mm exceed half the distance of "
            f"the control points ({spacing_mm.min():.1f} mm), so the image may fold. Choose fewer control points or a "
            "smaller augment.elastic.max_displacement.",
            RuntimeWarning,
            stacklevel=2,
        )


def _resample(tensor: Tensor, mapping: _SamplingMap, mode: str, background: Tensor) -> Tensor:
    """Resample [C, *shape] through the map; `background` [C] fills what comes from outside."""
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for channel, value in zip(out, background, strict=True):  # torch 2.14 copies one value to many slowly in parallel
        channel.fill_(value)
    occupied = occupied_box(tensor, background)
    if occupied is None:
        return out
    # grid_sample fills with zero, so background is moved to zero. Channels last: one fetch brings all of them.
    fill = background.float()[:, None, None, None]
    source = (tensor[(slice(None), *occupied)].float() - fill)[None]
    source = source.contiguous(memory_format=torch.channels_last_3d)
    seen = mapping.seen_from(occupied)

    def resample(rows: slice) -> None:
        part = (rows, *seen[1:])
        grid = mapping.grid(part, occupied)
        sampled = grid_sample(source, grid, mode, "zeros", align_corners=False)[0]
        out[(slice(None), *part)] = sampled.add_(fill).to(tensor.dtype)

    # torch 2.14 gives each volume of a batch one core, and this is one volume.
    edges = np.linspace(seen[0].start, seen[0].stop, torch.get_num_threads() + 1).astype(int).tolist()
    map_in_threads(resample, [slice(*ends) for ends in pairwise(edges) if ends[0] < ends[1]])
    return out
