"""Tests of the slices to look through and of the view from all around: sides and millimetres are the patient's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser import needs_chromium, opened
from PIL import Image

from idh_lightning.reports.viewer import (
    FRAMES,
    Scene,
    drawn_or_reason,
    read_scene,
    save_gif,
    slice_viewer,
    turning_frames,
    turning_view,
)

MIDDLE = np.array([12.0, -30.0, 45.0])
"""Of the head, in RAS mm: no origin of anything."""
BALL = np.array([-22.0, -4.0, 63.0])
"""To the patient's left, in front, and above the middle."""

_TURN = np.deg2rad(20)
ORIENTATIONS = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "PSR": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "oblique": np.diag([-1.0, 1.0, 1.0])
    @ [[np.cos(_TURN), -np.sin(_TURN), 0], [np.sin(_TURN), np.cos(_TURN), 0], [0, 0, 1]]
    @ [[1, 0, 0], [0, np.cos(_TURN), -np.sin(_TURN)], [0, np.sin(_TURN), np.cos(_TURN)]],
}


def write_head(folder: Path, axes: np.ndarray) -> tuple[dict[str, Path], Path, Path]:
    """Write a head with a bright ball, a second sequence, a map and a mask along these axes; return the files."""
    spacing, shape = np.array([1.5, 2.0, 2.5]), np.array([140, 110, 90])
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = MIDDLE - affine[:3, :3] @ ((shape - 1) / 2)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    head = (((places - MIDDLE) / (70.0, 85.0, 62.0)) ** 2).sum(-1) < 1
    distance = np.linalg.norm(places - BALL, axis=-1)
    voxels = {
        "FLAIR": head * 100.0 + 150.0 * np.exp(-((distance / 14) ** 4)),
        "T1": head * 80.0,
        "cam": np.exp(-((np.linalg.norm(places - MIDDLE, axis=-1) / 9) ** 2)),
        "mask": distance < 12,
    }
    for name, values in voxels.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), folder / f"{name}.nii.gz")
    files = {name: folder / f"{name}.nii.gz" for name in voxels}
    return {name: files[name] for name in ("FLAIR", "T1")}, files["cam"], files["mask"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_landmark_keeps_its_millimetres_whatever_the_orientation_of_the_file(
    orientation: str, tmp_path: Path
) -> None:
    files, cam, mask = write_head(tmp_path, ORIENTATIONS[orientation])
    scene = read_scene(files, cam, mask)
    for values, wanted in ((scene.sequences["FLAIR"], BALL), (scene.cam, MIDDLE)):
        brightest = np.array(np.unravel_index(int(values.argmax()), values.shape)[::-1])
        np.testing.assert_allclose(scene.origin_mm + 2.0 * brightest, wanted, atol=2.0)
    np.testing.assert_allclose(scene.at_mm, MIDDLE, atol=1.8)  # half the diagonal of a voxel
    assert scene.tumour is not None
    centre = scene.origin_mm + 2.0 * np.argwhere(scene.tumour).mean(axis=0)[::-1]
    np.testing.assert_allclose(centre, BALL, atol=0.5)


def test_the_slices_end_at_the_head_though_resampling_left_values_darker_than_the_air(tmp_path: Path) -> None:
    files, cam, mask = write_head(tmp_path, ORIENTATIONS["LPS"])
    plain = read_scene(files, cam, mask)
    image = nib.load(files["FLAIR"])
    voxels = np.asarray(image.dataobj).copy()
    voxels[60:62, 50:52, 40:42] = -7
    nib.save(nib.Nifti1Image(voxels, image.affine), files["FLAIR"])
    assert read_scene(files, cam, mask).cam.shape == plain.cam.shape


_BRIGHTEST = """(() => {
  const canvas = document.querySelectorAll(".slices canvas")[%d], box = canvas.getBoundingClientRect();
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const top = data.reduce((top, value, k) => k %% 4 === 0 && value > top ? value : top, 0);
  let n = 0, x = 0, y = 0;
  for (let k = 0; k < data.length; k += 4) {
    if (data[k] > top - 8) { n++; x += k / 4 %% canvas.width; y += Math.floor(k / 4 / canvas.width); }
  }
  const letters = [...canvas.parentNode.querySelectorAll("b")].map((letter) => {
    const place = letter.getBoundingClientRect();
    return [letter.textContent, place.x + place.width / 2 - box.x, place.y + place.height / 2 - box.y];
  });
  const scale = box.width / canvas.width;
  return JSON.stringify({x: (x / n + 0.5) * scale, y: (y / n + 0.5) * scale, left: box.x, top: box.y, letters});
})()"""


_SET = "var o = document.querySelector(%s); o.value = %s; o.dispatchEvent(new Event('input', {bubbles: true}))"


@needs_chromium
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "oblique"])
def test_a_click_on_a_landmark_at_the_left_reads_its_side_and_its_millimetres(orientation: str, tmp_path: Path) -> None:
    files, cam, mask = write_head(tmp_path, ORIENTATIONS[orientation])
    # The planes begin through the ball but for its place from left to right, which the click finds in the axial one.
    scene = read_scene(files, cam, mask, [MIDDLE[0], BALL[1] - 30, BALL[2]])
    page = tmp_path / "page.html"
    page.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{slice_viewer(scene, 'study')}", encoding="utf-8")

    async def look() -> tuple[list[dict], list[str], list[str]]:
        async with opened(page, tmp_path / "profile") as opened_page:
            await opened_page.evaluate("document.querySelector('.outline').click();" + _SET % ("'.opacity'", 0))
            await opened_page.browser.settle(0.3)
            spots = [json.loads(await opened_page.evaluate(_BRIGHTEST % 0))]
            await opened_page.click(spots[0]["left"] + spots[0]["x"], spots[0]["top"] + spots[0]["y"])
            words = await opened_page.evaluate("[...document.querySelectorAll('.planes p')].map(p => p.textContent)")
            spots += [json.loads(await opened_page.evaluate(_BRIGHTEST % number)) for number in (1, 2)]
            return spots, words, opened_page.browser.complaints

    spots, words, complaints = asyncio.run(look())
    assert complaints == []
    assert [text.split(",")[0] for text in words] == ["axial", "coronal", "sagittal"]
    read = [float(text.split()[2].replace("−", "-")) for text in words]
    np.testing.assert_allclose(read, BALL[::-1], atol=2.5)
    for spot, near, far in zip(spots, ("LA", "LS", "AS"), ("RP", "RI", "PI"), strict=True):
        letters = {letter: np.array([x, y]) for letter, x, y in spot["letters"]}
        for close, distant in zip(near, far, strict=True):
            axis = 0 if letters[close][0] != pytest.approx(letters[distant][0], abs=4) else 1
            place = (spot["x"], spot["y"])[axis]
            assert abs(letters[close][axis] - place) < abs(letters[distant][axis] - place), (close, spot)
    sides = {spot_letters[0][0] for spot_letters in (spots[0]["letters"], spots[1]["letters"])}
    assert sides == {"R"}, "the patient's right is on the left of axial and coronal images"
    assert spots[2]["letters"][0][0] == "A", "the front is on the left of sagittal images"


