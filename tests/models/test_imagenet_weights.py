"""The pretrained road with real weights: ImageNet's of an EfficientNet-lite0, inflated to 3D."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from imagenet_weights import write_imagenet_lite0

from idh_lightning.commands.training import train
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.models import StemTailNetwork


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet_lite0(tmp_path_factory.mktemp("imagenet") / "lite0.pt")


@pytest.fixture(scope="module")
def volumes() -> torch.Tensor:
    return torch.randn(2, 3, 33, 65, 49, generator=torch.Generator().manual_seed(0))


def pretrained(weights: Path, **settings: object) -> StemTailNetwork:
    made = StemTailNetwork(
        backbone="tf_efficientnet_lite0",
        weights=str(weights),
        sequences=("FLAIR", "T1", "T1c"),
        stem_precision="float32",
        tail_precision="float32",
        **settings,  # type: ignore[arg-type]
    )
    return made.eval()


def test_a_volume_constant_along_depth_gives_what_timms_2d_network_gives_on_one_slice(weights: Path) -> None:
    flat = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    flat.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(1))
    network = pretrained(weights).network
    with torch.no_grad():
        expected = flat.blocks[:3](flat.bn1(flat.conv_stem(image)))
        volume = image[:, :, None].expand(-1, -1, 129, -1, -1)
        found = network.blocks[:3](network.bn1(network.conv_stem(volume)))
    assert expected.std() > 0.1
    middle = found[:, :, found.shape[2] // 2]  # the ends see beyond the volume
    torch.testing.assert_close(middle, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_with_pretrained_weights_every_block_adds_something_and_a_fused_stem_computes_the_same(
    weights: Path, volumes: torch.Tensor
) -> None:
    network = pretrained(weights)
    assert network.weights_origin.pretrained
    assert "inflated" in network.weights_origin.note
    for stage in network.network.blocks:
        for block in stage:
            last = getattr(block, "bn3", None) or block.bn2
            assert last.weight.abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(network(volumes), network.network(volumes), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_with_pretrained_weights_says_so_and_calibrates_no_batch_norm(weights: Path, tmp_path: Path) -> None:
    overrides = [
        "name=imagenet",
        "cohort.patients=40",
        "cohort.spacing_mm=4",
        "data.grid=[25,33,25]",
        "model=efficientnet_b0",
        "model.backbone=tf_efficientnet_lite0",
        f"model.weights={weights}",
        "split.validation=0.25",
        "split.test=0.25",
        "trainer.max_epochs=1",
        "evaluation.bootstrap=200",
        *(f"paths.{name}={tmp_path / name}" for name in ("data", "store", "bank", "run")),
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        metrics = train(compose("train", overrides=overrides))
    assert metrics["test"]["auroc"]["n"] == 10
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["weights"]["source"] == str(weights)
    assert provenance["batch_norm_calibrated_on"] == "nothing"
