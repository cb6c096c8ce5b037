from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import skew
from sklearn.metrics import roc_auc_score
from tiny_locator import threshold_locator
from torch import Tensor

from idh_lightning.attribution import Evidence
from idh_lightning.data import Batch
from idh_lightning.evaluation import Evaluation
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.models.radiomics import RadiomicsHead, intensities
from idh_lightning.module import IDHClassifier
from idh_lightning.objectives import FocalLoss

Maker = Callable[..., StemTailNetwork]

CELLS = [4, 5, 3]
PLACES = [(1.0, 3.0)] * 3
"""Cells of three voxels that tile a volume without overlapping."""


def a_volume(seed: int = 0, batch: int = 1) -> Tensor:
    shape = (batch, 2, *(3 * count for count in CELLS))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).exp()


def a_gate(*cells: tuple[int, int, int]) -> Tensor:
    gate = torch.zeros(1, *CELLS)
    for cell in cells:
        gate[(0, *cell)] = 1
    return gate


def test_the_intensities_of_a_cell_are_those_of_its_voxels() -> None:
    volume = a_volume()
    found = intensities(volume, PLACES, CELLS)[0].unflatten(0, (4, 2))
    box = volume[0, 1, 3:6, 6:9, 0:3].double().numpy()
    expected = [box.mean(), box.var(), ((box - box.mean()) ** 3).mean()]
    np.testing.assert_allclose(found[:3, 1, 1, 2, 0], expected, rtol=1e-4)


def test_roughness_is_the_difference_of_neighbours_summed_over_the_axes() -> None:
    ramp = torch.zeros(1, 1, *(3 * count for count in CELLS))
    ramp += 2 * torch.arange(12.0)[:, None, None] + 5 * torch.arange(9.0)
    assert intensities(ramp, PLACES, CELLS)[0, 3, 1, 1, 1] == pytest.approx(7)


def test_the_notes_are_the_statistics_of_the_voxels_in_the_gate() -> None:
    volume, gate = a_volume(1), a_gate((0, 1, 2), (3, 4, 0), (2, 2, 1))
    notes = RadiomicsHead(2).features(intensities(volume, PLACES, CELLS), gate)[0]
    inside = torch.nn.functional.interpolate(gate[:, None], scale_factor=3)[0, 0] > 0
    for sequence in (0, 1):
        voxels = volume[0, sequence][inside].double().numpy()
        np.testing.assert_allclose(notes[sequence], voxels.mean(), rtol=1e-4)
        np.testing.assert_allclose(notes[2 + sequence], voxels.std(), rtol=1e-2)
        np.testing.assert_allclose(notes[4 + sequence], min(skew(voxels), 3), rtol=2e-2)


def test_the_notes_tell_where_a_tumour_lies_and_how_large_it_is() -> None:
    def where(*cells: tuple[int, int, int]) -> list[float]:
        return RadiomicsHead(2).features(intensities(a_volume(), PLACES, CELLS), a_gate(*cells))[0, 8:].tolist()

    low, high, behind, left = where((0, 2, 1)), where((3, 2, 1)), where((0, 4, 1)), where((0, 2, 2))
    assert high[0] > low[0]
    assert behind[1] > low[1]
    assert left == pytest.approx(low)
    long, two = where((0, 0, 1), (0, 4, 1)), where((0, 2, 1), (0, 3, 1))
    assert long[3] > two[3] > low[3]
    assert long[5] == pytest.approx(two[5])
    assert two[5] > low[5]


def test_the_reader_says_nothing_where_no_cell_is_tumour_rather_than_not() -> None:
    reader = RadiomicsHead(2)
    torch.nn.init.ones_(reader.weigh.weight)
    tissue = intensities(a_volume(), PLACES, CELLS)
    assert reader(tissue, a_gate((1, 1, 1))) != 0
    assert reader(tissue, torch.full((1, *CELLS), 0.5)) == 0


def test_what_a_weak_cell_is_like_does_not_matter() -> None:
    reader, gate = RadiomicsHead(2), a_gate((1, 1, 1))
    gate[0, 3, 3, 2] = 0.4
    tissue = intensities(a_volume(), PLACES, CELLS)
    changed = tissue.clone()
    changed[:, :, 3, 3, 2] += 5
    assert torch.equal(reader.features(tissue, gate), reader.features(changed, gate))


def with_an_opinion(network: StemTailNetwork, x: Tensor) -> StemTailNetwork:
    calibrate_batch_norm(network, [x])
    assert network.radiomics is not None
    torch.nn.init.normal_(network.radiomics.weigh.weight, std=1e-4)
    return network.eval()


def noise(batch: int = 4, edge: int = 33) -> Tensor:
    return torch.randn(batch, 4, edge, edge, edge, generator=torch.Generator().manual_seed(2))