@needs_chromium
def test_the_reader_chooses_a_sequence_and_hides_the_tumour_outline(tmp_path: Path) -> None:
    files, cam, mask = write_head(tmp_path, ORIENTATIONS["LPS"])
    page = tmp_path / "page.html"
    scene = read_scene(files, cam, mask, list(BALL))
    page.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{slice_viewer(scene, 'study')}", encoding="utf-8")
    picture = "document.querySelector('.slices canvas').toDataURL()"

    async def look() -> list[str]:
        async with opened(page, tmp_path / "profile") as opened_page:
            pictures = [await opened_page.evaluate(picture)]
            for change in (
                "document.querySelector('.outline').click()",
                _SET % ("'select'", "'T1'"),
            ):
                await opened_page.evaluate(change)
                await opened_page.browser.settle(0.3)
                pictures.append(await opened_page.evaluate(picture))
            pictures.append(await opened_page.evaluate("document.querySelector('output').textContent"))
            return pictures

    with_outline, without, other, told = asyncio.run(look())
    assert len({with_outline, without, other}) == 3
    assert told == "map 0.00, in the tumour"


@needs_chromium
def test_a_browser_that_cannot_unpack_the_slices_shows_a_sentence_and_no_empty_box(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    scene = read_scene(*write_head(tmp_path, ORIENTATIONS["LPS"]))
    without = "<script>delete window.DecompressionStream</script>"
    page.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{without}{slice_viewer(scene, 'study')}")

    async def look() -> str:
        async with opened(page, tmp_path / "profile") as opened_page:
            return await opened_page.evaluate("document.querySelector('.slices').innerText")

    assert asyncio.run(look()).strip() == (
        "The slices could not be drawn in this browser; the panel shows the same planes."
    )


def test_a_view_that_cannot_be_drawn_is_a_warning_and_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("<no> memory")

    html = drawn_or_reason("Slices", "study-1", fails)
    assert html == '<p class="absent">Slices: not drawn. &lt;no&gt; memory</p>'
    assert "Study study-1: Slices not drawn: <no> memory" in caplog.text


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    files, cam, mask = write_head(tmp_path_factory.mktemp("head"), ORIENTATIONS["LPS"])
    return turning_frames(read_scene(files, cam, mask))


@pytest.mark.parametrize(("frame", "left_of_picture"), [(0, False), (FRAMES // 4, True), (FRAMES // 2, True)])
def test_the_view_from_all_around_shows_the_tumour_on_its_side(
    frames: list[Image.Image], frame: int, left_of_picture: bool
) -> None:
    # From the front the patient's left is on the right; from the left the front is on the left.
    colours = np.asarray(frames[frame].convert("RGB"), dtype=float)[:-24]
    blue = np.clip(colours[..., 2] - colours[..., 0], 0, None)
    middle = (blue.sum(axis=0) * np.arange(blue.shape[1])).sum() / blue.sum()
    assert (middle < blue.shape[1] / 2) == left_of_picture


def test_the_animation_turns_once_and_is_small(frames: list[Image.Image], tmp_path: Path) -> None:
    save_gif(frames, tmp_path / "brain_3d.gif")
    assert (tmp_path / "brain_3d.gif").stat().st_size < 1.5e6
    with Image.open(tmp_path / "brain_3d.gif") as animation:
        assert animation.n_frames == FRAMES
        assert animation.info["loop"] == 0
    assert len(turning_view(frames, "study")) < 0.5e6


def test_a_scene_without_a_tumour_still_turns() -> None:
    head = np.zeros((30, 36, 32), dtype=np.float32)
    head[6:24, 6:30, 6:26] = 1
    scene = Scene({"FLAIR": head}, np.zeros_like(head), None, np.zeros(3), [0.0, 0.0, 0.0])
    assert len(turning_frames(scene)) == FRAMES
