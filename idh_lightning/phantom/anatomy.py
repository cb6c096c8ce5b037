"""The normal brain of a synthetic patient: the MNI152 tissue maps, posed, warped and resampled on the scanner's grid.

Coordinates are in millimetres in the order of the arrays, [z, y, x], in LPS orientation: z grows to Superior, y to
Posterior, x to the patient's Left. "Template" coordinates have their origin at the anterior commissure of MNI152.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import distance_transform_edt, gaussian_filter, maximum_filter

_Floats = NDArray[np.float32]
_Bools = NDArray[np.bool_]
_Number = TypeVar("_Number", bound=np.generic)

FIELD_OF_VIEW_MM = (155.0, 240.0, 240.0)
"""Extent of a UCSF-PDGM volume, [z, y, x]: at 1 mm spacing 155 x 240 x 240 voxels."""

_FIELD_CENTRE_MM = np.array([77.0, -119.5, 119.5])
"""Centre of the field in the files' coordinates: the first voxel of the 1 mm grid lies at z 0, y -239, x 0."""

_BRAIN_CENTRE_MM = np.array([68.0, -111.0, 119.5])
"""Where the middle of the brain comes to lie in the field, as in the SRI24 space of UCSF-PDGM."""

_TEMPLATE_CENTRE_MM = np.array([5.0, 17.0, 0.0])
"""Middle of the bounding box of the MNI152 brain, template coordinates."""

_TEMPLATE_ZERO = (72, 98, 98)
"""Index of the template's origin in its arrays after they were turned to [z, y, x] LPS."""

LOBES: tuple[str, ...] = ("frontal", "temporal", "parietal", "occipital", "insular")

ANYWHERE = "anywhere"
"""In place of a lobe: all of the white matter, brain stem and cerebellum with it."""


