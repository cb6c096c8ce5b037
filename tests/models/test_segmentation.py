"""The tumour segmenter, its vote, its loss, and the synthetic gliomas that it learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from idh_lightning.data.synthetic import SyntheticGliomas
from idh_lightning.errors import ModelError
from idh_lightning.models.segmentation import (
    TumourSegmenter,
    VoteHead,
    dense_vote,
    load_segmenter,
    save_segmenter,
    segmenter_of,
    tumour_logit,
    vote_contributions,
    without_specks,
)
from idh_lightning.objectives.segmentation import segmentation_loss, soft_dice
from idh_lightning.volumes import Preprocessing
from idh_lightning.volumes.randomisation import Randomisation, smooth_noise


@pytest.fixture
def segmenter() -> TumourSegmenter:
    torch.manual_seed(0)
    return TumourSegmenter(widths=(4, 8, 8)).eval()


@pytest.mark.parametrize("grid", [(49, 65, 49), (33, 33, 33), (16, 20, 24), (17, 16, 19)])
def test_the_segmentation_has_the_grid_of_the_volume(segmenter: TumourSegmenter, grid: tuple[int, int, int]) -> None:
    assert segmenter(torch.randn(2, 4, *grid)).shape == (2, 3, *grid)


def test_of_a_finer_grid_it_sees_what_it_has_learnt_on(segmenter: TumourSegmenter) -> None:
    volumes = torch.randn(1, 4, 49, 65, 49)
    logits = segmenter(volumes)
    for times in (2, 3):
        finer = volumes
        for axis in (2, 3, 4):
            finer = finer.repeat_interleave(times, axis)
        found = segmenter(finer)
        assert found.shape[2:] == finer.shape[2:]
        expected = functional.interpolate(logits, finer.shape[2:], mode="trilinear")
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("grid", "voxels"),
    [
        ((49, 65, 49), 1.0),
        ((64, 64, 64), 1.0),
        ((58, 78, 58), 1.0),  # not by so little
        ((97, 129, 97), 97 / 49),
        ((129, 129, 129), 129 / 65),
        ((129, 65, 65), 1.0),  # a brain that fits into 65 voxels has voxels of 3 mm, whatever the longest edge
        ((64, 128, 128), 64 / 49),
    ],
)
def test_the_edge_with_the_least_room_says_how_fine_a_grid_is(
    segmenter: TumourSegmenter, grid: tuple[int, int, int], voxels: float
) -> None:
    assert segmenter.voxels_in_one(grid) == pytest.approx(voxels, rel=0.01)


def test_the_grid_goes_with_the_weights_and_weights_without_one_see_every_voxel(tmp_path: Path) -> None:
    finer = TumourSegmenter(widths=(4, 8), learnt_on=(97, 129, 97)).eval()
    save_segmenter(finer, tmp_path / "locator.safetensors", {})
    found = load_segmenter(tmp_path / "locator.safetensors")
    assert found.learnt_on == (97, 129, 97)
    assert found.voxels_in_one((97, 129, 97)) == 1.0
    old = {name: tensor for name, tensor in finer.state_dict().items() if name != "_extra_state"}
    volumes = torch.randn(1, 4, 97, 129, 97)
    for segmenter in (segmenter_of(old), found):
        assert segmenter.voxels_in_one((97, 129, 97)) == 1.0
        with torch.no_grad():
            torch.testing.assert_close(segmenter(volumes), finer(volumes), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("fine", "coarse"), [(129, 65), (97, 49), (130, 65), (90, 61)])
def test_means_over_parts_of_an_edge_take_every_voxel_as_often(fine: int, coarse: int) -> None:
    from idh_lightning.models.segmentation import _overlaps

    weights = _overlaps(fine, coarse)
    assert weights.min() == 0
    torch.testing.assert_close(weights.sum(1), torch.ones(coarse, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(0), torch.full((fine,), coarse / fine, dtype=torch.float64))
    middles = weights @ torch.arange(fine, dtype=torch.float64)
    expected = (torch.arange(coarse, dtype=torch.float64) + 0.5) * fine / coarse - 0.5
    torch.testing.assert_close(middles, expected, atol=0.125, rtol=0)  # a part of a voxel counts at its middle


def test_outside_the_brain_nothing_is_tumour_and_nothing_votes(segmenter: TumourSegmenter) -> None:
    volumes = torch.randn(1, 4, 17, 21, 17)
    volumes[:, :, :6] = 0
    volumes[:, 1] = 0  # a missing sequence makes no background
    logits = segmenter(volumes)
    assert torch.sigmoid(tumour_logit(logits)[:, :6]).max() < 1e-8
    assert torch.sigmoid(tumour_logit(logits)[:, 6:]).min() > 1e-3
    assert vote_contributions(logits)[:, :6].abs().max() < 1e-9


def test_a_study_is_segmented_alike_alone_and_in_a_batch(segmenter: TumourSegmenter) -> None:
    volumes = torch.randn(3, 4, 17, 21, 17)
    alone = torch.cat([segmenter(volume[None]) for volume in volumes])
    torch.testing.assert_close(segmenter(volumes), alone, atol=1e-5, rtol=1e-4)


def test_cubes_are_taken_apart_and_put_together_without_moving_a_voxel() -> None:
    from idh_lightning.models.segmentation import _from_cubes, _to_cubes

    volumes = torch.randn(2, 3, 7, 6, 5)
    together = _from_cubes(_to_cubes(volumes), 3)
    assert together.shape == (2, 3, 8, 6, 6)
    assert torch.equal(together[:, :, :7, :, :5], volumes)
    assert not together[:, :, 7].any()
    cell = _to_cubes(volumes)[0, :, 1, 2, 0].reshape(3, 2, 2, 2)  # the eight voxels of one cube
    assert torch.equal(cell, volumes[0, :, 2:4, 4:6, 0:2])


def test_the_vote_is_the_sum_of_what_its_voxels_contribute() -> None:
    logits = torch.randn(2, 3, 5, 6, 7)
    assert torch.equal(vote_contributions(logits).sum((1, 2, 3)), dense_vote(logits))


def test_the_vote_is_the_mean_over_a_tumour_that_is_sure() -> None:
    logits = torch.full((1, 3, 10, 10, 10), 0.0)
    logits[:, 0] = 30.0
    logits[:, 0, 2:8, 2:8, 2:8] = -30.0
    logits[:, 2, 2:8, 2:8, 2:5], logits[:, 2, 2:8, 2:8, 5:8] = 3.0, -1.0
    size = 6**3
    assert dense_vote(logits).item() == pytest.approx(1.0 * size / (size + 1), abs=1e-4)


def test_a_silenced_vote_says_nothing_and_can_learn_to_speak_again() -> None:
    head, votes = VoteHead(), torch.tensor([-2.0, 0.5, 3.0])
    assert torch.equal(head(votes), votes)
    head.silence()
    assert head.scale == 0
    assert head(votes).abs().max() < 1e-6
    head(votes).sum().backward()
    assert head.weigh.weight.grad is not None
    assert head.weigh.weight.grad.abs() > 0


def test_a_volume_without_tumour_has_no_vote() -> None:
    logits = torch.zeros(1, 3, 8, 8, 8)
    logits[:, 0], logits[:, 2] = 20.0, 5.0
    assert abs(dense_vote(logits).item()) < 1e-2


def test_the_tumour_logit_is_that_of_both_kinds_together() -> None:
    logits = torch.randn(2, 3, 4, 4, 4)
    expected = torch.softmax(logits, 1)[:, 1:].sum(1)
    torch.testing.assert_close(torch.sigmoid(tumour_logit(logits)), expected)


def test_swapping_both_kinds_of_tumour_turns_the_vote_round() -> None:
    logits = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(dense_vote(logits[:, [0, 2, 1]]), -dense_vote(logits))


def test_weights_come_back_from_their_file_to_half_precision(segmenter: TumourSegmenter, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "locator.safetensors"
    save_segmenter(segmenter, file, {"learnt_from": "nothing"})
    again = load_segmenter(file)
    assert again.widths == (4, 8, 8)
    assert not again.training
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name


@pytest.mark.parametrize("content", [None, b"not weights", b""])
def test_a_file_that_holds_no_weights_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "locator.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=r"locator\.safetensors.*experiment=pretrain_locator"):
        load_segmenter(file)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(ModelError, match=r"other\.safetensors"):
        load_segmenter(file)


def test_a_perfect_segmentation_costs_nothing_and_one_of_the_wrong_kind_less_than_none() -> None:
    masks = torch.zeros(1, 12, 12, 12)
    masks[:, 3:9, 3:9, 3:9] = 1

    def said(kind: int | None) -> torch.Tensor:
        logits = torch.zeros(1, 3, 12, 12, 12)
        logits[:, 0] = 20.0 * (1 - masks) if kind is not None else 20.0
        if kind is not None:
            logits[:, kind] = 20.0 * masks
        return segmentation_loss(logits, masks, torch.tensor([1]))

    right, wrong, none = said(2).item(), said(1).item(), said(None).item()
    assert right == pytest.approx(0.0, abs=1e-3)
    assert right < wrong < none
    dice = [soft_dice(masks, masks).item(), soft_dice(torch.zeros_like(masks), masks, smooth=0.0).item()]
    assert dice == [1.0, 0.0]


def test_a_study_without_a_mask_teaches_by_its_label_alone() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 3, 6, 6, 6)
    masks = (torch.rand(3, 6, 6, 6) > 0.7).float()
    labels = torch.tensor([0, 1, 1])
    apart = [segmentation_loss(logits[i : i + 1], masks[i : i + 1], labels[i : i + 1]) for i in range(2)]
    masks[2] = torch.nan
    weak = torch.nn.functional.softplus(-dense_vote(logits[2:]))[0]
    torch.testing.assert_close(segmentation_loss(logits, masks, labels), (sum(apart) + weak) / 3)


def test_soft_dice_of_hard_masks_is_the_dice_coefficient() -> None:
    rng = np.random.default_rng(0)
    found, truth = (torch.from_numpy(rng.random((3, 6, 6, 6)) > 0.5).float() for _ in range(2))
    expected = [2 * (a * b).sum() / (a.sum() + b.sum()) for a, b in zip(found, truth, strict=True)]
    torch.testing.assert_close(soft_dice(found, truth, smooth=0.0), torch.stack(expected))


def test_a_segmenter_learns_one_bright_tumour_in_a_few_steps() -> None:
    torch.manual_seed(0)
    segmenter = TumourSegmenter(widths=(8, 16))
    masks = torch.zeros(2, 16, 16, 16)
    masks[0, 3:9, 4:10, 5:11] = masks[1, 6:13, 2:8, 3:9] = 1
    volumes = torch.randn(2, 4, 16, 16, 16) * 0.3 + 3 * masks[:, None]
    labels = torch.tensor([0, 1])
    volumes[1, 1] -= 4 * masks[1]  # what tells mutant from wildtype: dark on T1
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        segmentation_loss(segmenter(volumes), masks, labels).backward()
        optimizer.step()
    logits = segmenter.eval()(volumes)
    found = tumour_logit(logits) > 0
    assert soft_dice(found.float(), masks).min() > 0.9
    assert ((dense_vote(logits) > 0).long() == labels).all()


@pytest.fixture(scope="module")
def gliomas() -> SyntheticGliomas:
    preprocessing = Preprocessing(grid=(33, 43, 33), missing="zero")
    return SyntheticGliomas(length=24, seed=3, preprocessing=preprocessing, spacing_mm=4.0, views=2, window=3)


def test_a_synthetic_glioma_is_a_function_of_seed_and_index(gliomas: SyntheticGliomas) -> None:
    other = SyntheticGliomas(length=24, seed=3, preprocessing=gliomas.preprocessing, spacing_mm=4.0, views=2, window=3)
    late = other[9]  # asked for first
    for found, expected in zip(late, gliomas[9], strict=True):
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))
    assert not torch.equal(gliomas[8].volumes, gliomas[9].volumes)


def test_synthetic_gliomas_have_both_labels_a_tumour_in_the_brain_and_nothing_outside_it(
    gliomas: SyntheticGliomas,
) -> None:
    drawn = [gliomas[index] for index in range(len(gliomas))]
    assert {one.labels for one in drawn} == {0, 1}
    for one in drawn:
        assert one.volumes.shape == (4, 33, 43, 33)
        assert torch.isfinite(one.volumes).all()
        assert one.masks.any()
        assert not (one.masks.bool() & ~one.brains.bool()).any()
        assert not one.volumes[:, one.brains == 0].any()
        assert one.volumes[0].any() or one.volumes[3].any()  # FLAIR or T2 is always there


def test_an_index_beyond_the_end_is_refused(gliomas: SyntheticGliomas) -> None:
    with pytest.raises(IndexError):
        gliomas[24]


def test_a_residue_lies_around_the_brain_alone() -> None:
    still = dict.fromkeys(("degrees", "scale", "shift", "gain", "offset", "bend", "shading", "cloud", "noise"), 0.0)
    brain = torch.zeros(15, 20, 15)
    brain[4:11, 5:15, 4:11] = 1
    volume, mask = torch.stack([brain] * 4), torch.zeros_like(brain)
    near = functional.max_pool3d(brain[None], 5, stride=1, padding=2)[0] > 0
    for seed in range(5):
        rest = Randomisation(**still, coarse=0, residue=1, dropped=(0, 0, 0, 0))  # type: ignore[arg-type]
        changed, _, inside = rest(volume, mask, brain, np.random.default_rng(seed))
        added = inside.bool() & ~brain.bool()
        assert 0 < added.sum() < (near & ~brain.bool()).sum()
        assert not (added & ~near).any()
        assert bool((inside.bool() | ~brain.bool()).all())
        assert bool((changed[:, added] != 0).all())
        assert torch.allclose(changed[:, brain.bool()], volume[:, brain.bool()])


def test_no_randomisation_leaves_the_volume_as_it_is() -> None:
    rng = np.random.default_rng(0)
    brain = torch.zeros(9, 11, 9)
    brain[2:7, 2:9, 2:7] = 1
    volume = torch.randn(4, 9, 11, 9) * brain
    mask = torch.zeros_like(brain)
    mask[4:6, 4:6, 4:6] = 1
    none = Randomisation(
        degrees=0, scale=0, shift=0, gain=0, offset=0, bend=0, shading=0, cloud=0, noise=0, tumour=0, coarse=0,
        saturated=0, dropped=(0, 0, 0, 0),
    )  # fmt: skip
    for _ in range(4):
        changed, moved, inside = none(volume, mask, brain, rng)
        mirrored = torch.equal(moved, mask.flip(-1)) and not torch.equal(moved, mask)
        torch.testing.assert_close(changed.flip(-1) if mirrored else changed, volume, atol=1e-5, rtol=1e-4)
        assert torch.equal(inside, brain)


def test_mask_and_volume_move_together() -> None:
    rng = np.random.default_rng(1)
    brain = torch.ones(25, 33, 25)
    mask = torch.zeros_like(brain)
    mask[8:16, 10:20, 4:12] = 1
    volume = torch.stack([4 * mask] * 4)
    still = dict.fromkeys(("gain", "offset", "bend", "shading", "cloud", "noise", "coarse", "saturated", "tumour"), 0.0)
    for _ in range(5):
        changed, moved, _ = Randomisation(**still, dropped=(0, 0, 0, 0))(volume, mask, brain, rng)  # type: ignore[arg-type]
        assert soft_dice(((changed[2] > 2).float())[None], moved[None]).item() > 0.97


def test_smooth_noise_is_smooth_and_of_unit_size() -> None:
    fields = torch.stack([smooth_noise((20, 20, 20), 5, np.random.default_rng(seed)) for seed in range(40)])
    assert 0.8 < fields.std() < 1.2
    assert fields.diff(dim=-1).std() < 0.4


def test_specks_of_a_segmentation_go_and_second_tumours_stay() -> None:
    probability = torch.full((2, 12, 12, 12), 0.2)
    probability[0, 1:6, 1:6, 1:6] = 0.9  # 125 voxels
    probability[0, 8:11, 8:11, 8:11] = 0.8  # 27 voxels, more than a tenth
    probability[0, 1, 10, 10:12] = 0.99  # two
    probability[0, 6, 6, 6] = 0.9  # touches by a corner alone
    kept = without_specks(probability)
    gone = torch.zeros(12, 12, 12, dtype=torch.bool)
    gone[1, 10, 10:12] = gone[6, 6, 6] = True
    assert torch.equal(kept[0] == 0, gone)
    assert torch.equal(kept[0][~gone], probability[0][~gone])
    assert torch.equal(kept[1], probability[1])  # nothing is found, and nothing changes
