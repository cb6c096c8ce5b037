"""Whether series of DICOM are read as dcm2niix reads them: python examples/score_dicom.py DCM2NIIX FOLDER ...

Each volume that can be used is compared with the nearest one that the program DCM2NIIX makes of the same files: the
greatest distance between their corners, and what is left of the values, as a share of the largest, after the one factor
that fits best. Volumes are turned to the same order of axes first; nothing is interpolated.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from idh_lightning.inference.dicom import dicom_series
from idh_lightning.inference.series import Series

SAME_MM, SAME_VALUE = 0.01, 1e-4


def converted(program: str, series: Series, folder: Path) -> list[Path]:
    """NIfTI files that dcm2niix makes of the files of a series."""
    files = {frame.header.path for frame in series.frames}
    for number, file in enumerate(sorted(files)):
        (folder / f"{number}.dcm").symlink_to(file.absolute())
    subprocess.run([program, "-b", "n", "-z", "n", "-f", "%s_%p", folder], check=False, capture_output=True)
    return sorted(folder.glob("*.nii"))


def volumes(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Affine and values of each volume in a NIfTI file, with the axes in one order; none of colours."""
    image = nib.as_closest_canonical(nib.load(path))
    if image.get_data_dtype().fields:
        return
    values = np.asarray(image.dataobj, dtype=np.float32)
    values = values.reshape(*values.shape[:3], -1) if values.ndim > 2 else values[..., None, None]
    for index in range(values.shape[3]):
        yield image.affine, values[..., index]


def difference(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Greatest distance between corners, mm, and greatest difference of values after the best factor, as a share."""
    (affine, values), (its_affine, its_values) = one, other
    if values.shape != its_values.shape:
        return float("inf"), float("inf")
    corners = np.array([*itertools.product(*((0, length - 1) for length in values.shape))])
    mm = np.linalg.norm(corners @ (affine - its_affine)[:3, :3].T + (affine - its_affine)[:3, 3], axis=1).max()
    factor = np.vdot(its_values, values) / max(float(np.vdot(its_values, its_values)), 1e-12)
    return round(float(mm), 3), float(
        np.abs(values - factor * its_values).max() / max(float(np.abs(values).max()), 1e-12)
    )


def row_of(program: str, series: Series, name: str) -> dict[str, object]:
    """What became of a series, and how far it is from the nearest volume of dcm2niix."""
    row = {"folder": name, "series": series.number, "description": series.description, "part": series.part}
    row |= {"slices": series.slices, "guess": series.guess, "problem": series.problem}
    if not series.problem:
        with tempfile.TemporaryDirectory() as folder:
            others = converted(program, series, Path(folder))
            (own,) = volumes(series.save(Path(folder) / "own.nii"))
            differences = (difference(own, other) for path in others for other in volumes(path))
            row["mm"], row["value"] = min(differences, default=(float("nan"), float("nan")))
    return row


def main(program: str, folders: list[str]) -> None:
    """Print the volumes of one of the four sequences and those that differ, and count them."""
    columns = ["folder", "series", "description", "part", "slices", "guess", "problem", "mm", "value"]
    found = [(one, Path(folder).name) for folder in folders for one in dicom_series(Path(folder))[0]]
    table = pd.DataFrame([row_of(program, *one) for one in found], columns=columns)
    used = table[table["problem"] == ""]
    alike = (used["mm"] <= SAME_MM) & (used["value"] <= SAME_VALUE)
    pd.set_option("display.width", 250, "display.max_rows", None, "display.max_colwidth", 60)
    print(table[(table["guess"] != "") | ~table.index.isin(used.index[alike])].to_string(index=False))
    for name, group in (("one of the four sequences", used["guess"] != ""), ("others", used["guess"] == "")):
        print(f"{name}: {(group & alike).sum()} of {group.sum()} volumes as dcm2niix has them")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", metavar="DCM2NIIX")
    parser.add_argument("folders", metavar="FOLDER", nargs="+")
    main(**vars(parser.parse_args()))
