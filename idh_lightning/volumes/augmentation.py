"""Augmentation of MRI studies: TorchIO's transforms, drawn one by one and applied together.

The entries of `Augmentation` are TorchIO's own random transforms. They check their settings and draw their random
numbers, so every range means what TorchIO's documentation says. What differs is how the draws are applied: flip, affine
and elastic deformation become one map and one resampling of all sequences, and contrast, bias field and noise become
one pass over the voxels that are not background. `fused: false` applies the same entries the stock way.

Three facts make the fused resampling fast:

* The displacement of an elastic deformation is a tensor product of cubic B-splines, so a dense field is three small
  matrix products, not one evaluation per voxel.
* Cubic B-splines reproduce affine maps. Moving the control points by the affine map and the flip therefore gives the
  control points of the composed map: no second grid, no second pass.
* Most of a volume is background. Only the part of the output that can see anything else is resampled.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
import torchio as tio
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from idh_lightning.errors import ConfigError, VolumeError
from idh_lightning.machine import map_in_threads

Background = float | Literal["minimum"]
Box = tuple[slice, slice, slice]
Floats = NDArray[np.float64]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENT_AXES = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
SPLINE_ORDER = 3
# ITK widens the domain of a B-spline by this part of a voxel on each side (itkBSplineTransformInitializer.hxx).
DOMAIN_MARGIN_VOXELS = 0.125


class Augmentation(tio.Compose):  # type: ignore[misc]
    """A TorchIO transform made of named random effects, each of which may be left out.

    The order is that of the arguments. The subject given is left as it was.

    Args:
        flip: Mirrors the study; axes are named by anatomy, "LR" for left-right.
        affine: Scales, turns and shifts the study. `default_pad_value` gives way to `background`.
        elastic: Deforms the study smoothly.
        gamma: Raises the magnitude of every value to a power and keeps its sign; one power per sequence.
        bias_field: Multiplies by a smooth field, exp(polynomial); one field per sequence.
        noise: Adds Gaussian noise; one mean and one standard deviation per sequence.
        sequence_dropout: Blanks one sequence.
        fused: Apply space in one resampling and intensity in one pass; otherwise each entry on its own, the stock way.
        background: Value of voxels that show nothing: it fills what moves into view, and intensity effects leave it
            alone. "minimum" takes the smallest value of each sequence.

    Raises:
        ConfigError: If an entry asks for something that the fused way does not do.
    """

    def __init__(
        self,
        *,
        flip: tio.RandomFlip | None = None,
        affine: tio.RandomAffine | None = None,
        elastic: tio.RandomElasticDeformation | None = None,
        gamma: tio.RandomGamma | None = None,
        bias_field: tio.RandomBiasField | None = None,
        noise: tio.RandomNoise | None = None,
        sequence_dropout: RandomSequenceDropout | None = None,
        fused: bool = True,
        background: Background = 0.0,
    ) -> None:
        space = {"flip": flip, "affine": affine, "elastic": elastic}
        intensity = {"gamma": gamma, "bias_field": bias_field, "noise": noise}
        transforms: list[Any] = [*space.values(), *intensity.values()]
        if fused:
            transforms = [
                RandomSpatial(**space, background=background, copy=False),
                RandomIntensity(**intensity, background=background, copy=False),
            ]
        # No deep copy of the voxels, here and above: what is fused writes to new tensors.
        super().__init__([t for t in (*transforms, sequence_dropout) if t is not None], copy=False)
        self.fused = fused

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Return a new subject; images that no effect touched share their voxels with the one given."""
        return self._change(subject)(subject)

    def drawn(self, subject: tio.Subject) -> Callable[[tio.Subject], tio.Subject]:
        """Draw what a call would do to a subject, and return what does it.

        Draws come from the one generator of the process, so that they have to be made one after the other. What is
        returned draws nothing, if `fused` is true, and may run beside others.
        """
        return self._change(subject) if _happens(self) else lambda subject: subject

    def _change(self, subject: tio.Subject) -> Callable[[tio.Subject], tio.Subject]:
        channels = sum(len(image.data) for image in subject.get_images(intensity_only=True))
        drawn = self._draws(channels) if self.fused else None

        def change(subject: tio.Subject) -> tio.Subject:
            own = tio.Subject({k: copy.copy(v) if isinstance(v, tio.Image) else v for k, v in subject.items()})
            own.applied_transforms = list(subject.applied_transforms)
            if drawn is None:
                return super(Augmentation, self).apply_transform(own)
            for transform in drawn:
                own = _apply_recorded(transform, own)
            return own

        return change

    def _draws(self, channels: int) -> list[Any]:
        return [transform.draw(channels) if _happens(transform) else None for transform in self.transforms]

    def batch(
        self,
        volumes: Tensor,
        masks: Tensor | None = None,
        *,
        spacing_mm: Sequence[float],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Augment a batch where it lies, on the CPU or on a GPU; every study has its own draws.

        Args:
            volumes: [B, C, D, H, W] in LPS orientation.
            masks: [B, D, H, W] labels, moved with the volumes by nearest neighbour, or None.
            spacing_mm: Voxel size along D, H and W.
            generator: Source of the draws; by default torch's global one.

        Returns:
            New tensors like `volumes`, in float32, and `masks`.

        Raises:
            ConfigError: If `fused` is false.
        """
        if not self.fused:
            raise ConfigError(
                "augment.fused: is false; expected true, since TorchIO's own transforms take one study at a time on "
                "the CPU. Set augment.fused=true or augment in the loader."
            )
        affine = np.eye(4)
        affine[:3, :3] = np.diag(spacing_mm)[:, ::-1].T  # array axes D, H, W run along S, P, L
        moved: list[Tensor] = []
        moved_masks: list[Tensor] = []
        for index, volume in enumerate(volumes.float()):
            labels = None if masks is None else masks[index, None]
            with _drawing_from(generator):
                drawn = self._draws(len(volume)) if _happens(self) else []
            for transform in drawn:
                if isinstance(transform, Spatial):
                    volume, labels = transform.arrays(volume, labels, affine)
                elif transform is not None:
                    volume = transform.array(volume, (2, 1, 0))
            moved.append(volume)
            moved_masks.extend([] if labels is None else [labels])
        return torch.stack(moved), torch.cat(moved_masks) if moved_masks else None


class RandomSpatial(tio.transforms.augmentation.RandomTransform, tio.SpatialTransform):  # type: ignore[misc]
    """Flip, affine and elastic deformation in one resampling: linear for images, nearest neighbour for label maps.

    Equal to the three transforms of TorchIO one after the other, but for the blur of resampling twice.

    Args:
        flip: What to draw flips from, or None.
        affine: What to draw the affine map from, or None.
        elastic: What to draw control points from, or None.
        background: See `Augmentation`.
        **kwargs: See `torchio.Transform`.

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
        _check_fusable(flip=flip, affine=affine, elastic=elastic)
        self.flip: Any = flip
        self.affine: Any = affine
        self.elastic: Any = elastic
        self.background = background

    def draw(self, channels: int = 0) -> Spatial | None:
        """Return the transform for one study, or None if nothing happens to it."""
        drawn: dict[str, Any] = {}
        if _happens(self.flip):
            axes = {PATIENT_AXES[name[0].upper()] for name in self.flip.axes}
            hot = self.flip.get_params(self.flip.flip_probability)
            drawn["flips"] = tuple(bool(hot[axis]) and axis in axes for axis in range(3))
        if _happens(self.affine):
            ranges = (self.affine.scales, self.affine.degrees, self.affine.translation, self.affine.isotropic)
            values = (tuple(value.tolist()) for value in self.affine.get_params(*ranges))
            drawn.update(zip(("scales", "degrees", "translation"), values, strict=True), center=self.affine.center)
        if _happens(self.elastic):
            drawn["control_points"] = self.elastic.get_params(
                self.elastic.num_control_points, self.elastic.max_displacement, self.elastic.num_locked_borders
            )
        transform = Spatial(**drawn, background=self.background, include=self.include, exclude=self.exclude)
        return None if transform.is_identity else transform

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw a transform, apply it and write it in the subject's history."""
        return _apply_recorded(self.draw(), subject)


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
        scalars = [image for image in images if isinstance(image, tio.ScalarImage)]
        label_maps = [image for image in images if isinstance(image, tio.LabelMap)]
        if not images or self.is_identity:
            return subject
        try:
            subject.check_consistent_space()
        except RuntimeError as error:
            raise VolumeError(
                f"augmentation: the images {list(subject.get_images_dict(intensity_only=False))} of a subject lie on "
                "different grids; expected one grid. Resample the study before it is augmented."
            ) from error
        order = _memory_order(images[0].data)
        affine = (RAS_TO_LPS @ images[0].affine)[:, [*order, 3]]
        volume, labels = self.arrays(_stack(scalars, order), _stack(label_maps, order), affine)
        _unstack(volume, scalars, order)
        _unstack(labels, label_maps, order)
        return subject

    def arrays(
        self, volume: Tensor | None, labels: Tensor | None, affine: Floats
    ) -> tuple[Tensor | None, Tensor | None]:
        """Resample arrays whose axes `affine` (4x4, index to LPS mm) describes.

        Args:
            volume: [C, *shape] float, or None.
            labels: [L, *shape] of any type, or None.
            affine: From an index along the three array axes to LPS mm.

        Returns:
            New tensors like `volume` and `labels`.
        """
        if self.is_affine_identity and self.control_points is None:
            axes = [1 + int(a) for a, (p, _) in enumerate(nib.io_orientation(affine)) if self.flips[int(p)]]
            return tuple(None if x is None else x.flip(axes) for x in (volume, labels))  # type: ignore[return-value]
        mapping = _sampling_map(self, (volume if volume is not None else labels).shape[1:], affine)  # type: ignore[union-attr]
        if volume is not None:
            volume = _resample(volume, mapping, "bilinear", _background_of(volume, self.background))
        if labels is not None:
            labels = _resample(labels, mapping, "nearest", labels.new_zeros(len(labels)))
        return volume, labels


class RandomIntensity(tio.transforms.augmentation.RandomTransform, tio.IntensityTransform):  # type: ignore[misc]
    """Gamma, bias field and noise in one pass over the voxels that are not background.

    As TorchIO's three transforms in this order, but every channel has its own draws and background stays constant.

    Args:
        gamma: What to draw powers from, or None.
        bias_field: What to draw polynomial coefficients from, or None.
        noise: What to draw mean, standard deviation and seed from, or None.
        background: See `Augmentation`.
        **kwargs: See `torchio.Transform`.
    """

    def __init__(
        self,
        gamma: tio.RandomGamma | None = None,
        bias_field: tio.RandomBiasField | None = None,
        noise: tio.RandomNoise | None = None,
        background: Background = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_fusable(gamma=gamma, bias_field=bias_field, noise=noise)
        self.gamma: Any = gamma
        self.bias_field: Any = bias_field
        self.noise: Any = noise
        self.background = background

    def draw(self, channels: int) -> Intensity | None:
        """Return the transform for one study of so many channels, or None if nothing happens to it."""
        gamma = coefficients = noise = None
        if _happens(self.gamma):
            gamma = [float(self.gamma.get_params(self.gamma.log_gamma_range)) for _ in range(channels)]
        if _happens(self.bias_field):
            bounds = (self.bias_field.order, self.bias_field.coefficients_range)
            coefficients = [self.bias_field.get_params(*bounds) for _ in range(channels)]
        if _happens(self.noise):
            bounds = (self.noise.mean_range, self.noise.std_range)
            noise = [self.noise.get_params(*bounds) for _ in range(channels)]
        if gamma is None and coefficients is None and noise is None:
            return None
        return Intensity(
            gamma=gamma,
            coefficients=coefficients,
            noise=noise,
            background=self.background,
            include=self.include,
            exclude=self.exclude,
        )

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw a transform, apply it and write it in the subject's history."""
        return _apply_recorded(self.draw(sum(len(image.data) for image in self.get_images(subject))), subject)


class Intensity(tio.IntensityTransform):  # type: ignore[misc]
    """Power, then bias field, then noise, in one pass over the voxels that are not background.

    Args:
        gamma: The power of each channel, counted over all images of the subject, or None.
        coefficients: For each channel the polynomial coefficients of the bias field, in TorchIO's order, or None.
        noise: For each channel mean, standard deviation and seed, or None.
        background: See `Augmentation`.
        **kwargs: See `torchio.Transform`.
    """

    def __init__(
        self,
        gamma: Sequence[float] | None = None,
        coefficients: Sequence[Sequence[float]] | None = None,
        noise: Sequence[tuple[float, float, int]] | None = None,
        background: Background = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gamma, self.coefficients, self.noise, self.background = gamma, coefficients, noise, background
        self.args_names = ["gamma", "coefficients", "noise", "background"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Change the intensities of all scalar images of a subject."""
        return _on_scalars(self.get_images(subject), self.array, subject)

    def array(self, volume: Tensor, order: Sequence[int]) -> Tensor:
        """Return the changed volume.

        Args:
            volume: [C, *shape] float.
            order: Which axis of TorchIO's W, H, D each array axis is; the bias field is defined along those.

        Returns:
            A new tensor like `volume`.
        """
        out = volume.clone(memory_format=torch.contiguous_format)
        background = _background_of(volume, self.background)
        # Channel by channel: the temporaries are small enough for the allocator to use the same memory again.
        for channel, fill in enumerate(background):
            box = _occupied(volume[channel, None], fill[None])
            if box is None:
                continue
            before = out[channel][box]
            after = before.clone()
            field = None
            if self.coefficients is not None:
                field = _log_bias_field(self.coefficients[channel], volume.shape[1:], order, box).to(volume.device)
            if self.gamma is not None:
                # sign(x) |x|^gamma exp(field): one exponential for both effects.
                after.abs_().clamp_(min=1e-30).log_().mul_(self.gamma[channel])  # the logarithm of 0 is slow
                after = (after if field is None else after.add_(field)).exp_().copysign_(before)
            elif field is not None:
                after.mul_(field.exp_())
            if self.noise is not None:
                mean, std, seed = self.noise[channel]
                generator = torch.Generator(volume.device).manual_seed(seed)
                after.add_(torch.empty_like(after).normal_(mean, std, generator=generator))
            before.copy_(torch.where(before == fill, before, after))
        return out


class RandomSequenceDropout(tio.transforms.augmentation.RandomTransform, tio.IntensityTransform):  # type: ignore[misc]
    """Blank one sequence chosen at random, so that the network learns to do without it; never the only one.

    Args:
        background: See `Augmentation`.
        missing: "error" if no study may lack a sequence; then none is blanked, whatever `p`.
        p: Probability that a study loses a sequence.
        **kwargs: See `torchio.Transform`.
    """

    def __init__(
        self,
        background: Background = 0.0,
        missing: Literal["error", "zero"] = "zero",
        p: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(p=p if missing == "zero" else 0.0, **kwargs)
        self.background = background

    def draw(self, channels: int) -> SequenceDropout | None:
        """Return the transform for one study of so many channels, or None if nothing happens to it."""
        if channels < 2:
            return None
        channel = int(torch.randint(channels, (1,)))
        return SequenceDropout(channel, self.background, include=self.include, exclude=self.exclude)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Choose a channel, blank it and write so in the subject's history."""
        channels = sum(len(image.data) for image in self.get_images(subject))
        return _apply_recorded(self.draw(channels), subject)


class SequenceDropout(tio.IntensityTransform):  # type: ignore[misc]
    """Set one channel, counted over all images of the subject, to background."""

    def __init__(self, channel: int, background: Background = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channel, self.background = channel, background
        self.args_names = ["channel", "background"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Blank the channel."""
        return _on_scalars(self.get_images(subject), self.array, subject)

    def array(self, volume: Tensor, order: Sequence[int]) -> Tensor:
        """Return a new [C, *shape] volume with the channel blanked."""
        out = volume.clone()
        out[self.channel] = _background_of(volume, self.background)[self.channel]
        return out


@dataclass(frozen=True)
class _SamplingMap:
    """From output voxels to input voxels, as a tensor product of splines.

    Attributes:
        control_points: [k0, k1, k2, 3] input voxel of every control point.
        bases: Per axis, [size, k] weight of every control point at every output voxel.
        affine: [4, 4] output voxel to input voxel, without the elastic part.
        reach: Per axis, the largest elastic displacement in voxels.
    """

    control_points: Floats
    bases: tuple[Floats, Floats, Floats]
    affine: Floats
    reach: Floats

    def seen_from(self, box: Box) -> Box:
        """Return the output box outside which nothing of an input box is seen; it may be empty."""
        corners = np.stack(np.meshgrid(*([part.start - 1, part.stop] for part in box), indexing="ij"), -1)
        inverse = np.linalg.inv(self.affine)
        corners = corners.reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
        sizes = [len(basis) for basis in self.bases]
        starts = np.clip(np.floor(corners.min(0) - self.reach), 0, sizes).astype(int)
        stops = np.clip(np.ceil(corners.max(0) + self.reach) + 1, 0, sizes).astype(int)
        return tuple(map(slice, starts.tolist(), stops.tolist()))  # type: ignore[return-value]

    def grid(self, output: Box, source: Box, device: torch.device) -> Tensor:
        """Return the [1, *output shape, 3] grid with which `grid_sample` fills an output box from a source box."""
        starts, stops = np.array([part.start for part in source]), np.array([part.stop for part in source])
        points = (2 * (self.control_points - starts) + 1) / (stops - starts) - 1
        dense, x, y, z = (
            torch.from_numpy(values.copy()).to(device, torch.float32)
            for values in (points[..., ::-1], *map(np.ndarray.__getitem__, self.bases, output))
        )
        # The three coordinates stay apart in memory: faster here, and as fast in grid_sample.
        dense = torch.einsum("ijkc,xi->cxjk", dense, x)
        dense = torch.einsum("cxjk,yj->cxyk", dense, y)
        return torch.einsum("cxyk,zk->xyzc", dense, z)[None]


def _sampling_map(transform: Spatial, shape: Sequence[int], affine: Floats) -> _SamplingMap:
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


def _affine_lps(transform: Spatial, center: Floats) -> Floats:
    """Return the 4x4 map from input to output in LPS mm: first the turn and shift, then the scaling, as in TorchIO."""
    to_lps = np.diag(RAS_TO_LPS)[:3]
    x, y, z = to_lps * transform.degrees
    turn, scale = np.eye(4), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("ZXY", [z, x, y], degrees=True).as_matrix()
    turn[:3, 3] = center - turn[:3, :3] @ center + to_lps * transform.translation
    scale[:3, :3] = np.diag(transform.scales)
    scale[:3, 3] = center - scale[:3, :3] @ center
    return scale @ turn


def _cubic_basis(size: int, points: int) -> tuple[Floats, Floats]:
    """Return where control points lie along an axis, [points] in voxels, and their weights [size, points] per voxel."""
    start, spacing = -0.5 - DOMAIN_MARGIN_VOXELS, (size + 2 * DOMAIN_MARGIN_VOXELS) / (points - SPLINE_ORDER)
    knots = start + spacing * (np.arange(points + SPLINE_ORDER + 1) - SPLINE_ORDER)
    weights: Floats = BSpline.design_matrix(np.arange(size, dtype=float), knots, SPLINE_ORDER).toarray()
    return np.float64(start) + spacing * (np.arange(points) - 1), weights


def _warn_of_folding(displacement_mm: Floats, shape: Sequence[int], affine: Floats) -> None:
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
    """Return [C, *shape] resampled through the map; `background` [C] fills what comes from outside."""
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for channel, value in zip(out, background, strict=True):  # torch 2.14 copies one value to many slowly in parallel
        channel.fill_(value)
    occupied = _occupied(tensor, background)
    if occupied is None:
        return out
    # grid_sample fills with zero, so background is moved to zero. Channels last: one fetch brings all of them.
    fill = background.float()[:, None, None, None]
    source = (tensor[(slice(None), *occupied)].float() - fill)[None]
    source = source.contiguous(memory_format=torch.channels_last_3d)
    seen = mapping.seen_from(occupied)

    def resample(rows: slice) -> None:
        part = (rows, *seen[1:])
        grid = mapping.grid(part, occupied, tensor.device)
        sampled = grid_sample(source, grid, mode, "zeros", align_corners=False)[0]
        out[(slice(None), *part)] = sampled.add_(fill).to(tensor.dtype)

    # torch 2.14 gives each volume of a batch one core, and this is one volume.
    slabs = torch.get_num_threads() if tensor.device.type == "cpu" else 1
    edges = np.linspace(seen[0].start, seen[0].stop, slabs + 1).astype(int).tolist()
    map_in_threads(resample, [slice(*ends) for ends in pairwise(edges) if ends[0] < ends[1]])
    return out


def _occupied(tensor: Tensor, background: Tensor) -> Box | None:
    """Return the smallest box that holds every voxel of [C, *shape] that is not background [C], or None."""
    mask = tensor[0] != background[0]
    for channel, fill in zip(tensor[1:], background[1:], strict=True):
        mask |= channel != fill
    occupied = mask.view(torch.uint8)  # the maximum of bytes is 20 times faster than `any` of booleans (torch 2.14)
    plane = occupied.amax(0)
    box = []
    for line in (occupied.flatten(1).amax(1), plane.amax(1), plane.amax(0)):
        inside = line.nonzero()
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)  # type: ignore[return-value]


def _log_bias_field(coefficients: Sequence[float], shape: Sequence[int], order: Sequence[int], box: Box) -> Tensor:
    """Return the logarithm of TorchIO's bias field inside a box: a polynomial along axes that run from -1 to 1.

    Source: Van Leemput et al. 1999, IEEE TMI 18(10):885, as in `torchio.BiasField`.
    """
    degree = next(d for d in range(len(coefficients) + 1) if math.comb(d + 3, 3) == len(coefficients))
    cube = np.zeros((degree + 1,) * 3)
    exponents = [(i, j, k) for i in range(degree + 1) for j in range(degree + 1 - i) for k in range(degree + 1 - i - j)]
    cube[tuple(np.transpose(exponents))] = coefficients
    field = torch.from_numpy(cube.transpose(order)).float()
    for size, part in zip(shape, box, strict=True):
        line = torch.linspace(-1, 1, size)[part] if size > 1 else torch.zeros(1)
        field = torch.tensordot(field, torch.stack([line**i for i in range(degree + 1)]), ([0], [0]))
    return field


def _background_of(volume: Tensor, background: Background) -> Tensor:
    if background == "minimum":
        return volume.amin((1, 2, 3))
    return volume.new_full((len(volume),), float(background))


def _memory_order(data: Tensor) -> tuple[int, int, int]:
    """Return the spatial axes of [C, W, H, D] from the one with the largest stride to the one with the smallest."""
    return tuple(sorted(range(3), key=lambda axis: -data.stride(axis + 1)))  # type: ignore[return-value]


def _stack(images: Sequence[tio.Image], order: Sequence[int]) -> Tensor | None:
    """Return all channels of the images, [C, *shape], with axes in memory order."""
    tensors = [image.data.permute(0, *(axis + 1 for axis in order)) for image in images]
    return None if not tensors else tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _unstack(volume: Tensor | None, images: Sequence[tio.Image], order: Sequence[int]) -> None:
    if volume is None:
        return
    volume = volume.permute(0, *(1 + order.index(axis) for axis in range(3)))
    for image, channels in zip(images, torch.split(volume, [len(image.data) for image in images]), strict=True):
        image.set_data(channels)


def _on_scalars(
    images: Sequence[tio.Image], change: Callable[[Tensor, Sequence[int]], Tensor], subject: tio.Subject
) -> tio.Subject:
    if images:
        order = _memory_order(images[0].data)
        volume = _stack(images, order)
        assert volume is not None
        _unstack(change(volume.float(), order), images, order)
    return subject


def _apply_recorded(transform: Any, subject: tio.Subject) -> tio.Subject:
    """Apply without a second deep copy of the voxels, which TorchIO's call would make."""
    if transform is not None:
        subject = transform.apply_transform(subject)
        subject.add_transform(transform, transform._get_reproducing_arguments())
    return subject


def _happens(transform: Any) -> bool:
    return transform is not None and torch.rand(1).item() < transform.probability


def _check_fusable(**entries: Any) -> None:
    for name, entry in entries.items():
        if entry is None:
            continue
        wrong = {
            "axes": [axis for axis in getattr(entry, "axes", ()) if str(axis)[0].upper() not in PATIENT_AXES],
            "image_interpolation": getattr(entry, "image_interpolation", "linear") != "linear",
            "label_interpolation": getattr(entry, "label_interpolation", "nearest") != "nearest",
            "default_pad_label": getattr(entry, "default_pad_label", 0) != 0,
            "include": entry.include is not None,
            "exclude": entry.exclude is not None,
            "keep": entry.keep is not None,
        }
        for key, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(
                    f"augment.{name}.{key}: is {getattr(entry, key)!r}; expected axes named by anatomy such as 'LR', "
                    "linear interpolation of images, nearest neighbour for labels padded with 0, and all images. "
                    "Correct the key or set augment.fused=false."
                )


@contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let TorchIO, which draws from torch's global generator, draw from another one."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
