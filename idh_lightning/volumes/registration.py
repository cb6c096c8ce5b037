"""Rigid registration of one sequence of a study to another, within SimpleITK, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from idh_lightning.records import Record
from idh_lightning.volumes.information import PointSample, coarse, inside, mapped, points_of
from idh_lightning.volumes.reading import Geometry

_Affine = NDArray[np.float64]

REGISTRATION = "registered-1"
"""Stands in the names of store entries: another method, other entries."""

QUALITY_MM = 5.0
"""How far a sequence is moved off its place to see what that loses."""

_STEPS = ((8.0, 0.0, 4.0, 0.2), (4.0, 10.0, 2.0, 0.1), (2.0, 5.0, 0.5, 0.02))
"""Coarse to fine, in mm: voxel edge; room between a point and the faces of the other image; first and last step.

With that room the points are the same wherever the optimiser goes; points that drop out at a face would pull it."""

_RADIUS_MM = 80.0  # of the sphere over which a move is averaged
_TURN_MM = 50.0  # how far one radian moves a point of the brain, about: weighs turns against shifts
_SAMPLES, _BINS = 10_000, 32  # of the metric
_CHECK_MM, _CHECK_ROOM_MM = 4.0, 10.0  # of the quick check: voxel edge and step; room as above
_POINTS, _CHECK_POINTS, _SEED = 20_000, 8_000, 20


@dataclass(frozen=True)
class Registration(Record):
    """Place of one sequence of a study, as registration found it.

    Attributes:
        sequence: That was moved.
        reference: Onto whose grid.
        reason: "grid" where it lay on another one, "shift" where it was found shifted, "always" where that was asked.
        rows: [3, 4], row by row: LPS mm of the reference to LPS mm of the sequence's own header.
        moved_mm: Root mean square over a head of how far off its header had it.
        turned_degrees: By how much its header had it turned.
        quality: Share of the mutual information within the brain that moving it by 5 mm loses; near 0 at a wrong place.
    """

    sequence: str
    reference: str
    reason: str
    rows: tuple[float, ...]
    moved_mm: float
    turned_degrees: float
    quality: float

    @property
    def affine(self) -> _Affine:
        """[4, 4], LPS mm of the reference to LPS mm of the sequence's own header."""
        return np.vstack([np.reshape(self.rows, (3, 4)), [0.0, 0.0, 0.0, 1.0]])

    @property
    def words(self) -> str:
        """Sentence that says why and how far the sequence was moved, and the quality of it."""
        why = {"grid": "lay on another grid", "shift": "was found shifted", "always": "was to be registered"}[
            self.reason
        ]
        return (
            f"{self.sequence} {why}: it was moved by {self.moved_mm:.1f} mm and turned by {self.turned_degrees:.1f} "
            f"degrees to lie on {self.reference}, and the quality of this is {self.quality:.2f}"
        )


def register(fixed: sitk.Image, moving: sitk.Image) -> _Affine:
    """Rigid transform [4, 4] of LPS mm from a fixed to a moving image, of most mutual information.

    It begins where the headers lay the images, and with their centres of mass on each other. The same images give the
    same bits: the samples have one seed, and angles and millimetres are rounded to six digits, since the sums of
    several threads differ in their last bits.

    Source: Mattes et al. 2003, IEEE TMI 22:120, by SimpleITK.
    """
    fixed, moving = _as_thick_as(fixed, moving), _as_thick_as(moving, fixed)
    small, other = coarse(fixed, _STEPS[0][0]), coarse(moving, _STEPS[0][0])
    by_mass, by_header = _by_mass(small, other), sitk.Euler3DTransform()
    by_header.SetCenter(by_mass.GetCenter())
    sample = PointSample(small, Geometry.of(other), points_of(small, _POINTS, _SEED))
    found = [by_header, *(_improved(start, small, other, *_STEPS[0][1:]) for start in (by_header, by_mass))]
    best = max(found, key=lambda place: sample.information(other, affine_of(place))[0])
    for voxel_mm, *steps in _STEPS[1:]:
        best = _improved(best, coarse(fixed, voxel_mm), coarse(moving, voxel_mm), *steps)
    best.SetParameters(np.round(best.GetParameters(), 6).tolist())
    return affine_of(best)


