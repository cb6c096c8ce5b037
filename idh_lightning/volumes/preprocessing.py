"""The images of a study -> one normalised volume on one grid: the same for the same files, always."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import sparse

from idh_lightning.cohort.study import SEQUENCES, Fault, Study
from idh_lightning.errors import ConfigError
from idh_lightning.volumes import checks, consistency
from idh_lightning.volumes.alignment import MASK, bring_to_one_grid, reference_of
from idh_lightning.volumes.brain import BrainRecord, bounding_box, find_brain
from idh_lightning.volumes.checks import FaultyStudyError, Place
from idh_lightning.volumes.reading import Geometry, fingerprint, header_geometry, read_header, read_voxels
from idh_lightning.volumes.registration import Registration

_BIAS_MM = 4.0
_EDGE_MM = {"brain": 200.0, "tumour": 96.0}


@dataclass(frozen=True, eq=False)
class Volume:
    """A study after preprocessing.

    Attributes:
        image: [C, D, H, W] float32, z-scores within the brain, 0 outside it and in a missing sequence.
        mask: [D, H, W] uint8, 1 = tumour, or None.
        brain: [D, H, W] uint8.
        presence: [C] float32, 0 where a sequence is missing.
        affine: [4, 4], voxel indices (w, h, d) of the grid to LPS mm.
        native: Geometry, as in its file, of the sequence on whose grid the others were brought: FLAIR, if it is there.
        fingerprints: Sequence -> hash of its voxels.
        found: How the brain was found.
        registrations: Of the sequences that were not in their place.
        faults: Warnings.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8] | None
    brain: NDArray[np.uint8]
    presence: NDArray[np.float32]
    affine: NDArray[np.float64]
    native: Geometry
    fingerprints: dict[str, str]
    found: BrainRecord
    registrations: tuple[Registration, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Preprocessing:
    """Reads a study, checks it, and brings it to a normalised volume on a fixed grid.

    Images are brought to LPS orientation and to the grid of FLAIR (of the finest sequence, where FLAIR is missing), and
    registered to it where they are not in their place; then the grid of the volume is laid over them.
    Its voxels are cubes of the same edge in every patient (200 mm / 65, say), not of an edge that follows the
    size of the head: a lesion of 3 cm has the same number of voxels in all, and a filter learnt on one scale meets
    that scale everywhere. Only a brain (or tumour) that would not fit makes its own cube larger.

    Intensities are clipped to percentiles of the brain and turned into z-scores of the brain. Outside the brain the
    volume is 0, the mean of the brain, in every study: air, skull and padding then look the same and teach nothing.

    Attributes:
        grid: Voxels along D, H, W; one number means a cube.
        crop: "brain" or "tumour": a cube around it; "none": the whole field of view, squeezed into the grid.
        missing: "error" refuses a study without all sequences; "zero" fills a missing one with 0.
        clip_percentiles: Of the brain's intensities, before z-scores.
        margin_mm: Least room around brain or tumour.
        edge_mm: Longest edge of the grid; by default 200 mm for the brain, 96 mm for the tumour.
        bias_correction: Whether each sequence is divided by its bias field (N4) before z-scores.
        registration: "auto" registers a sequence that lies on another grid, or is found shifted on the same one;
            "always" every sequence; "never" none: the headers are believed.
    """

    grid: int | Sequence[int] = 64
    crop: str = "brain"
    missing: str = "error"
    clip_percentiles: Sequence[float] = (0.5, 99.5)
    margin_mm: float = 4.0
    edge_mm: float | None = None
    bias_correction: bool = False
    registration: str = "auto"

    def __post_init__(self) -> None:
        grid = (self.grid,) * 3 if isinstance(self.grid, int) else tuple(self.grid)
        if len(grid) != 3 or not all(isinstance(n, int) and 8 <= n <= 512 for n in grid):
            raise ConfigError(f"data.grid is {self.grid}; expected one whole number or three, from 8 to 512.")
        if self.crop not in ("none", "brain", "tumour"):
            raise ConfigError(f"data.crop is {self.crop!r}; expected 'brain', 'tumour' or 'none'.")
        if self.missing not in ("error", "zero"):
            raise ConfigError(f"data.missing is {self.missing!r}; expected 'error' or 'zero'.")
        if self.registration not in ("auto", "always", "never"):
            raise ConfigError(f"data.registration is {self.registration!r}; expected 'auto', 'always' or 'never'.")
        clip = tuple(float(value) for value in self.clip_percentiles)
        if len(clip) != 2 or not 0.0 <= clip[0] < clip[1] <= 100.0:
            raise ConfigError(f"clip_percentiles is {self.clip_percentiles}; expected two rising numbers in 0..100.")
        if self.margin_mm < 0 or (self.edge_mm is not None and self.edge_mm <= 0):
            raise ConfigError(f"margin_mm is {self.margin_mm} and edge_mm {self.edge_mm}; expected lengths in mm.")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "clip_percentiles", clip)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W) of every volume."""
        return cast(tuple[int, int, int], self.grid)

    @property
    def voxel_mm(self) -> float:
        """Edge of the voxels around a tumour, else a brain, that fits into the grid; larger ones have larger voxels."""
        return (self.edge_mm or _EDGE_MM.get(self.crop, _EDGE_MM["brain"])) / max(self.shape)

    def settings(self) -> dict[str, Any]:
        """Return all that decides the result beside the files, as JSON types."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if not self.bias_correction:  # entries that were made before there was a choice keep their names
            del settings["bias_correction"]
        if self.registration == "auto":  # likewise; where it registers, the store adds the method to the name
            del settings["registration"]
        return settings

    def __call__(self, study: Study, sequences: Sequence[str] = SEQUENCES) -> Volume:
        """Return the study as a volume with one channel for each of the sequences.

        Raises:
            FaultyStudyError: With everything that is wrong, if any of it is an error.
        """
        files = {name: study.files[name] for name in sequences if name in study.files}
        if study.mask is not None:
            files[MASK] = study.mask
        images, geometries, faults = _read(study, files, sequences, self.missing)
        place = Place(study.study_id)
        if self.crop == "tumour" and study.mask is None:
            remedy = "Name its segmentation in the table, or set data.crop=brain."
            faults.append(place.fault("no_mask", "there is no mask", "a mask, as data.crop=tumour asks", remedy))
        if checks.is_error(faults):
            raise FaultyStudyError(faults)

        fingerprints = {name: fingerprint(sitk.GetArrayViewFromImage(images[name])) for name in images if name != MASK}
        faults += consistency.check_repeats_within(fingerprints, place)
        reference = reference_of(images, sequences)
        brain, stripped = find_brain(images[reference])
        brain_ml = np.count_nonzero(brain) * float(np.prod(images[reference].GetSpacing())) / 1000.0
        faults += consistency.check_brain(brain_ml, stripped, Place(study.study_id, files[reference].name))
        if checks.is_error(faults):
            raise FaultyStudyError(faults)
        images, registrations, found = bring_to_one_grid(study, images, reference, brain, self.registration)
        faults += found
        arrays = {name: sitk.GetArrayViewFromImage(image) for name, image in images.items()}
        if not checks.is_error(faults):
            shown = {name: image for name, image in images.items() if name != MASK}
            faults += consistency.check_lost_parts(shown, stripped=stripped, place=place)
        kept = None
        if MASK in arrays:
            kept = float(brain[arrays[MASK] != 0].mean())
            faults += consistency.check_mask_place(arrays[MASK], brain, Place(study.study_id, files[MASK].name))
        if checks.is_error(faults):
            raise FaultyStudyError(faults, registrations)

        if self.bias_correction:
            arrays |= {name: _bias_corrected(images[name], brain) for name in sequences if name in images}
        image, mask, inside, target = self.normalised(
            {name: arrays.get(name) for name in sequences},
            arrays.get(MASK),
            brain,
            Geometry.of(images[reference]),
            brain if self.crop == "brain" else arrays.get(MASK, brain) != 0,
        )
        presence = np.array([name in arrays for name in sequences], dtype=np.float32)
        faults += consistency.check_sides_by_content(
            image, None if mask is None else mask > 0, inside, presence.astype(bool).tolist(), sequences, place
        )
        return Volume(
            image=image,
            mask=mask,
            brain=inside.astype(np.uint8),
            presence=presence,
            affine=target.affine,
            native=geometries[reference],
            fingerprints=fingerprints,
            found=BrainRecord(volume_ml=brain_ml, extracted=not stripped, tumour_kept=kept, sequence=reference),
            registrations=registrations,
            faults=tuple(faults),
        )

    def normalised(
        self,
        sequences: Mapping[str, NDArray[np.float32] | None],
        labels: NDArray[Any] | None,
        brain: NDArray[np.bool_],
        source: Geometry,
        wanted: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.bool_], Geometry]:
        """Arrays [D, H, W] of one grid, laid on that of the volume and normalised within the brain.

        Args:
            sequences: Name -> intensities; None where a sequence is missing.
            labels: Of the tumour, 0 elsewhere; None without a mask.
            brain: Where the brain is.
            source: Grid of the arrays.
            wanted: Voxels around which the grid is laid; by default the brain.

        Returns:
            Image [C, D, H, W] of z-scores, mask and brain [D, H, W], and the grid.
        """
        target = self._target(source, brain if wanted is None else wanted)
        weights = _weights(source, target)
        share = resample(brain.astype(np.float32), weights)
        inside = share >= 0.5
        image = np.zeros((len(sequences), *self.shape), dtype=np.float32)
        for channel, voxels in enumerate(sequences.values()):
            if voxels is not None:
                # Averages over the brain alone, so that air does not darken the cortex.
                total = resample(np.where(brain, voxels, np.float32(0)), weights)
                image[channel][inside] = self._z_scores(total[inside] / share[inside])
        mask = None if labels is None else _tumour(resample((labels != 0).astype(np.float32), weights))
        return image, mask, inside, target

    def _z_scores(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if values.size == 0:
            return values
        clipped = np.clip(values, *np.percentile(values, self.clip_percentiles)).astype(np.float64)
        deviation = clipped.std()
        scores = (clipped - clipped.mean()) / (deviation if deviation > 0 else 1.0)
        return np.asarray(scores, dtype=np.float32)

    def _target(self, source: Geometry, wanted: NDArray[np.bool_]) -> Geometry:
        """Grid of the volume, its axes parallel to those of the source."""
        size = np.array(self.shape[::-1])
        spacing = np.array(source.spacing_mm)
        if self.crop == "none":
            first, last = np.zeros(3), np.array(source.size) - 1.0
            voxel_mm = np.array(source.size) * spacing / size
        else:
            box = bounding_box(wanted)[::-1]
            first, last = np.array([side.start for side in box]), np.array([side.stop - 1.0 for side in box])
            room_mm = (last - first + 1.0) * spacing + 2.0 * self.margin_mm
            voxel_mm = np.full(3, max(self.voxel_mm, *(room_mm / size)))
        centre = source.affine @ np.append((first + last) / 2.0, 1.0)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(source.direction, (3, 3)) * voxel_mm
        affine[:3, 3] = centre[:3] - affine[:3, :3] @ ((size - 1.0) / 2.0)
        return Geometry.from_affine(cast(tuple[int, int, int], tuple(size.tolist())), affine)


def _read(
    study: Study, files: dict[str, Path], sequences: Sequence[str], missing: str
) -> tuple[dict[str, sitk.Image], dict[str, Geometry], list[Fault]]:
    """Read all files of a study; return images in LPS orientation, geometries as in the files, and faults."""
    place = Place(study.study_id)
    absent = [name for name in sequences if name not in files]
    faults = []
    if absent and (missing == "error" or len(absent) == len(sequences)):
        remedy = "Add the files, exclude the study, or train with data.missing=zero."
        faults.append(place.fault("missing_sequence", f"{', '.join(absent)} is missing", "all sequences", remedy))
    images, geometries = {}, {}
    for name, path in files.items():
        spot = Place(study.study_id, path.name)
        try:
            header = read_header(path, spot)
            faults_here = list(checks.check_header(header, spot))
            faults += faults_here
            if checks.is_error(faults_here):
                continue
            image = read_voxels(path, header, spot)
        except FaultyStudyError as error:
            faults += error.faults
            continue
        voxels = sitk.GetArrayViewFromImage(image)
        if name == MASK:
            labels, found = checks.read_labels(voxels, spot)
            image = Geometry.of(image).image(labels)
        else:
            found = list(checks.check_voxels(voxels, spot))
        faults += found
        images[name], geometries[name] = _oriented(image), header_geometry(header)
    return images, geometries, faults


def _oriented(image: sitk.Image) -> sitk.Image:
    """Image in LPS orientation: itself where it is so already, since turning makes a copy."""
    found = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    return image if found == "LPS" else sitk.DICOMOrient(image, "LPS")


def _bias_corrected(image: sitk.Image, brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the voxels of an image divided by its bias field, which is estimated in the brain at 4 mm.

    The field is smooth, so a coarse image tells it in a second. Where half of the brain is not positive, the image is
    one of z-scores, which have no bias field left to divide by, and comes back as it is.

    Source: Tustison et al. 2010, IEEE TMI 29:1310 (N4), by SimpleITK.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    inside = brain & (voxels > 0)
    if 2 * np.count_nonzero(inside) <= np.count_nonzero(brain):
        return np.asarray(voxels)
    steps = [max(1, round(_BIAS_MM / mm)) for mm in image.GetSpacing()]
    mask = Geometry.of(image).image(inside.astype(np.uint8))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([25] * 3)
    n4.Execute(sitk.Shrink(image, steps), sitk.Shrink(mask, steps))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    return np.asarray(voxels / np.exp(field), dtype=np.float32)


def _weights(source: Geometry, target: Geometry) -> list[sparse.csr_array]:
    """Return, for D, H and W, the matrix [n_out, n_in] that resamples from source to a parallel target.

    Each output voxel is a weighted mean of input voxels under a triangle whose half-width is the wider of the two
    spacings: linear interpolation when voxels become smaller, and an anti-aliasing filter when they become larger
    (the "bilinear with antialias" of image libraries, along three axes). Two parallel grids need no more than this,
    and it takes 0.03 s for 240 x 240 x 155 voxels where Gaussian smoothing and resampling take 0.5 to 1 s.
    """
    start = np.linalg.solve(source.affine, target.affine @ [0.0, 0.0, 0.0, 1.0])[:3]
    matrices = []
    for axis in (2, 1, 0):
        step = target.spacing_mm[axis] / source.spacing_mm[axis]
        centres = start[axis] + step * np.arange(target.size[axis])
        width = max(1.0, step)
        # Positions beyond the ends are listed too, so that a voxel half outside gets half the weight.
        reach = int(np.ceil(width)) + 1
        columns = np.floor(centres)[:, None] + np.arange(-reach, reach + 1)
        triangle = np.clip(1.0 - np.abs(columns - centres[:, None]) / width, 0.0, None)
        triangle /= triangle.sum(axis=1, keepdims=True)
        rows = np.broadcast_to(np.arange(len(centres))[:, None], columns.shape)
        there = (columns >= 0) & (columns < source.size[axis]) & (triangle > 0)
        entries = (triangle[there].astype(np.float32), (rows[there], columns[there].astype(np.int64)))
        matrices.append(sparse.csr_array(entries, shape=(target.size[axis], source.size[axis])))
    return matrices


def resample(voxels: NDArray[np.float32], weights: Sequence[sparse.csr_array]) -> NDArray[np.float32]:
    """Return voxels [d, h, w] resampled to [D, H, W] by one matrix for each axis."""
    for matrix in weights:
        # Three turns of "resample the first axis, then put it last" bring the axes back to their order.
        first, *rest = voxels.shape
        flat = matrix @ np.ascontiguousarray(voxels.reshape(first, -1))
        voxels = np.moveaxis(flat.reshape(-1, *rest), 0, -1)
    return np.ascontiguousarray(voxels)


def _tumour(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the voxels that are at least half tumour, or those with most of it where a tumour is that small."""
    most = float(share.max())
    return (share >= min(0.5, most)).astype(np.uint8) if most > 0 else np.zeros(share.shape, dtype=np.uint8)
