"""The output folder: the same results under flat names and as BIDS derivatives, which the validator accepts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from tiny_checkpoint import tiny_cohort, write_checkpoint
from tiny_studies import write_study

from idh_lightning.cohort import new_studies
from idh_lightning.errors import CohortError
from idh_lightning.inference import Predictor
from idh_lightning.inference.result_files import ResultFolder

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    cohort = tiny_cohort(tmp_path_factory.mktemp("cohort"))
    return Predictor(write_checkpoint(tmp_path_factory.mktemp("runs") / "first", cohort))


def faults(dataset: Path) -> list[tuple[str, str]]:
    """Code and place of what the validator of BIDS calls an error."""
    done = subprocess.run([VALIDATOR, dataset, "--json"], capture_output=True, text=True, check=False, timeout=120)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert issues, "it recommends, at least, that somebody is named as author"
    return [(one["code"], one["location"]) for one in issues if one["severity"] == "error"]


@pytest.mark.slow
def test_results_as_bids_derivatives_are_valid_the_same_and_say_what_they_come_from(
    predictor: Predictor, tmp_path: Path
) -> None:
    source = tmp_path / "raw" / "sub-01" / "ses-2" / "anat"
    write_study(tmp_path / "new", "p", seed=100, mask=False)
    source.mkdir(parents=True)
    for sequence, end in {"FLAIR": "FLAIR", "T1": "T1w", "T1c": "ce-gd_T1w", "T2": "T2w"}.items():
        shutil.move(tmp_path / "new" / "p" / f"p_{sequence}.nii.gz", source / f"sub-01_ses-2_{end}.nii.gz")
    (tmp_path / "raw" / "dataset_description.json").write_text("{}")
    studies = new_studies(tmp_path / "raw")
    (flat,) = predictor.answers(studies, tmp_path / "flat")
    results = ResultFolder(tmp_path / "bids", bids=True, source=tmp_path / "raw")
    (answer,) = predictor.answers(studies, results)
    place = tmp_path / "bids" / "sub-01" / "ses-2" / "anat"
    assert answer.map_file == place / "sub-01_ses-2_space-orig_desc-attribution_cam.nii.gz"
    assert answer.map_file.read_bytes() == flat.map_file.read_bytes()
    assert answer.page == tmp_path / "bids" / "sub-01_ses-2.html"
    assert answer.page.read_text() == flat.page.read_text()
    assert (tmp_path / "bids" / "sub-01" / "figures" / "sub-01_ses-2_summary.png").is_file()
    tumour = results.file("sub-01_ses-2", "tumour")
    nib.save(nib.load(answer.map_file), tumour)
    results.describe("sub-01_ses-2", "tumour", studies[0].study.files, "FLAIR")
    sidecar = json.loads(Path(str(tumour).replace(".nii.gz", ".json")).read_text())
    assert sidecar["SpatialReference"] == "bids:raw:sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz"
    assert len(sidecar["Sources"]) == 4
    described = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert described["DatasetLinks"] == {"raw": (tmp_path / "raw").as_uri()}
    assert faults(tmp_path / "bids") == []
    shutil.copy(tumour, place / "sub-01_ses-2_space-orig_tumour.nii.gz")
    assert [code for code, _ in faults(tmp_path / "bids")].count("NOT_INCLUDED") == 1


def test_two_studies_that_bids_would_call_the_same_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    ResultFolder(tmp_path, bids=True).begin(["sub-01_ses-1", "sub-01_ses-2", "P 1"])
    with pytest.raises(CohortError, match=r"studies P_1 and P-1 are both sub-P1, .* leave output_layout out"):
        ResultFolder(tmp_path / "other", bids=True).begin(["P_1", "P-1"])
    assert not list((tmp_path / "other").iterdir())