def test_the_logits_are_the_mean_of_all_opinions(small_network: Maker) -> None:
    x = noise()
    network = with_an_opinion(small_network(locator=threshold_locator(0.0)), x)
    answer = network.answer(network.stem(x))
    deep, read, voted = answer.branch_logits
    torch.testing.assert_close(answer.logits, (deep + read + voted) / 3)
    few = with_an_opinion(small_network(locator=threshold_locator(0.0), training_patients=25), x)
    few.load_state_dict(network.state_dict())
    # 25 / (25 + 300) and 25 / (25 + 100) of the weight of the vote.
    torch.testing.assert_close(few(x), (deep / 13 + read / 5 + voted) / (1 / 13 + 1 / 5 + 1))
    assert (read[:, 1] - read[:, 0]).std() > 0
    assert len(small_network().answer(small_network().stem(x)).branch_logits) == 1


def test_each_opinion_is_taught_as_if_the_others_were_not_there(small_network: Maker) -> None:
    x = noise()
    network = with_an_opinion(small_network(locator=threshold_locator(0.0)), x)
    model = IDHClassifier(network=network, objective=FocalLoss())
    model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batch = Batch(volumes=x, labels=torch.tensor([0, 1, 0, 1]), study_ids=list("abcd"))

    def gradients() -> tuple[Tensor, ...]:
        assert network.radiomics is not None
        assert network.vote is not None
        heads = (network.radiomics.weigh.weight, network.vote.weigh.weight)
        return torch.autograd.grad(model.training_step(batch, 0), heads)

    before = gradients()
    with torch.no_grad():
        network.network.classifier.bias.copy_(torch.tensor([-20.0, 20.0]))
    torch.testing.assert_close(gradients(), before)
    assert all(gradient.abs().sum() > 0 for gradient in before)


def test_each_part_of_the_network_clips_its_own_gradients(small_network: Maker) -> None:
    network = small_network(locator=threshold_locator(0.0))
    model = IDHClassifier(network=network, objective=FocalLoss())
    for scale, part in enumerate(network.parts()):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, 1e-6 * 1e4**scale)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part.parameters()]) for part in network.parts()]  # type: ignore[misc]
    model.configure_gradient_clipping(torch.optim.SGD(network.parameters()), gradient_clip_val=0.01)
    after = [torch.nn.utils.get_total_norm([p.grad for p in part.parameters()]) for part in network.parts()]  # type: ignore[misc]
    assert len(after) == 3
    assert norms[0] < 0.01 < norms[1]
    assert after[0] == norms[0]
    assert after[1:] == [pytest.approx(0.01, rel=1e-3)] * 2


def test_the_reader_reckons_in_float32_whatever_the_precision_of_the_trainer(small_network: Maker) -> None:
    x = noise()
    network = with_an_opinion(small_network(locator=threshold_locator(0.0)), x)
    entry = network.entry(network.stem(x))
    plain = network.classify(entry).branch_logits[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.classify(entry).branch_logits[1], plain)


def test_what_the_reader_went_by_is_in_the_map(small_network: Maker) -> None:
    x = noise(2)
    x[:, :, 8:16, 8:16, 8:16] += 4
    network = with_an_opinion(small_network(locator=threshold_locator(2.0)), x)
    assert network.radiomics is not None
    with torch.no_grad():
        network.network.classifier.weight.zero_()
        assert not Evidence()(network, x).isnan().any()
        network.radiomics.weigh.weight.zero_()
        assert not Evidence()(network, x).any()
        network.radiomics.weigh.weight[0, :4] = 1e-3
    peak = Evidence()(network, x).flatten(1).argmax(1)
    for place in torch.stack(torch.unravel_index(peak, x.shape[2:]), 1):
        assert ((place >= 4) & (place <= 19)).all()


def test_all_opinions_are_written_beside_the_logit_and_judged_alone(small_network: Maker) -> None:
    x = noise()
    network = with_an_opinion(small_network(locator=threshold_locator(0.0)), x)
    model = IDHClassifier(network=network, objective=FocalLoss())
    said = model.test_step(Batch(volumes=x, labels=torch.tensor([0, 1, 0, 1]), study_ids=list("abcd")), 0)
    torch.testing.assert_close(said[:, 0], said[:, 1:].mean(1))

    labels = np.tile([0, 1], 60)
    patients = pd.DataFrame({"study_id": [f"S{i}" for i in range(120)], "label": labels, "fold": 0})
    patients["patient_id"], patients["split"] = patients["study_id"], ["validation"] * 60 + ["test"] * 60
    chance = np.random.default_rng(0)
    deep, read, vote = (chance.normal(size=120) + strength * labels for strength in (0, 2, 1))
    opinions = {"logit_deep": deep, "logit_reader": read, "logit_vote": vote}
    predictions = patients.assign(logit=(deep + read + vote) / 3, probability=0.5, **opinions)
    baselines = Evaluation(bootstrap=100)(predictions, patients).metrics["baselines"]
    for name, opinion in (("deep", deep), ("reader", read), ("vote", vote)):
        assert baselines[name]["fitted_on"] == "validation"
        if name != "deep":  # which knows nothing, so that the sign of its coefficient is chance
            area = roc_auc_score(labels[60:], opinion[60:])
            assert baselines[name]["test"]["auroc"]["value"] == pytest.approx(area)
        assert baselines[name]["test"]["auroc"]["n"] == len(opinion[60:])
    without = Evaluation(bootstrap=100)(predictions.drop(columns=list(opinions)), patients)
    assert not {"deep", "reader", "vote"} & set(without.metrics["baselines"])
