"""How well registration finds known moves of the sequences of a table, and whether it leaves alone what is in place.

python examples/score_registration.py [TABLE] [EVERY], by default some synthetic patients; EVERY=3: each third study.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from idh_lightning.cohort import Study, Table
from idh_lightning.phantom import PhantomCohort
from idh_lightning.volumes import Geometry
from idh_lightning.volumes.alignment import SHIFT_MM, register_where_needed
from idh_lightning.volumes.brain import find_brain
from idh_lightning.volumes.information import mapped
from idh_lightning.volumes.registration import ShiftCheck, affine_of, transform_of, turned_degrees

MM, DEGREES = (2, 5, 10, 20), (1, 3, 5, 10)


def move(number: int, centre: np.ndarray) -> np.ndarray:
    """[4, 4] of a shift along one axis and a turn about one: all sizes, axes and signs as the number grows."""
    axis, about = number % 3, number // 3 % 3
    turn, shift = np.zeros(3), np.zeros(3)
    turn[about] = np.radians(DEGREES[number // 5 % 4]) * (-1) ** number
    shift[axis] = MM[number % 4] * (-1) ** (number // 2)
    return affine_of(sitk.Euler3DTransform(centre.tolist(), *turn.tolist(), shift.tolist()))


def thick(image: sitk.Image) -> sitk.Image:
    """Image with axial slices of 5 mm."""
    return sitk.BinShrink(image, [1, 1, max(1, round(5 / image.GetSpacing()[2]))])


def row(kind: str, fixed: sitk.Image, moving: sitk.Image, brain: np.ndarray, truth: np.ndarray) -> dict:
    """Error, mean over the brain, of what is found for a sequence that was moved; and how long that took."""
    began = time.process_time()
    found = register_where_needed(ShiftCheck(fixed), moving, brain, "FLAIR", "moved", "auto")
    seconds = time.process_time() - began
    affine = np.eye(4) if found is None else found.affine
    points = mapped(Geometry.of(fixed).affine, np.argwhere(brain)[::101, ::-1])
    apart = np.linalg.norm(mapped(affine, points) - mapped(truth, points), axis=1).mean()
    angle = turned_degrees(np.linalg.inv(truth) @ affine)
    quality = None if found is None else found.quality
    return {"kind": kind, "mm": apart, "degrees": angle, "quality": quality, "seconds": seconds, "left": found is None}


def scored(study: Study, before: dict[str, sitk.Image], number: int) -> tuple[list[dict], dict[str, sitk.Image]]:
    """Rows of a study's sequences, each moved in several ways; and its images. `before` are those of another head."""
    images = {
        name: sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS") for name, path in study.files.items()
    }
    fixed = images["FLAIR"]
    brain, _ = find_brain(fixed)
    flat = thick(fixed)
    slab = sitk.GetArrayFromImage(sitk.Resample(Geometry.of(fixed).image(brain.astype(np.float32)), flat)) > 0.5
    centre = mapped(Geometry.of(fixed).affine, np.argwhere(brain)[:, ::-1]).mean(axis=0)
    rows = []
    for name, image in images.items():
        if name == "FLAIR" or not Geometry.of(image).agrees_with(Geometry.of(fixed)):
            continue
        number += 1
        truth = move(number, centre)
        voxels = sitk.GetArrayFromImage(image)
        moved = Geometry.from_affine(image.GetSize(), truth @ Geometry.of(image).affine).image(voxels)
        anew = sitk.Resample(image, fixed, transform_of(np.linalg.inv(truth)), sitk.sitkLinear)
        these = [
            row("in place", fixed, image, brain, np.eye(4)) | {"shown": ShiftCheck(fixed).shift_mm(image)},
            row("moved header", fixed, moved, brain, truth),
            row("moved, same grid", fixed, anew, brain, truth) | {"shown": ShiftCheck(fixed).shift_mm(anew)},
        ]
        if flat.GetSize() != fixed.GetSize():
            these.append(row("moved header, FLAIR 5 mm", flat, moved, slab, truth))
        if name in before:
            other = before[name]
            far = Geometry.from_affine(other.GetSize(), truth @ Geometry.of(other).affine)
            these.append(row("another head", fixed, far.image(sitk.GetArrayFromImage(other)), brain, truth))
        rows += [{"study_id": study.study_id, "sequence": name, **one} for one in these]
        print(pd.DataFrame(rows[-len(these) :]).to_string(index=False, header=False, float_format="%.2f"), flush=True)
    return rows, images


def main() -> None:
    """Move every sequence of some studies, look for it, and print a summary."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            studies = Table(table=Path(sys.argv[1]), missing="zero").read().studies
        else:
            studies = PhantomCohort(folder, patients=10, spacing_mm=2.0, workers=1).read().studies[:3]
        rows, before = [], {}
        for study in studies[:: int(sys.argv[2]) if len(sys.argv) > 2 else 1]:
            if "FLAIR" in study.files:
                new, before = scored(study, before, len(rows))
                rows += new
    table = pd.DataFrame(rows)
    for kind, group in table.groupby("kind", sort=False):
        words = f"{kind}: {len(group)} sequences; "
        if kind != "another head":
            mm, degrees = group["mm"], group["degrees"]
            words += (
                f"off by {mm.median():.2f} mm (worst {mm.max():.2f}) and {degrees.median():.2f} degrees (worst "
                f"{degrees.max():.2f}), {np.mean((mm > 1) | (degrees > 1)):.0%} beyond 1; "
            )
        if kind in ("in place", "moved, same grid"):
            words += (
                f"quick check sees {np.mean(group['shown'] >= SHIFT_MM):.0%}, {group['left'].mean():.0%} left alone; "
            )
        quality = group["quality"].dropna()
        words += f"quality {quality.min():.2f} to {quality.max():.2f}, median {quality.median():.2f}; "
        print(f"{words}{group['seconds'].median():.1f} s of one core")


if __name__ == "__main__":
    main()
