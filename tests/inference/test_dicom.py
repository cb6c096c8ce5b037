"""DICOM files become the volumes that they hold, or are refused with the reason; nothing is left out in silence."""

from __future__ import annotations

import locale
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet
from pydicom.filewriter import write_dataset
from pydicom.uid import RawDataStorage
from tiny_dicom import (
    OBLIQUE,
    ORIGIN_MM,
    SPACING_MM,
    base,
    classic,
    enhanced,
    frame,
    frames_of,
    group,
    lump,
    places,
    save,
)

from idh_lightning.errors import CohortError
from idh_lightning.inference import dicom as module
from idh_lightning.inference.dicom import dicom_series
from idh_lightning.inference.dicom_frames import pydicom_silenced
from idh_lightning.inference.series import Series, files_unread

LUMP = lump()


def only(folder: Path) -> Series:
    (one,), _ = dicom_series(folder)
    return one


def volume(series: Series, folder: Path) -> sitk.Image:
    assert series.problem == ""
    return sitk.ReadImage(str(series.save(folder / "volume.nii.gz")))


def assert_is(image: sitk.Image, voxels: np.ndarray, *, origin: Sequence[float] = ORIGIN_MM) -> None:
    """The voxels [D, H, W] at their places, straight."""
    assert image.GetSpacing() == pytest.approx(SPACING_MM, abs=1e-4)
    assert image.GetOrigin() == pytest.approx(origin, abs=1e-3)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel(), abs=1e-5)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), voxels, rtol=1e-6)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1)], ids=["axial", "oblique", "sagittal"]
)
def test_a_classic_series_lies_where_simpleitk_puts_it(orientation: tuple[float, ...], tmp_path: Path) -> None:
    folder = save(classic(LUMP, orientation=orientation)[::-1], tmp_path / "dicom")
    mine = volume(only(folder), tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = reader.Execute()
    found = sitk.GetArrayFromImage(sitk.Resample(mine, other, sitk.Transform(), sitk.sitkNearestNeighbor))
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(other))
    assert mine.GetSize() == other.GetSize()
    assert mine.GetSpacing() == pytest.approx(other.GetSpacing(), abs=1e-4)


@pytest.mark.parametrize(
    "order", [[*range(0, 24, 2), *range(1, 24, 2)], list(range(24))[::-1]], ids=["odd_last", "down"]
)
def test_frames_of_an_enhanced_file_are_sorted_by_their_place(order: list[int], tmp_path: Path) -> None:
    frames = frames_of(LUMP)
    one = only(save([enhanced([frames[index] for index in order])], tmp_path / "dicom"))
    assert (one.echo_ms, one.repetition_ms, one.slices, one.guess) == (90.0, 4000.0, 24, "T2")
    assert_is(volume(one, tmp_path), LUMP)


def test_times_of_an_enhanced_file_come_from_its_functional_groups(tmp_path: Path) -> None:
    inversion = group(InversionTimes=[2500.0])
    made = enhanced(frames_of(LUMP, MRModifierSequence=inversion), echo_ms=120.0, SeriesDescription="")
    one = only(save([made], tmp_path))
    assert (one.echo_ms, one.inversion_ms, one.guess) == (120.0, 2500.0, "FLAIR")


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_a_missing_slice_is_named(kind: str, tmp_path: Path) -> None:
    if kind == "classic":
        made = classic(LUMP)
        del made[12]
    else:
        frames = frames_of(LUMP)
        made = [enhanced([*frames[:12], *frames[13:]])]
    assert "5.00 to 10.00 mm apart" in only(save(made, tmp_path)).problem


def test_slices_shifted_against_each_other_are_named(tmp_path: Path) -> None:
    made = classic(LUMP)
    for index, dataset in enumerate(made):
        dataset.ImagePositionPatient = [ORIGIN_MM[0], ORIGIN_MM[1] + index, dataset.ImagePositionPatient[2]]
    assert "shifted against each other by up to 23.0 mm" in only(save(made, tmp_path)).problem