@dataclass(frozen=True)
class Grid:
    """A grid of isotropic voxels: shape [D, H, W], spacing in mm, and the position [z, y, x] of the first voxel."""

    shape: tuple[int, int, int]
    spacing_mm: float
    origin_mm: tuple[float, float, float]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel."""
        return self.spacing_mm**3 / 1000.0

    def affine_ras(self) -> NDArray[np.float64]:
        """4x4 matrix from file index [i, j, k] = [w, h, d] to RAS millimetres, as NIfTI stores it."""
        z, y, x = self.origin_mm
        affine = np.diag([-self.spacing_mm, -self.spacing_mm, self.spacing_mm, 1.0])
        affine[:3, 3] = (-x, -y, z)
        return affine

    def crop(self, low: tuple[int, ...], high: tuple[int, ...]) -> Grid:
        """Part of the grid from index `low` up to but not including `high`."""
        depth, height, width = (int(stop - start) for start, stop in zip(low, high, strict=True))
        z, y, x = (o + self.spacing_mm * start for o, start in zip(self.origin_mm, low, strict=True))
        return Grid((depth, height, width), self.spacing_mm, (z, y, x))

    def axes(self) -> tuple[_Floats, _Floats, _Floats]:
        """Positions along z, y and x, shaped to broadcast to [D, H, W]."""
        z, y, x = (
            (o + self.spacing_mm * np.arange(n, dtype=np.float64)).astype(np.float32)
            for o, n in zip(self.origin_mm, self.shape, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]


def field_grid(spacing_mm: float) -> Grid:
    """Grid that fills the field of view of UCSF-PDGM with voxels of the given size."""
    shape = [round(extent / spacing_mm) for extent in FIELD_OF_VIEW_MM]
    z, y, x = _FIELD_CENTRE_MM - (np.array(shape) - 1) / 2 * spacing_mm
    return Grid((shape[0], shape[1], shape[2]), float(spacing_mm), (float(z), float(y), float(x)))


@dataclass(frozen=True)
class Template:
    """MNI152 2009a as tissue fractions at 1 mm, [D, H, W], 0..1: brain that is neither white nor grey is fluid."""

    white: _Floats
    grey: _Floats
    brain: _Floats

    @cached_property
    def near(self) -> _Bools:
        """Voxels [D, H, W] that are brain themselves, or one of the following ones along any axes is."""
        return np.asarray(maximum_filter(self.brain, size=2, origin=-1) > 0)


@lru_cache(maxsize=2)
def load_template(blur_mm: float = 0.0) -> Template:
    """MNI152 tissue maps that nilearn ships, smoothed against aliasing by Gaussians of standard deviation `blur_mm`."""
    if blur_mm > 0:
        sharp = load_template(0.0)
        return Template(*(gaussian_filter(m, blur_mm, truncate=2.5) for m in (sharp.white, sharp.grey, sharp.brain)))
    # Not above: that takes a second, and real cohorts need no template.
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    t1, grey, white = (
        np.ascontiguousarray(np.asarray(load(resolution=1).dataobj, dtype=np.float32)[::-1, ::-1, :].transpose(2, 1, 0))
        for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    )
    inside = t1 > 0
    return Template(white * inside, grey * inside, inside.astype(np.float32))


@lru_cache(maxsize=2)
def white_matter_points(depth_mm: float) -> _Floats:
    """Points [N, 3] in white matter, further than `depth_mm` below the surface of the brain: template coordinates."""
    template, step = load_template(), 2
    sparse = (slice(None, None, step),) * 3
    below_mm = step * distance_transform_edt(template.brain[sparse] > 0)
    index = np.argwhere((template.white[sparse] > 0.6) & (below_mm > depth_mm))
    return np.asarray(step * index - np.array(_TEMPLATE_ZERO), dtype=np.float32)


@lru_cache(maxsize=1)
def tumour_seeds() -> dict[tuple[str, str], _Floats]:
    """Points where a tumour may start, (lobe, side) -> [N, 3]: template coordinates in deep enough white matter."""
    position = white_matter_points(12.0)
    lobe = lobe_of(*position.T)
    return {
        (name, side): position[(lobe == number) & (position[:, 2] * sign > 0)]
        for number, name in enumerate(LOBES)
        for side, sign in (("left", 1), ("right", -1))
    }


def lobe_of(z: _Floats, y: _Floats, x: _Floats) -> NDArray[np.int8]:
    """Index in LOBES of each template position, -1 below the tentorium and close to the midline.

    The borders are planes through the central sulcus, the lateral fissure and the parieto-occipital sulcus: good to
    about a gyrus, which is all that a tumour's location needs.
    """
    z, y, x = np.broadcast_arrays(z, y, x)
    lateral = np.abs(x)
    lobe = np.full(z.shape, LOBES.index("parietal"), dtype=np.int8)
    # Central sulcus: from 8 mm in front of the commissure at the fissure to 30 mm behind it at the vertex.
    lobe[(y < -8.0 + 0.55 * z) & (z > -12)] = LOBES.index("frontal")
    lobe[y > 68] = LOBES.index("occipital")
    temporal = (z < 2 - 0.1 * (y + 20)) & (lateral > 24) & (y > -18) & (y < 62)
    lobe[temporal] = LOBES.index("temporal")
    lobe[(lateral > 26) & (lateral < 44) & (z > -6) & (z < 18) & (y > -22) & (y < 18)] = LOBES.index("insular")
    lobe[(lateral < 14) | ((z < -8) & (y > 30) & (lateral < 30)) | ((z < -16) & (y > 40)) | (z < -30)] = -1
    return lobe


@dataclass(frozen=True)
class Pose:
    """Where and how large the head lies in the field: rotation [3, 3], scale per axis [3] and shift in mm [3]."""

    rotation: NDArray[np.float64]
    scale: NDArray[np.float64]
    shift_mm: NDArray[np.float64]

    def to_template(self, grid: Grid) -> tuple[_Floats, _Floats, _Floats]:
        """Template coordinates z, y, x, each [D, H, W], of a grid's voxels."""
        centre = _BRAIN_CENTRE_MM + self.shift_mm
        z, y, x = _offset(grid.axes(), centre)
        inverse = (np.diag(1.0 / self.scale) @ self.rotation.T).astype(np.float32)
        turned = [row[0] * z + row[1] * y + row[2] * x for row in inverse]
        z, y, x = (t + np.float32(c) for t, c in zip(turned, _TEMPLATE_CENTRE_MM, strict=True))
        return z, y, x


def draw_pose(rng: np.random.Generator) -> Pose:
    """Random pose, as rigid registration to an atlas leaves it, and a brain of 1.2 to 1.7 litres.

    MNI152 is larger than most brains, hence a mean scale below one.
    """
    pitch, yaw, roll = np.deg2rad(np.clip(rng.normal(0, [2.0, 1.5, 1.5]), -5, 5))
    rotation = np.eye(3)
    for (a, b), angle in (((0, 1), pitch), ((1, 2), yaw), ((0, 2), roll)):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    scale = 0.915 * np.clip(rng.normal(1, 0.02), 0.95, 1.05) * np.clip(rng.normal(1, 0.01, 3), 0.97, 1.03)
    return Pose(rotation, scale, np.clip(rng.normal(0, [0.7, 1.5, 1.0]), -4, 4))


