"""Extraction of the brain from a head with its skull: the networks as files, their frame, and real heads."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_studies import write_study

from idh_lightning.cohort.study import SEQUENCES, Cohort, Study
from idh_lightning.commands.preparing import brains_table, write_study_panels
from idh_lightning.errors import ModelError
from idh_lightning.volumes import FaultyStudyError, Preprocessing, VolumeStore, extraction


def head(shape, spacing, bright):
    """Return an image [D, H, W] in LPS orientation that is 100 where `bright` and noise of 0 to 10 elsewhere."""
    voxels = np.where(bright, 100.0, np.random.default_rng(0).uniform(0, 10, shape)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    return image


def bright_voxels(scaled):
    """Answer [1, 2, X, Y, Z] of a network that takes what is bright for brain."""
    brain = (scaled > 0.5 * (scaled.min() + scaled.max())).float()
    return torch.cat([1 - brain, brain], dim=1)


@pytest.fixture
def naive(monkeypatch):
    """Take what is bright for brain, and leave the mask as large as it is."""
    monkeypatch.setattr(extraction, "_networks", lambda: (bright_voxels, bright_voxels))
    monkeypatch.setattr(extraction, "_GROWN_MM", 0.0)


def test_what_the_networks_mark_is_what_comes_back_voxel_for_voxel(naive):
    shape, spacing = (24, 90, 70), (6.0, 2.0, 2.0)
    z, y, x = np.indices(shape)
    bright = (z > 4) & (z < 20) & (y > 20) & (y < 60 + z) & (x > 15) & (x < 40 + z // 2)  # no two sides are alike
    assert np.array_equal(extraction.extract_brain(head(shape, spacing, bright)), bright)


def test_the_networks_see_the_head_with_right_anterior_and_superior_last(monkeypatch):
    shape = (20, 30, 40)
    seen = []

    def remembers(scaled):
        seen.append(scaled[0, 0])
        return bright_voxels(scaled)

    monkeypatch.setattr(extraction, "_networks", lambda: (remembers, remembers))
    bright = np.zeros(shape, dtype=bool)
    bright[12:, :10, :12] = True  # superior, anterior, right: LPS axes run to superior, posterior and left
    extraction.extract_brain(head(shape, (5.0,) * 3, bright))
    assert seen[0].shape == (128, 128, 128)
    assert seen[1].shape == (256, 256, 256)
    x, y, z = (float(place.float().mean()) for place in torch.nonzero(seen[0] > 0.7, as_tuple=True))
    assert min(x, y, z) > 64


def test_a_loose_piece_is_left_out_and_a_hole_is_filled(naive):
    shape = (40, 50, 50)
    solid = np.zeros(shape, dtype=bool)
    solid[10:30, 10:40, 10:40] = True
    bright = solid.copy()
    bright[18:22, 20:24, 20:24] = False
    bright[34:36, 45:47, 45:47] = True
    assert np.array_equal(extraction.extract_brain(head(shape, (3.0,) * 3, bright)), solid)


def test_growing_reaches_what_lies_within_the_distance_in_mm():
    mask = np.zeros((7, 11, 11), dtype=bool)
    mask[3, 5, 5] = True
    spacing = (5.0, 1.0, 0.8)
    distances = np.sqrt(
        sum(((np.indices(mask.shape)[axis] - (3, 5, 5)[axis]) * spacing[axis]) ** 2 for axis in range(3))
    )
    assert np.array_equal(extraction._grown(mask, spacing, 1.6), distances <= 1.6)
    assert np.array_equal(extraction._grown(mask, spacing, 0.0), mask)


def test_a_head_without_a_brain_is_refused_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "_networks", lambda: (np.zeros_like, np.zeros_like))
    monkeypatch.setattr(extraction, "_probability", lambda network, voxels, low, high: network(voxels))
    study = write_study(tmp_path, size=(50, 58, 44), skull=True)
    with pytest.raises(FaultyStudyError) as refused:
        Preprocessing(24)(study)
    (fault,) = (fault for fault in refused.value.faults if fault.severity == "error")
    assert fault.check == "no_brain"
    assert study.files["FLAIR"].name in fault.where
    assert "0 mL" in fault.found
    assert "strip the skull from all sequences" in fault.remedy


@pytest.mark.parametrize("kind", ["changed", "missing", "not installed"])
def test_weights_that_are_not_those_of_the_package_stop_the_run_with_one_message(tmp_path, monkeypatch, kind):
    def distribution(name):
        if kind == "not installed":
            raise extraction.PackageNotFoundError(name)
        place = tmp_path / "bbox_model.pt"
        if kind == "changed":
            place.write_bytes(b"other weights")
        file = type("File", (), {"__fspath__": lambda self: "bbox_model.pt", "locate": lambda self: place})()
        return type("Distribution", (), {"files": [file]})()

    monkeypatch.setattr(extraction, "distribution", distribution)
    extraction._networks.cache_clear()
    study = write_study(tmp_path, size=(50, 58, 44), skull=True)
    found = "SHA-256" if kind == "changed" else "there is no such file"
    with pytest.raises(ModelError, match=rf"bbox_model\.pt: {found}.*pip install .*deepbet==1\.0\.2"):
        VolumeStore(tmp_path / "store", Preprocessing(24), list(study.files)).prepare([study], workers=1)
    extraction._networks.cache_clear()


def test_the_networks_are_found_in_the_installed_package_and_its_code_is_not_imported():
    import sys

    finder, segmenter = extraction._networks()
    assert sum(parameter.numel() for network in (finder, segmenter) for parameter in network.parameters()) > 1e6
    assert not {"deepbet", "customtkinter", "tkinter"} & set(sys.modules)


# Real heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    "name", [pytest.param("TCGA-HT-7882", marks=pytest.mark.slow), "TCGA-DU-5855"]
)  # of 53 heads the two that lose most
def test_of_a_real_head_the_brain_is_kept_with_its_tumour(name):
    folder = Path(os.environ["IDH_REAL_DATA"]) / "tcga_lgg" / name
    files = {sequence: folder / f"{name}_{sequence}.nii.gz" for sequence in ("FLAIR", "T1", "T1c")}
    mask = folder / f"{name}_tumor_segmentation.nii.gz"
    volume = Preprocessing((49, 65, 49), missing="zero")(
        Study(study_id=name, patient_id=name, label=1, files=files, mask=mask)
    )
    assert volume.found.extracted
    assert volume.found.tumour_kept >= 0.98
    assert 1000 < volume.found.volume_ml < 1900
    assert {fault.check for fault in volume.faults} == {"skull_not_stripped"}


def test_prepare_shows_a_head_with_the_outline_of_its_brain_and_tells_its_volume(tmp_path, brains_at_once):
    studies = (write_study(tmp_path, "head", skull=True), write_study(tmp_path, "brain"))
    store = VolumeStore(tmp_path / "store", Preprocessing(grid=16), SEQUENCES)
    store.prepare(studies)
    cohort = Cohort(name="two", studies=studies, sequences=SEQUENCES, exclusions=())
    table = brains_table(cohort, store).set_index("study_id")
    assert table["extracted"].to_dict() == {"head": True, "brain": False}
    assert table.loc["head", "brain_ml"] == pytest.approx(table.loc["brain", "brain_ml"], rel=0.1)
    write_study_panels(cohort, store, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"head.png", "head_brain.png", "brain.png"}