def test_each_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    made = classic(LUMP)
    for index, dataset in enumerate(made):
        dataset.RescaleSlope, dataset.RescaleIntercept = (1.0 if index == 0 else 100.0), -index
    expected = LUMP * np.where(np.arange(24) == 0, 1.0, 100.0)[:, None, None] - np.arange(24)[:, None, None]
    assert expected.max() > 65535
    assert_is(volume(only(save(made, tmp_path / "dicom")), tmp_path), expected)


def test_each_frame_has_its_own_slope(tmp_path: Path) -> None:
    frames = frames_of(LUMP)
    for index, (item, _) in enumerate(frames):
        item.PixelValueTransformationSequence = group(RescaleSlope=1.0 + index, RescaleIntercept=0.0, RescaleType="US")
    made = save([enhanced(frames)], tmp_path / "dicom")
    assert_is(volume(only(made), tmp_path), LUMP * (1.0 + np.arange(24))[:, None, None])


def test_signed_pixels_keep_their_sign(tmp_path: Path) -> None:
    made = classic(LUMP.astype(np.int32) - 500)
    for dataset in made:
        dataset.PixelRepresentation = 1
    assert_is(volume(only(save(made, tmp_path / "dicom")), tmp_path), LUMP.astype(float) - 500)


def two_echoes(kind: str) -> list[Dataset]:
    if kind == "classic":
        return [*classic(LUMP, EchoTime=15.0), *classic(LUMP // 2, EchoTime=90.0, EchoNumbers=2)]
    short, long = (group(EffectiveEchoTime=ms) for ms in (15.0, 90.0))
    first, second = frames_of(LUMP, MREchoSequence=short), frames_of(LUMP // 2, MREchoSequence=long)
    if kind == "echo by echo":
        return [enhanced([*first, *second])]
    return [enhanced([one for pair in zip(first, second, strict=True) for one in pair])]


@pytest.mark.parametrize("kind", ["classic", "echo by echo", "place by place"])
def test_two_echoes_are_two_volumes_and_the_long_one_is_t2(kind: str, tmp_path: Path) -> None:
    made = two_echoes(kind)
    for dataset in made:
        dataset.SeriesDescription = "pd+t2_tse_tra"
    (short, long), _ = dicom_series(save(made, tmp_path / "dicom"))
    assert [(one.number, one.part, one.guess) for one in (short, long)] == [
        ("4a", "echo time 15.0", ""),
        ("4b", "echo time 90.0", "T2"),
    ]
    assert_is(volume(short, tmp_path), LUMP)
    assert_is(volume(long, tmp_path), LUMP // 2)


@pytest.mark.parametrize("kind", ["classic", "by clock", "enhanced"])
def test_two_time_points_are_two_volumes(kind: str, tmp_path: Path) -> None:
    if kind == "enhanced":
        made = [enhanced([*frames_of(LUMP, time=1), *frames_of(LUMP + 7, time=2)])]
    elif kind == "classic":
        made = [*classic(LUMP, TemporalPositionIdentifier=1), *classic(LUMP + 7, TemporalPositionIdentifier=2)]
    else:
        made = [*classic(LUMP), *classic(LUMP + 7)]
        for index, dataset in enumerate(made):
            dataset.AcquisitionTime = f"12{index:04d}"
    (first, second), _ = dicom_series(save(made, tmp_path / "dicom"))
    assert (first.part, second.part) == ("time 1 of 2", "time 2 of 2")
    assert_is(volume(first, tmp_path), LUMP)
    assert_is(volume(second, tmp_path), LUMP + 7)


def test_the_images_without_weighting_of_a_diffusion_series_are_no_t2(tmp_path: Path) -> None:
    """Though their echo is long and the description says nothing."""
    made = [slice_ for b in (0.0, 1000.0) for slice_ in classic(LUMP, SeriesDescription="brain", DiffusionBValue=b)]
    series, _ = dicom_series(save(made, tmp_path))
    assert [(one.part, one.guess, one.why) for one in series] == [
        ("b-value 0.0", "", "diffusion, b = 1000"),
        ("b-value 1000.0", "", "diffusion, b = 1000"),
    ]


def test_a_course_in_time_is_one_row_that_is_not_used(tmp_path: Path) -> None:
    made = [dataset for time in range(12) for dataset in classic(LUMP[:9], TemporalPositionIdentifier=time)]
    assert "12 images at each place, told apart by time point" in only(save(made, tmp_path)).problem


def test_images_at_one_place_that_no_tag_tells_apart_are_refused(tmp_path: Path) -> None:
    assert "2 images at each place, and no tag" in only(save([*classic(LUMP), *classic(LUMP)], tmp_path)).problem


def test_two_stacks_are_two_volumes(tmp_path: Path) -> None:
    below = (ORIGIN_MM[0], ORIGIN_MM[1], ORIGIN_MM[2] - 300)
    made = enhanced([*frames_of(LUMP, stack="1"), *frames_of(LUMP + 7, origin=below, stack="2")])
    (first, second), _ = dicom_series(save([made], tmp_path / "dicom"))
    assert_is(volume(first, tmp_path), LUMP)
    assert_is(volume(second, tmp_path), LUMP + 7, origin=below)


def test_magnitude_and_phase_in_one_file_are_two_volumes_and_phase_is_no_sequence(tmp_path: Path) -> None:
    kinds = [
        group(ComplexImageComponent=name, FrameType=["ORIGINAL", "PRIMARY", name[0], "NONE"])
        for name in ("MAGNITUDE", "PHASE")
    ]
    made = enhanced([one for kind in kinds for one in frames_of(LUMP, MRImageFrameTypeSequence=kind)])
    (magnitude, phase), _ = dicom_series(save([made], tmp_path))
    assert (magnitude.guess, phase.guess) == ("T2", "")
    assert "phase" in phase.why


def test_orientations_of_a_localizer_are_told_apart(tmp_path: Path) -> None:
    ways = [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)]
    made = [one for way in ways for one in classic(LUMP[:3], orientation=way, SeriesDescription="3plane")]
    found, _ = dicom_series(save(made, tmp_path))
    assert [(one.number, one.slices, one.guess) for one in found] == [("4a", 3, ""), ("4b", 3, ""), ("4c", 3, "")]


def test_many_orientations_are_one_row_that_is_not_used(tmp_path: Path) -> None:
    angles = np.radians(np.arange(0, 180, 10))
    ways = [(np.cos(angle), np.sin(angle), 0.0, 0.0, 0.0, -1.0) for angle in angles]
    made = [one for way in ways for one in classic(LUMP[:1], orientation=way)]
    one = only(save(made, tmp_path))
    assert "18 volumes of different orientation" in one.problem


def test_a_subtraction_in_the_same_series_is_told_apart(tmp_path: Path) -> None:
    kind = ["DERIVED", "PRIMARY", "M", "SUB"]
    description = {"SeriesDescription": "T1 km"}
    made = [*classic(LUMP, **description), *classic(LUMP // 3, ImageType=kind, **description)]
    (plain, difference), _ = dicom_series(save(made, tmp_path))
    assert (plain.guess, difference.guess) == ("T1c", "")
    assert "subtraction" in difference.why


@pytest.mark.parametrize("cut", [5, 12])
def test_one_series_in_two_folders_is_one_series(cut: int, tmp_path: Path) -> None:
    made = classic(LUMP)
    save(made[:cut], tmp_path / "dicom" / "A")
    save(made[cut:], tmp_path / "dicom" / "B")
    assert_is(volume(only(tmp_path / "dicom"), tmp_path), LUMP)


def test_a_file_that_is_there_twice_counts_once_and_is_told(tmp_path: Path) -> None:
    made = classic(LUMP)
    save(made, tmp_path / "dicom" / "A")
    save(made[:3], tmp_path / "dicom" / "copy")
    (one,), unread = dicom_series(tmp_path / "dicom")
    assert one.problem == ""
    assert len(unread["there twice"]) == 3
    for prefix in "AB":
        save([enhanced(frames_of(LUMP), SOPInstanceUID="1.2.3.4.5")], tmp_path / "enhanced", prefix)
    assert len(dicom_series(tmp_path / "enhanced")[1]["there twice"]) == 1


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    for index, dataset in enumerate(classic(LUMP)):
        del dataset.file_meta
        content = DicomBytesIO()
        content.is_little_endian, content.is_implicit_VR = True, True
        write_dataset(content, dataset)
        (tmp_path / "dicom" / f"IM{index}").write_bytes(content.getvalue())
    assert_is(volume(only(tmp_path / "dicom"), tmp_path), LUMP)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("._IM{}.dcm", b"\0\5\x16\7\0\2\0\0Mac OS X        "),
        ("A{}.jpg", b"\xff\xd8\xff\xe0"),
        ("A{}.json", b'{"a": 1}'),
    ],
)
def test_other_files_before_the_images_are_passed_over_and_counted(name: str, content: bytes, tmp_path: Path) -> None:
    folder = save(classic(LUMP), tmp_path / "dicom")
    for index in range(30):
        (folder / name.format(index)).write_bytes(content + bytes(4000))
    (one,), unread = dicom_series(folder)
    assert one.slices == 24
    assert files_unread(unread)[0].startswith("30 files not used: not DICOM; such as ")


def test_a_directory_file_stands_for_its_folder_and_what_it_lacks_is_told(tmp_path: Path) -> None:
    made = FileSet()
    for index, dataset in enumerate(classic(LUMP)):
        dataset.PatientName, dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "A^B", "20200101", "120000", "1"
        dataset.AccessionNumber = ""
        dataset.InstanceNumber = index + 1
        made.add(dataset)
    made.write(tmp_path / "media")
    first = sorted(path for path in (tmp_path / "media").rglob("*") if path.is_file() and path.name != "DICOMDIR")[0]
    (one,), _ = dicom_series(tmp_path / "media" / "DICOMDIR")
    assert one.slices == 24
    first.unlink()
    (one,), unread = dicom_series(tmp_path / "media" / "DICOMDIR")
    assert one.slices == 23
    assert any("1 of its 24 files are not there" in reason for reason in unread)


def test_objects_without_pixels_and_damaged_files_are_told_with_the_reason(tmp_path: Path) -> None:
    folder = save(classic(LUMP), tmp_path / "dicom")
    save([base(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")], folder, "SR")
    whole = (folder / "IM0000.dcm").read_bytes()
    (folder / "half.dcm").write_bytes(whole[:300])
    _, unread = dicom_series(folder)
    assert any("no image: Basic Text SR" in reason for reason in unread)
    assert sorted(path.name for paths in unread.values() for path in paths) == ["SR0000.dcm", "half.dcm"]


SYNTAXES = ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_losslessly_compressed_images_are_those_that_were_compressed(syntax: str, tmp_path: Path) -> None:
    folder = save(classic(LUMP), tmp_path / "dicom")
    for path in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.is_compressed
    assert_is(volume(only(folder), tmp_path), LUMP)


@pytest.mark.parametrize(
    ("syntax", "name"), [("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.110"), ("1.2.840.10008.1.2.4.100", "MPEG2")]
)
def test_a_syntax_that_cannot_be_decoded_is_named(syntax: str, name: str, tmp_path: Path) -> None:
    folder = save(classic(LUMP), tmp_path)
    old, new = b"1.2.840.10008.1.2.1\0", f"{syntax}\0".encode()
    for path in folder.iterdir():
        content = path.read_bytes()
        at = content.index(old)
        length = len(new) + len(new) % 2
        header = content[: at - 2] + length.to_bytes(2, "little") + new.ljust(length, b"\0")
        group_length = int.from_bytes(content[140:144], "little") + length - len(old)
        path.write_bytes(header[:140] + group_length.to_bytes(4, "little") + header[144:] + content[at + len(old) :])
    one = only(folder)
    assert name in one.problem
    assert "cannot be decoded" in one.problem


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1"),
        ({"Modality": "CT"}, "modality CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "a mosaic"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
    ],
)
def test_images_of_another_kind_are_named(tags: dict[str, str], words: str, tmp_path: Path) -> None:
    assert words in only(save(classic(LUMP, **tags), tmp_path)).problem


@pytest.mark.parametrize("of_those", [slice(None), slice(5, 6)])
@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_images_without_a_place_are_named(keyword: str, of_those: slice, tmp_path: Path) -> None:
    made = classic(LUMP)
    for dataset in made[of_those]:
        delattr(dataset, keyword)
    one = only(save(made, tmp_path))
    assert "no place" in one.problem
    assert one.slices == len(LUMP)


@pytest.mark.parametrize(
    "tags",
    [
        {"origin": (float("nan"), 0.0, 0.0)},
        {"spacing": (0.0, 2.5, 5.0)},
        {"orientation": (2.0, 0.0, 0.0, 0.0, 2.0, 0.0)},
        {"orientation": (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)},
    ],
    ids=["no number", "no edge", "too long", "parallel"],
)
def test_places_that_are_none_are_named_and_the_others_are_read(tags: dict[str, tuple], tmp_path: Path) -> None:
    save(classic(LUMP, SeriesInstanceUID="1.2.3.5", SeriesNumber=5, **tags), tmp_path / "dicom", "ODD")
    good, odd = dicom_series(save(classic(LUMP), tmp_path / "dicom"))[0]
    assert "no place that can be used" in odd.problem
    assert_is(volume(good, tmp_path), LUMP)


def test_edges_that_differ_in_their_last_digits_make_one_volume(tmp_path: Path) -> None:
    made = classic(LUMP, spacing=(2.50051, 2.50051, 5.0))
    for dataset in made[::2]:
        dataset.PixelSpacing = [2.50049, 2.50049]
    assert only(save(made, tmp_path)).slices == len(LUMP)


def test_an_element_of_another_vendor_is_no_b_value(tmp_path: Path) -> None:
    made = classic(LUMP)
    for creator, guess in (("ACME 1.0", "T2"), ("SIEMENS MR HEADER", "")):
        for dataset in made:
            dataset.add_new((0x0019, 0x0010), "LO", creator)
            dataset.add_new((0x0019, 0x100C), "IS", "12")
        assert only(save(made, tmp_path)).guess == guess


@pytest.mark.parametrize("absent", ["PatientID", "StudyInstanceUID", ""])
def test_patients_of_one_study_identifier_are_two_studies(absent: str, tmp_path: Path) -> None:
    for patient in "AB":
        made = classic(LUMP, PatientID=patient, SeriesInstanceUID=f"1.2.3.{ord(patient)}")
        for dataset in made if absent else []:
            delattr(dataset, absent)
        save(made, tmp_path, patient)
    assert len({one.study_uid for one in dicom_series(tmp_path)[0]}) == (1 if absent == "PatientID" else 2)


@pytest.mark.parametrize(
    ("agent", "given"),
    [
        ("Gadovist 7 ml", True), ("造影剂", True), ("KEIN KM", False), ("no contrast given", False), ("-", False),
        ("Not Applicable", False), ("0.0", False), ("NONE", False),
    ],
)  # fmt: skip
def test_free_text_for_no_agent_is_no_contrast(agent: str, given: bool, tmp_path: Path) -> None:
    assert (
        only(save(classic(LUMP, ContrastBolusAgent=agent, SpecificCharacterSet="ISO_IR 192"), tmp_path)).contrast
        == given
    )


@pytest.mark.parametrize(("stated", "given"), [("YES", True), ("NO", False), ("", True)])
def test_an_enhanced_image_made_before_its_agent_was_given_has_no_contrast(
    stated: str, given: bool, tmp_path: Path
) -> None:
    image = enhanced(frames_of(LUMP), ContrastBolusAgentSequence=group(CodeMeaning="Gadobutrol"))
    if stated:
        usage = group(ContrastBolusAgentNumber=1, ContrastBolusAgentAdministered=stated)
        image.SharedFunctionalGroupsSequence[0].ContrastBolusUsageSequence = usage
    assert only(save([image], tmp_path)).contrast == given


def test_one_identifier_for_all_images_loses_none(tmp_path: Path) -> None:
    assert_is(volume(only(save(classic(LUMP, SOPInstanceUID="1.2.3.5"), tmp_path / "in")), tmp_path), LUMP)


def test_values_that_break_a_rule_fill_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pydicom_silenced():
        save(classic(LUMP, StudyInstanceUID="1.2.patient"), tmp_path)
        dicom_series(tmp_path)
    assert caplog.records == []


@pytest.mark.parametrize("stored", ["007", "+7", "7"])
def test_a_series_is_called_by_its_number_however_it_is_stored(stored: str, tmp_path: Path) -> None:
    assert only(save(classic(LUMP, SeriesNumber=stored), tmp_path)).number == "7"


def test_raw_data_beside_the_image_in_its_series_is_no_image_though_it_has_rows_and_columns(tmp_path: Path) -> None:
    folder = save([enhanced(frames_of(LUMP))], tmp_path / "dicom")
    save([base(SOPClassUID=RawDataStorage, Rows=40, Columns=32, NumberOfFrames=1)], folder, "RAW")
    assert_is(volume(only(folder), tmp_path), LUMP)
    assert [*dicom_series(folder)[1]] == ["no image: Raw Data Storage"]


def test_pixels_that_end_early_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = save(classic(LUMP), tmp_path / "dicom")
    cut = folder / "IM0007.dcm"
    cut.write_bytes(cut.read_bytes()[:-500])
    with pytest.raises(CohortError, match="IM0007"):
        only(folder).save(tmp_path / "volume.nii.gz")
    assert not (tmp_path / "volume.nii.gz").exists()


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_every_slice_is_decoded_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = classic(LUMP) if kind == "classic" else [enhanced(frames_of(LUMP))]
    folder, seen, decode = save(made, tmp_path / "dicom"), Counter[tuple[str, int]](), module.iter_pixels

    def counted(dataset: Dataset, indices: list[int]) -> Iterator[np.ndarray]:
        for index, pixels in zip(indices, decode(dataset, indices=indices), strict=True):
            seen[dataset.SOPInstanceUID, index] += 1
            yield pixels

    monkeypatch.setattr(module, "iter_pixels", counted)
    volume(only(folder), tmp_path)
    assert len(seen) == 24
    assert set(seen.values()) == {1}


def test_reading_leaves_the_text_of_the_process_as_it_was(tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_ALL)
    volume(only(save(classic(LUMP), tmp_path / "dicom")), tmp_path)
    assert locale.setlocale(locale.LC_ALL) == before


def test_frames_of_other_places_in_one_file_are_not_lost(tmp_path: Path) -> None:
    at = places(24, (1, 0, 0, 0, 1, 0), ORIGIN_MM, SPACING_MM[2])
    made = [enhanced([frame(position, plane)]) for position, plane in zip(at, LUMP, strict=True)]
    assert_is(volume(only(save(made, tmp_path / "dicom")), tmp_path), LUMP)
