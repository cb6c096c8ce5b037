"""Doubts from the images themselves: a T1c is a T1 with enhancement, and fluid is bright in T2 and dark in FLAIR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from idh_lightning.volumes.registration import register, transform_of

COARSE_MM = 3.0

LEAST_ENHANCEMENT = -0.1
"""Skewness of T1c minus T1 below which the two look as if they had changed places.

Of 62 real studies (`examples/score_content.py`) 6 lie below, and 47 where the two files are exchanged."""

BRIGHTEST_FLUID = 0.4
"""Rank, among the voxels of the head, of FLAIR where T2 is brightest, above which it looks like a T2.

Of 9 real studies (the same example) none lies above, and all where the two files are exchanged."""

FLUID_SHOWS_MM = 3.0
"""Slices that thin show fluid by itself; in a FLAIR of 5 mm of a real study it was no darker than the rest."""


def doubts_of_content(files: Mapping[str, Path]) -> Iterator[str]:
    """Doubts about which file is which sequence, from their voxels on a coarse grid after registration."""
    if "T1" in files and "T1c" in files:
        found = enhancement(*_together(files["T1"], files["T1c"]))
        if found < LEAST_ENHANCEMENT:
            yield (
                f"T1c does not look like T1 with enhancement (skewness of the difference {found:.2f}; expected more "
                f"than {LEAST_ENHANCEMENT}): perhaps they have changed places. Look at them."
            )
    if (
        "FLAIR" in files
        and "T2" in files
        and all(_thickness_mm(files[name]) <= FLUID_SHOWS_MM for name in ("FLAIR", "T2"))
    ):
        found = fluid_rank(*_together(files["T2"], files["FLAIR"]))
        if found > BRIGHTEST_FLUID:
            yield (
                f"FLAIR is bright where T2 is brightest (rank {found:.2f}; expected less than {BRIGHTEST_FLUID}), so "
                "its fluid is not dark: perhaps it is another sequence. Look at it."
            )


def enhancement(t1: NDArray[np.float32], t1c: NDArray[np.float32]) -> float:
    """Skewness, by the outer 0.5%, of T1c minus T1 after both are scaled alike: positive where something enhances."""
    head = _head(t1) & (t1c > 0)
    if np.count_nonzero(head) < 500:
        return 0.0
    difference = _scaled(t1c[head]) - _scaled(t1[head])
    low, middle, high = np.percentile(difference, [0.5, 50, 99.5])
    return float((high + low - 2 * middle) / max(high - low, 1e-6))


def fluid_rank(t2: NDArray[np.float32], flair: NDArray[np.float32]) -> float:
    """Median rank, 0 to 1, of FLAIR within the head at the 3% of voxels where T2 is brightest."""
    head = _head(t2) & (flair > 0)
    if np.count_nonzero(head) < 500:
        return 0.0
    bright = t2[head] >= np.percentile(t2[head], 97)
    return float(np.mean(flair[head] < np.median(flair[head][bright])))


def _thickness_mm(file: Path) -> float:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return float(max(reader.GetSpacing()))


def _head(voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    above = voxels[voxels > 0]
    return np.asarray(voxels > (np.percentile(above, 20) if above.size else 0))


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return np.asarray((values - middle) / max(high - low, 1e-6))


def _together(first: Path, second: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Voxels of two images on the coarse grid of the first, to which the second one is registered."""
    image = sitk.ReadImage(str(first), sitk.sitkFloat32)
    grid = sitk.Shrink(image, [max(1, round(COARSE_MM / edge)) for edge in image.GetSpacing()])
    other = sitk.ReadImage(str(second), sitk.sitkFloat32)
    other = sitk.Resample(other, grid, transform_of(register(image, other)), sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(grid), sitk.GetArrayFromImage(other)