def smooth_field(grid: Grid, wavelength_mm: float, rng: np.random.Generator) -> _Floats:
    """Smooth random field [D, H, W] with mean 0 and standard deviation about 1.

    Normal numbers on a lattice half a wavelength apart, joined by cubic B-splines. The same field results on every
    spacing, and the sums run in a fixed order, so that the field does not depend on threads.
    """
    step = wavelength_mm / 2
    counts = [int(np.ceil(extent / step)) + 4 for extent in FIELD_OF_VIEW_MM]
    field: _Floats = rng.standard_normal(counts, dtype=np.float32)
    first = _FIELD_CENTRE_MM - np.array(FIELD_OF_VIEW_MM) / 2
    # The axis whose neighbours lie furthest apart comes last, since then the field is largest and is not rearranged.
    for axis in (2, 1, 0):
        position = grid.origin_mm[axis] + grid.spacing_mm * np.arange(grid.shape[axis]) - first[axis]
        place = np.clip(position / step, 0, counts[axis] - 4.001)
        splines = _cubic_splines(place, counts[axis])
        ahead = np.moveaxis(field, axis, 0)
        joined = splines @ np.ascontiguousarray(ahead.reshape(counts[axis], -1))
        field = np.moveaxis(joined.reshape(-1, *ahead.shape[1:]), 0, axis)
    # A cubic B-spline of white noise has variance 0.5 per axis on average (sum of its squared weights).
    field *= np.float32(0.479**-1.5)
    return field


def _cubic_splines(place: NDArray[np.float64], count: int) -> sparse.csr_array:
    """Matrix [N, count] that joins values at 0, 1, 2, ... to the value at each of N places."""
    base = place.astype(int)
    t = (place - base).astype(np.float32)
    cubic = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.stack(cubic, axis=1) / np.float32(6)
    columns = base[:, None] + np.arange(4)
    return sparse.csr_array((weights.ravel(), columns.ravel(), np.arange(0, 4 * len(base) + 1, 4)), (len(base), count))


