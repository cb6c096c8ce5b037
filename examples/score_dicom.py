"""Whether series of DICOM are read as dcm2niix reads them: python examples/score_dicom.py DCM2NIIX FOLDER ...

Each volume that can be used is compared with the nearest one that the program DCM2NIIX makes of the same series: the
greatest distance between their corners, and what is left of the values, as a share of the largest, after the one factor
that fits best. Volumes are turned to the same order of axes first; nothing is interpolated.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from idh_lightning.inference.dicom import dicom_series

SAME_MM, SAME_VALUE = 0.01, 1e-4


def converted(program: str, folder: Path, output: Path) -> dict[str, list[Path]]:
    """SeriesInstanceUID, and SeriesNumber, -> files that dcm2niix makes of it."""
    command = [program, "-ba", "n", "-d", "9", "-z", "n", "-f", "%j_%s_%e_%p", "-o", str(output), str(folder)]
    subprocess.run(command, check=False, capture_output=True)
    found: dict[str, list[Path]] = defaultdict(list)
    for path in output.glob("*.json"):
        if path.with_suffix(".nii").is_file():
            tags = json.loads(path.read_text(errors="replace"))
            for keyword in ("SeriesInstanceUID", "SeriesNumber"):
                found[str(tags.get(keyword, ""))].append(path.with_suffix(".nii"))
    return found


def volumes(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Affine and values of each volume in a NIfTI file, with the axes in one order."""
    image = nib.as_closest_canonical(nib.load(path))
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
    return float(mm), float(np.abs(values - factor * its_values).max() / max(float(np.abs(values).max()), 1e-12))


def scored(program: str, folder: Path) -> list[dict[str, object]]:
    """A row for each volume of a folder."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        theirs = converted(program, folder, Path(place))
        series, _ = dicom_series(folder)
        left = {path for paths in theirs.values() for path in paths}
        for one in series:
            files = theirs[one.uid] or theirs[one.number.rstrip("abcdefgh")]
            left -= set(files)
            row = {"folder": folder.name, "series": one.number, "description": one.description, "part": one.part}
            row |= {"slices": one.slices, "guess": one.guess, "problem": one.problem}
            if not one.problem:
                (own,) = volumes(one.save(Path(place) / "own" / "volume.nii"))
                differences = (difference(own, other) for path in files for other in volumes(path))
                row["mm"], row["value"] = min(differences, default=(float("nan"), float("nan")))
            rows.append(row)
        problem = "seen by dcm2niix alone"
        rows += [{"folder": folder.name, "description": path.stem, "problem": problem} for path in sorted(left)]
    return rows


def main(program: str, folders: list[str]) -> None:
    """Print the volumes of one of the four sequences and those that differ, and count them."""
    columns = ["folder", "series", "description", "part", "slices", "guess", "problem", "mm", "value"]
    table = pd.DataFrame([row for folder in folders for row in scored(program, Path(folder))], columns=columns)
    used = table[table["problem"] == ""]
    alike = (used["mm"] <= SAME_MM) & (used["value"] <= SAME_VALUE)
    pd.set_option("display.width", 250, "display.max_rows", None, "display.max_colwidth", 60)
    print(table[(table["guess"].fillna("") != "") | ~table.index.isin(used.index[alike])].to_string(index=False))
    for name, group in (("one of the four sequences", used["guess"] != ""), ("others", used["guess"] == "")):
        print(f"{name}: {(group & alike).sum()} of {group.sum()} volumes as dcm2niix has them")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
