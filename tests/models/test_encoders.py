"""ResNets of MedicalNet from files as it shares them, held against an independent account of the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from idh_lightning.attribution import Evidence, GradCAM
from idh_lightning.attribution.sanity import modules_downwards
from idh_lightning.errors import ModelError
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm, training_memory
from idh_lightning.models.encoders import MEDICALNET

LAYERS = {"medicalnet_resnet10": (1, 1, 1, 1), "medicalnet_resnet50": (3, 4, 6, 3)}
GRID = (49, 65, 33)


def medicalnet_file(path: Path, backbone: str) -> dict[str, Tensor]:
    """Write a file as MedicalNet shares it, of random weights for one channel, and return what is in it."""
    wide = "50" in backbone
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def layer(conv: str, norm: str, out: int, into: int, edge: int) -> None:
        spread = (2 / (into * edge**3)) ** 0.5
        state[f"{conv}.weight"] = torch.randn(out, into, edge, edge, edge, generator=generator) * spread
        for name, least in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"{norm}.{name}"] = torch.rand(out, generator=generator) + least
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("conv1", "bn1", 64, 1, 7)
    into = 64
    for stage, blocks in enumerate(LAYERS[backbone]):
        planes, out = 64 * 2**stage, 64 * 2**stage * (4 if wide else 1)
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            edges = (1, 3, 1) if wide else (3, 3)
            widths = (into, planes, planes, out) if wide else (into, planes, out)
            for number, edge in enumerate(edges):
                layer(f"{name}.conv{number + 1}", f"{name}.bn{number + 1}", widths[number + 1], widths[number], edge)
            if block == 0 and (stage > 0 or into != out):
                layer(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1)
            into = out
    torch.save({"state_dict": {f"module.{name}": one for name, one in state.items()}}, path)
    return state


def reference(state: dict[str, Tensor], volumes: Tensor) -> Tensor:
    """Features of layer4 as med3d/models/resnet.py of MedicalNet describes them, for the mean of the channels."""

    def normed(hidden: Tensor, conv: str, norm: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        hidden = functional.conv3d(hidden, weight, stride=stride, padding=padding, dilation=dilation)
        parts = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(hidden, *parts)

    hidden = normed(volumes.mean(1, keepdim=True), "conv1", "bn1", stride=2).relu()
    hidden = functional.max_pool3d(hidden, 3, stride=2, padding=1)
    for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
        block = 0
        while f"layer{stage + 1}.{block}.conv1.weight" in state:
            name = f"layer{stage + 1}.{block}"
            wide, step = f"{name}.conv3.weight" in state, stride if block == 0 else 1
            if wide:
                inner = normed(hidden, f"{name}.conv1", f"{name}.bn1").relu()
                inner = normed(inner, f"{name}.conv2", f"{name}.bn2", step, dilation).relu()
                inner = normed(inner, f"{name}.conv3", f"{name}.bn3")
            else:
                inner = normed(hidden, f"{name}.conv1", f"{name}.bn1", step, dilation).relu()
                inner = normed(inner, f"{name}.conv2", f"{name}.bn2", 1, dilation)
            beside = f"{name}.downsample"
            hidden = normed(hidden, f"{beside}.0", f"{beside}.1", step) if f"{beside}.0.weight" in state else hidden
            hidden, block = (inner + hidden).relu(), block + 1
    return hidden


def made(backbone: str = "medicalnet_resnet10", **settings: object) -> StemTailNetwork:
    settings = {"trainable_from": "blocks.3", "weights": "none", "drop_path_rate": 0.0, **settings}
    return StemTailNetwork(backbone=backbone, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "backbone", ["medicalnet_resnet10", pytest.param("medicalnet_resnet50", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_a_file_of_medicalnet_gives_its_features(backbone: str, tmp_path: Path) -> None:
    file = tmp_path / "resnet_23dataset.pth"
    state = medicalnet_file(file, backbone)
    network = made(backbone, weights=str(file), trainable_from="classifier").eval()
    volumes = torch.randn(2, 4, *GRID)
    expected = reference(state, volumes)
    assert float((network.stem(volumes) - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert network.weights_origin.source == str(file)
    assert network.weights_origin.note == "1 convolution spread over other input channels"


def test_a_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    medicalnet_file(tmp_path / "resnet_10.pth", "medicalnet_resnet10")
    with pytest.raises(ModelError, match=r"resnet_10\.pth: tensor 'blocks"):
        made("medicalnet_resnet50", weights=str(tmp_path / "resnet_10.pth"))
    with pytest.raises(ModelError, match="medicalnet_resnet10, medicalnet_resnet50"):
        made("medicalnet_resnet18")
    deeper = medicalnet_file(tmp_path / "resnet_10.pth", "medicalnet_resnet10")
    deeper |= {name.replace("layer3.0", "layer3.1"): one for name, one in deeper.items() if "layer3.0" in name}
    torch.save(deeper, tmp_path / "deeper.pth")  # as a file of depth 101 holds all that depth 50 has
    with pytest.raises(ModelError, match=r"'blocks\.2\.1\..*has no place"):
        made(weights=str(tmp_path / "deeper.pth"))


def test_a_file_that_is_damaged_or_no_file_at_all_is_told_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "resnet_10.pth"
    state = medicalnet_file(file, "medicalnet_resnet10")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2  # in the weights, of which torch checks nothing
    content[middle : middle + 3] = bytes(255 - byte for byte in content[middle : middle + 3])
    (tmp_path / "damaged.pth").write_bytes(content)
    state["conv1.weight"][0, 0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for name, told in {
        "damaged": "does not fit its check sum", "nan": "'conv_stem.weight' is not finite", "empty": "EOFError",
        "pointer": "it holds other objects than tensors and plain values", "absent": "resnet_10_23dataset.pth, or none",
    }.items():  # fmt: skip
        with pytest.raises(ModelError, match=told) as caught:
            made(weights=str(tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)
    with pytest.raises(ModelError, match=r"found 'auto', which is no file.*resnet_50_23dataset\.pth"):
        made("medicalnet_resnet50", weights="auto")


@pytest.mark.parametrize("backbone", ["medicalnet_resnet10", "tf_efficientnet_b0"])
def test_the_block_that_a_wrong_cut_names_is_there(backbone: str) -> None:
    with pytest.raises(ModelError, match="trainable_from") as caught:
        StemTailNetwork(backbone=backbone, trainable_from="blocks.9", weights="none")
    block = str(caught.value).partition("such as '")[2].partition("'")[0]
    assert StemTailNetwork(backbone=backbone, trainable_from=block, weights="none").weights_origin.source == "none"


@pytest.mark.parametrize("cut", ["bn1", "blocks.1", "blocks.3", "blocks.3.0", "classifier"])
def test_it_is_cut_anywhere_and_learns_behind_the_cut_alone(cut: str) -> None:
    network = made(trainable_from=cut, missing="zero", locator="pretrained")
    volumes = torch.randn(2, 4, 33, 33, 33)
    calibrate_batch_norm(network, [volumes])
    features = network.stem(volumes)
    network.tail(features).sum().backward()
    learning = {name for name, one in network.network.named_parameters() if one.grad is not None}
    names = ["conv_stem", "bn1", *(f"blocks.{stage}" for stage in range(4)), "classifier"]
    whole = cut.removesuffix(".0") if cut.startswith("blocks") else cut
    behind = tuple(f"{name}." for name in names[names.index(whole) :])
    assert learning == {name for name, _ in network.network.named_parameters() if name.startswith(behind)}


@torch.no_grad()
def test_its_cells_lie_where_a_point_is_seen(tmp_path: Path) -> None:
    """A bright voxel moves most the cell whose centre is nearest, in features whose layers are averages."""
    network = made(trainable_from="blocks.2").eval()
    for module in network.network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    offset, step = network.sampling("entry", 65)
    assert (offset, step) == (0.0, 8.0)
    for cell in (2, 5):
        volumes = torch.zeros(1, 4, 65, 65, 65)
        volumes[..., round(offset + step * cell), 32, 32] = 1.0
        seen = network.stem(volumes)[0, 0]
        assert int(seen[:, 4, 4].argmax()) == cell


def test_maps_sanity_and_the_memory_plan_know_it() -> None:
    network = made(locator="pretrained").eval()
    volumes = torch.randn(1, 4, 33, 33, 33)
    calibrate_batch_norm(network, [torch.randn(4, 4, 33, 33, 33)])
    network.eval()
    for method in (Evidence(steps=2), GradCAM(layer="blocks.1"), GradCAM(layer="entry")):
        assert method(network, volumes).shape == volumes[:, 0].shape
    parts = modules_downwards(network)
    assert list(parts)[1:3] == ["classifier", "blocks.3"]
    assert parts["blocks.2"] == "stem"
    shape = (4, 4, 49, 65, 49)
    plans = [
        training_memory(made(trainable_from=cut), shape, torch.optim.AdamW, from_features=False)
        for cut in ("blocks.1", "blocks.3")
    ]
    assert plans[0].peak > plans[1].peak > 0
    assert set(MEDICALNET) >= set(LAYERS)
