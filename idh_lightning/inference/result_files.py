"""Names of the files that a prediction writes: flat in one folder, or as BIDS derivatives with their sidecars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import idh_lightning
from idh_lightning.errors import CohortError
from idh_lightning.files import write_json, write_text

BIDS_VERSION = "1.10.0"

_FLAT = {"map": "_cam.nii.gz", "tumour": "_tumour.nii.gz", "picture": ".png", "page": ".html"}
"""Kind of file -> end of its name; others, DICOM, are _<kind>."""

_BIDS_IMAGES = {"map": "space-orig_desc-attribution_cam", "tumour": "space-orig_desc-tumour_mask"}
"""Entities and suffix. BIDS has no suffix for a map of attribution, so that `cam` stands in .bidsignore."""

_WORDS = {
    "map": "Where the network looks: 0 to 1, relative to the greatest value of the study",
    "tumour": "Tumour as a network found it: 0 and 1. Nobody has checked it",
}

_IGNORED = ("*.html", "predictions.*", "series.csv", "dicom/", "figures", "*_cam.*", "*.dcm")
"""Of .bidsignore. The validator, 3.0.2, passes over no folder whose line ends in a slash."""

_STUDY = re.compile(r"sub-(?P<subject>[A-Za-z0-9]+)(?:_ses-(?P<session>[A-Za-z0-9]+))?")


@dataclass(frozen=True)
class ResultFolder:
    """Folder for the results of predictions.

    Attributes:
        folder: Of the tables, above the results of all studies.
        bids: Whether it is laid out as BIDS derivatives, else flat.
        source: Of the images: a BIDS dataset is linked to, other files are named.
    """

    folder: Path
    bids: bool = False
    source: Path | None = None

    def file(self, study_id: str, kind: str) -> Path:
        """Path of a study's map, tumour, picture or page, or of anything else by the end of its name."""
        if not self.bids:
            return self.folder / f"{study_id}{_FLAT.get(kind, f'_{kind}')}"
        subject, session = _labels(study_id)
        name = subject if not session else f"{subject}_{session}"
        if kind == "page":
            return self.folder / f"{name}.html"
        if kind == "picture":
            return self.folder / subject / "figures" / f"{name}_summary.png"
        place = self.folder / subject / session / "anat"
        return place / (f"{name}_{_BIDS_IMAGES[kind]}.nii.gz" if kind in _BIDS_IMAGES else f"{name}_{kind}")

    def begin(self, study_ids: Sequence[str]) -> None:
        """Make the folder; of BIDS derivatives, write what describes them.

        Raises:
            CohortError: If BIDS would give two studies one name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.bids:
            return
        named: dict[tuple[str, str], str] = {}
        for study_id in study_ids:
            other = named.setdefault(_labels(study_id), study_id)
            if other != study_id:
                raise CohortError(
                    f"output_layout: found bids, where the studies {other} and {study_id} are both "
                    f"{'_'.join(filter(None, _labels(study_id)))}, since a BIDS label has letters and digits only; "
                    "expected names that differ in those. Rename one, or leave output_layout out."
                )
        description: dict[str, object] = {
            "Name": "Predictions from MRI by idh_lightning; research software, not for clinical use",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "idh_lightning", "Version": idh_lightning.__version__}],
        }
        if dataset := self._dataset:
            description["DatasetLinks"] = {"raw": dataset.as_uri()}
        write_json(self.folder / "dataset_description.json", description)
        write_text(self.folder / ".bidsignore", "\n".join(_IGNORED) + "\n")

    def describe(self, study_id: str, kind: str, files: Mapping[str, Path], reference: str) -> None:
        """Write the sidecar of a map or a tumour, where BIDS asks for one.

        Args:
            study_id: Of the study.
            kind: "map" or "tumour".
            files: Sequence -> file, of what the network has seen.
            reference: Sequence on whose grid the result lies.
        """
        if not self.bids:
            return
        sidecar: dict[str, object] = {
            "Description": _WORDS[kind],
            "Sources": [self._uri(path) for path in files.values()],
            "SpatialReference": self._uri(files[reference]),
        }
        if kind == "tumour":
            sidecar["Type"] = "Lesion"
        write_json(Path(str(self.file(study_id, kind)).removesuffix(".nii.gz") + ".json"), sidecar)

    @cached_property
    def _dataset(self) -> Path | None:
        """Root of the BIDS dataset that the images belong to, or None."""
        if self.source is None:
            return None
        source = self.source.absolute()
        return next((each for each in (source, *source.parents) if (each / "dataset_description.json").is_file()), None)

    def _uri(self, path: Path) -> str:
        dataset, path = self._dataset, path.absolute()
        if dataset is not None and path.is_relative_to(dataset):
            return f"bids:raw:{quote(path.relative_to(dataset).as_posix())}"
        return path.as_uri()


def _labels(study_id: str) -> tuple[str, str]:
    """Folders of a study in BIDS: sub-..., and ses-... or nothing."""
    if found := _STUDY.fullmatch(study_id):
        return f"sub-{found['subject']}", f"ses-{found['session']}" if found["session"] else ""
    return f"sub-{re.sub(r'[^A-Za-z0-9]', '', study_id) or 'study'}", ""