@dataclass(frozen=True)
class Anatomy:
    """Normal tissue of a brain, before any tumour, as values [N] of its voxels; they are a third of the grid's.

    Attributes:
        grid: Just large enough for the brain.
        low: Index of its first voxel in the whole field.
        brain: [D, H, W], bool: where the N voxels are.
        white, grey, csf, vein: [N], fractions that add up to 1.
        z, y, x: [N], template coordinates of the voxels before the tumour pushed the tissue aside.
    """

    grid: Grid
    low: tuple[int, int, int]
    brain: _Bools
    white: _Floats
    grey: _Floats
    csf: _Floats
    vein: _Floats
    z: _Floats
    y: _Floats
    x: _Floats

    def placed(self, values: NDArray[_Number]) -> NDArray[_Number]:
        """Values [N] on the grid, [D, H, W]; 0 outside the brain."""
        whole = np.zeros(self.brain.shape, dtype=values.dtype)
        whole[self.brain] = values
        return whole

    def offset(self, centre: _Floats) -> list[_Floats]:
        """Distances from a point along z, y and x, template millimetres, each [N]."""
        return _offset((self.z, self.y, self.x), centre)

    def texture(self, wavelength_mm: float, rng: np.random.Generator) -> _Floats:
        """Smooth random field [N]; see `smooth_field`."""
        return smooth_field(self.grid, wavelength_mm, rng)[self.brain]

    def blurred(self, image: _Floats, sigma_mm: float) -> _Floats:
        """Image [D, H, W] smoothed by a Gaussian of this standard deviation."""
        return np.asarray(gaussian_filter(image, sigma_mm / self.grid.spacing_mm, truncate=2.5))

    @cached_property
    def wide_fluid(self) -> _Floats:
        """Fluid [D, H, W], 0..1, blurred until the sulci are hardly seen: what is left is ventricles and cisterns."""
        return self.blurred(self.placed(self.csf), 2.5)

    @cached_property
    def ventricle(self) -> _Floats:
        """Wide spaces of fluid [N], 0..1: the ventricles and cisterns but not the sulci."""
        return np.asarray(np.clip((self.wide_fluid[self.brain] - 0.35) / 0.3, 0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Push:
    """Mass effect: tissue within about `radius_mm` of a centre (template coordinates) is pressed outwards."""

    centre_mm: _Floats
    radius_mm: float
    strength: float


def make_anatomy(field: Grid, pose: Pose, pushes: list[Push], rng: np.random.Generator) -> Anatomy:
    """Normal tissue of a patient: the template posed, smoothly warped, and pressed aside by the tumour's foci.

    The mapping stays one-to-one for pushes of a strength below 1.
    """
    template = load_template(round(0.3 * field.spacing_mm, 3) if field.spacing_mm > 1 else 0.0)
    warp_seed, vein_seed = rng.spawn(2)
    atrophy = np.float32(rng.uniform(0.9, 1.4))
    grid, low = _brain_box(field, pose)
    z, y, x = pose.to_template(grid)
    for axis in (z, y, x):
        axis += 1.5 * smooth_field(grid, 60.0, warp_seed) + 0.5 * smooth_field(grid, 25.0, warp_seed)
    source = [z.copy(), y.copy(), x.copy()]
    for push in pushes:
        offset = _offset((z, y, x), push.centre_mm)
        distance2 = offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2
        pull = np.float32(push.strength) * np.exp(-distance2 / np.float32(2 * push.radius_mm**2))
        for axis, component in zip(source, offset, strict=True):
            axis -= component * pull
    index = np.stack([axis + np.float32(zero) for axis, zero in zip(source, _TEMPLATE_ZERO, strict=True)])
    inside = interpolated([template.brain], index, template.near)[0]
    brain = inside > 0.5
    places, within = index[:, brain], inside[brain]
    white, grey = interpolated([template.white, template.grey], places)
    # The maps are averages over many people; raising them to a power takes back some of the blur of averaging.
    power = np.float32(1.6)
    csf = (atrophy * np.clip(within - white - grey, 0, 1)) ** power
    white, grey = white**power, grey**power
    total = white + grey + csf
    total[total <= 1e-6] = 1
    white, grey = white / total, grey / total
    csf = 1 - white - grey
    # Veins run in the sulci; the sagittal sinus lies on the outer edge of the midline.
    sulcal = smooth_field(grid, 9.0, vein_seed)[brain] > 2.3
    outer = gaussian_filter(inside, 3.0 / grid.spacing_mm, truncate=2.0)[brain] < 0.72
    sinus = (np.abs(source[2][brain]) < 3.5) & outer & (source[0][brain] > 5)
    vein = np.where(sulcal | sinus, csf, 0).astype(np.float32)
    return Anatomy(grid, low, brain, white, grey, csf - vein, vein, z[brain], y[brain], x[brain])


def _offset(axes: Sequence[_Floats], centre: NDArray[Any]) -> list[_Floats]:
    return [axis - np.float32(c) for axis, c in zip(axes, centre, strict=True)]


_PLACES = 16384
"""Places to interpolate at once, so that all of it stays in the processor's cache."""


def interpolated(maps: Sequence[_Floats], index: _Floats, near: _Bools | None = None) -> list[_Floats]:
    """Maps [D, H, W] at places `index` [3, ...], linear in between; the outermost values go on outside.

    As `scipy.ndimage.map_coordinates` does it, which takes 2.4 times as long. `near` [D, H, W] is where one of the
    eight voxels from there on may differ from 0, so that there is something to compute.
    """
    shape = maps[0].shape
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(3)]
    places = index.reshape(3, -1)
    results = [np.zeros(places.shape[1], dtype=np.float32) for _ in maps]
    for start in range(0, places.shape[1], _PLACES):
        here = slice(start, start + _PLACES)
        corner, shares = np.zeros(len(results[0][here]), dtype=np.int64), []
        for along, count, stride in zip(places[:, here], shape, strides, strict=True):
            within = np.clip(along, 0, count - 1)
            base = np.minimum(within.astype(np.int32), count - 2)
            corner += base * stride
            shares.append(within - base.astype(np.float32))
        there = slice(None) if near is None else np.flatnonzero(near.ravel().take(corner))
        corner, shares = corner[there], [share[there] for share in shares]
        for result, values in zip(results, maps, strict=True):
            result[here][there] = _between(values.ravel(), corner, strides, shares)
    return [result.reshape(index.shape[1:]) for result in results]


def _between(flat: _Floats, corner: NDArray[np.int64], strides: Sequence[int], shares: Sequence[_Floats]) -> _Floats:
    """Join the two neighbours along the first axis, each joined along the other axes before."""
    if not shares:
        return np.asarray(flat.take(corner))
    near, far = (_between(flat, place, strides[1:], shares[1:]) for place in (corner, corner + strides[0]))
    far -= near
    far *= shares[0]
    far += near
    return far


def _brain_box(field: Grid, pose: Pose) -> tuple[Grid, tuple[int, int, int]]:
    """Part of the field that holds the posed brain with a margin of 8 mm for the warp, and its corner."""
    corners = np.array(np.meshgrid([-77, 77], [-90, 90], [-72, 72], indexing="ij")).reshape(3, -1)
    placed = pose.rotation @ (pose.scale[:, None] * corners) + (_BRAIN_CENTRE_MM + pose.shift_mm)[:, None]
    origin = np.array(field.origin_mm)
    # The corners of the box reach further than the round brain, so that they may lose a tenth.
    middle = placed.mean(axis=1, keepdims=True)
    placed = middle + 0.92 * (placed - middle)
    low = np.clip(np.floor((placed.min(axis=1) - 8 - origin) / field.spacing_mm), 0, None).astype(int)
    high = np.minimum(np.ceil((placed.max(axis=1) + 8 - origin) / field.spacing_mm).astype(int) + 1, field.shape)
    corner = (int(low[0]), int(low[1]), int(low[2]))
    return field.crop(corner, (int(high[0]), int(high[1]), int(high[2]))), corner