class ShiftCheck:
    """Quick estimate of how far other images on the grid of an image are apart from it."""

    def __init__(self, fixed: sitk.Image) -> None:
        """Take the image that others are held against; nothing is computed before the first of them."""
        self.fixed = fixed
        self._samples: dict[Geometry, PointSample] = {}

    @cached_property
    def _centre(self) -> NDArray[np.float64]:
        return centre_of_mass(self.fixed)

    @cached_property
    def _moves(self) -> list[_Affine]:
        """No move, then a step ahead and one behind, about each axis and along it."""
        steps = [side * step for step in _CHECK_MM * np.eye(6) for side in (1, -1)]
        return [np.eye(4), *(_move(step, self._centre) for step in steps)]

    def _sample(self, grid: Geometry) -> PointSample:
        """Points for the images of a coarse grid."""
        if grid not in self._samples:
            small = coarse(self.fixed, _CHECK_MM)
            points = points_of(small, _CHECK_POINTS, _SEED)
            room = inside(list(mapped(grid.inverse, points).T), grid, _CHECK_ROOM_MM)
            self._samples[grid] = PointSample(small, grid, points[room])
        return self._samples[grid]

    def shift_mm(self, moving: sitk.Image) -> float:
        """Estimate of how far another image is from its place: root mean square over a head.

        Mutual information is looked at where the images lie, and a step ahead and behind along and about each axis;
        the parabola through these three tells where its top is. It is never told to be farther away than the step.
        """
        other = coarse(moving, _CHECK_MM)
        sample = self._sample(Geometry.of(other))
        if not len(sample.points):
            return 0.0
        here, *there = sample.information(other, *self._moves)
        tops = np.zeros(6)
        for axis, (ahead, behind) in enumerate(zip(there[::2], there[1::2], strict=True)):
            bend = 2 * here - ahead - behind
            top = _CHECK_MM * (ahead - behind) / (2 * bend) if bend > 0 else np.copysign(np.inf, ahead - behind)
            tops[axis] = np.clip(top, -_CHECK_MM, _CHECK_MM)
        return moved_mm(_move(tops, self._centre), self._centre)


def agreement(
    fixed: sitk.Image, moving: sitk.Image, brain: NDArray[np.bool_], affine: _Affine | None = None
) -> tuple[float, float]:
    """Mutual information within the brain, in nats, and the share of it that moving the second image by 5 mm loses.

    Where two images of one head are in place, information falls to every side. Of another head, or far from its place,
    it depends little on where the image is. What shuffled voxels share by chance is taken away from both.

    Args:
        fixed: Image of the brain.
        moving: Image that is compared.
        brain: [D, H, W], on the grid of the fixed image.
        affine: [4, 4], LPS mm of the fixed image to those of the moving one; by default the headers are believed.
    """
    affine = np.eye(4) if affine is None else affine
    small, other = coarse(fixed, _STEPS[-1][0]), coarse(moving, _STEPS[-1][0])
    random, grid = np.random.default_rng(_SEED), Geometry.of(other)
    voxels = np.argwhere(brain)[:, ::-1]
    chosen = voxels[random.integers(0, len(voxels), _POINTS)] + random.uniform(-0.5, 0.5, (_POINTS, 3))
    points = mapped(Geometry.of(fixed).affine, chosen)
    points = points[inside(list(mapped(grid.inverse @ affine, points).T), grid, 0.0)]
    if not len(points):
        return 0.0, 0.0
    sample = PointSample(small, grid, points)
    chance = sample.information(other, affine, shuffled=random)[0]
    here = sample.information(other, affine)[0] - chance
    moves = [side * QUALITY_MM * np.eye(6)[axis] for axis in (3, 4, 5) for side in (1, -1)]
    there = float(np.mean(sample.information(other, *(affine @ _move(steps) for steps in moves)))) - chance
    return here, float(np.clip(1 - there / here, 0.0, 1.0)) if here > 0 else 0.0


def centre_of_mass(image: sitk.Image) -> NDArray[np.float64]:
    """LPS mm of the centre of an image's intensities."""
    small = coarse(image, _STEPS[0][0])
    return np.array(_by_mass(small, small).GetCenter())


def moved_mm(affine: _Affine, centre_mm: NDArray[np.float64]) -> float:
    """Root mean square of how far a rigid affine [4, 4] moves the points of a sphere of 80 mm around a centre.

    Source: Jenkinson 1999, FMRIB technical report TR99MJ1.
    """
    turn = affine[:3, :3] - np.eye(3)
    shift = affine[:3, 3] + turn @ centre_mm
    return float(np.sqrt(_RADIUS_MM**2 / 5 * np.trace(turn.T @ turn) + shift @ shift))


def turned_degrees(affine: _Affine) -> float:
    """Angle by which a rigid affine [4, 4] turns."""
    turn = affine[:3, :3]
    twice_sine = np.linalg.norm([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    return float(np.degrees(np.arctan2(twice_sine, np.trace(turn) - 1)))


def affine_of(transform: sitk.Euler3DTransform) -> _Affine:
    """[4, 4] of a rigid transform."""
    turn, centre = np.reshape(transform.GetMatrix(), (3, 3)), np.array(transform.GetCenter())
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = np.array(transform.GetTranslation()) + centre - turn @ centre
    return affine


def transform_of(affine: _Affine) -> sitk.AffineTransform:
    """Transform of SimpleITK that does what an affine [4, 4] does."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(affine[:3, :3].ravel().tolist())
    transform.SetTranslation(affine[:3, 3].tolist())
    return transform


def _move(steps_mm: NDArray[np.float64], centre_mm: NDArray[np.float64] | None = None) -> _Affine:
    """[4, 4] of turns about three axes, given in mm at a point of the brain, and shifts along them."""
    move = sitk.Euler3DTransform()
    move.SetCenter((np.zeros(3) if centre_mm is None else centre_mm).tolist())
    move.SetRotation(*(steps_mm[:3] / _TURN_MM).tolist())
    move.SetTranslation(steps_mm[3:].tolist())
    return affine_of(move)


def _by_mass(fixed: sitk.Image, moving: sitk.Image) -> sitk.Euler3DTransform:
    """Shift that lays the centres of mass on each other; its centre is that of the fixed image."""
    kind = sitk.CenteredTransformInitializerFilter.MOMENTS
    return sitk.Euler3DTransform(sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), kind))


def _as_thick_as(image: sitk.Image, other: sitk.Image) -> sitk.Image:
    """Image blurred along axes along which the voxels of another one are at least twice as long as its own.

    The blur is as wide, at half of its height, as those voxels: of a thick slice and a sharp image, information is most
    beside their place.
    """
    axes, others = (np.reshape(one.GetDirection(), (3, 3)) for one in (image, other))
    lengths = np.linalg.norm((axes.T @ others) * other.GetSpacing(), axis=1)
    for axis, (length, own) in enumerate(zip(lengths.tolist(), image.GetSpacing(), strict=True)):
        if length >= 2 * own:
            sigma = float(np.sqrt(length**2 - own**2)) / 2.355
            image = sitk.RecursiveGaussian(image, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    return image


def _improved(
    start: sitk.Euler3DTransform, fixed: sitk.Image, moving: sitk.Image, room_mm: float, first_mm: float, last_mm: float
) -> sitk.Euler3DTransform:
    """Transform near the start that has more mutual information; the start itself where too little is shared."""
    grid, field = Geometry.of(fixed), Geometry.of(moving)
    to_index = field.inverse @ affine_of(start) @ grid.affine
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in grid.size), indexing="ij", sparse=True)
    indices = [row[0] * x + row[1] * y + row[2] * z + row[3] for row in to_index[:3]]
    shared = inside(indices, field, room_mm).T
    if (number := np.count_nonzero(shared)) < _BINS**2:
        return start
    place = sitk.Euler3DTransform(start)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(grid.image(shared.astype(np.uint8)))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, _SAMPLES / number), _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(first_mm, last_mm, 100, 0.5, 1e-8)
    method.SetOptimizerScales([_TURN_MM**2] * 3 + [1.0] * 3)
    method.SetInitialTransform(place, True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # nothing is shared any more
        return start
    return place
