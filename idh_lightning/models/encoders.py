"""Encoders that a network can be cut from: EfficientNets, and ResNets of MedicalNet under the same names."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from idh_lightning.errors import ModelError
from idh_lightning.models.fast.convolutions import correct_padding
from idh_lightning.models.timm3d import BasicBlock, Bottleneck, ResNet, timm_3d

MEDICALNET: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "medicalnet_resnet10": (BasicBlock, (1, 1, 1, 1)),
    "medicalnet_resnet50": (Bottleneck, (3, 4, 6, 3)),
    "medicalnet_resnet101": (Bottleneck, (3, 4, 23, 3)),
    "medicalnet_resnet152": (Bottleneck, (3, 8, 36, 3)),
    "medicalnet_resnet200": (Bottleneck, (3, 24, 36, 3)),
}
"""Backbone -> its block and the number of them in each stage. Those of depth 18 and 34 have shortcuts without weights,
which timm_3d lacks."""


def encoder(backbone: str, in_chans: int, *, drop_rate: float, drop_path_rate: float) -> Any:
    """Untrained encoder for two classes; a ModelError if there is none of this name."""
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    if backbone in MEDICALNET:
        return MedicalNetEncoder(backbone, in_chans=in_chans, **rates)
    if "efficientnet" not in backbone or not timm_3d.is_model(backbone):
        raise ModelError(
            f"model.backbone: found '{backbone}'; expected an EfficientNet of timm_3d or a ResNet of MedicalNet. "
            f"Choose one of: {', '.join([*timm_3d.list_models('*efficientnet_b*'), *MEDICALNET])}."
        )
    made = timm_3d.create_model(backbone, in_chans=in_chans, num_classes=2, **rates)
    correct_padding(made)
    return made


class MedicalNetEncoder(nn.Module):
    """3D ResNet whose last two stages are dilated instead of strided: 1/8 of the input's edge from `blocks.1` on.

    Attributes:
        conv_stem: Convolution of 7 voxels.
        bn1: BatchNorm, ReLU and pooling.
        blocks: Four stages.
        conv_head: Nothing, like bn2: an EfficientNet has layers there.

    Source: Chen et al. 2019, arXiv:1904.00625.
    """

    def __init__(self, backbone: str, *, in_chans: int, drop_rate: float, drop_path_rate: float) -> None:
        """Build an untrained encoder for two classes; `backbone` is one of MEDICALNET."""
        super().__init__()
        block, layers = MEDICALNET[backbone]
        made = ResNet(block, layers, 2, in_chans, output_stride=8, drop_path_rate=drop_path_rate)
        self.drop_rate = drop_rate
        self.conv_stem = made.conv1
        self.bn1 = nn.Sequential(made.bn1, made.act1, made.maxpool)
        self.blocks = nn.Sequential(made.layer1, made.layer2, made.layer3, made.layer4)
        self.conv_head, self.bn2 = nn.Identity(), nn.Identity()
        self.global_pool, self.classifier = made.global_pool, made.fc
        for stage, dilation in ((2, 2), (3, 4)):  # timm_3d widens the first convolution of a stage one block later
            for conv in self.blocks[stage].modules():
                if isinstance(conv, nn.Conv3d) and conv.kernel_size == (3, 3, 3):
                    conv.dilation = conv.padding = (dilation,) * 3

    @staticmethod
    def renamed(name: str) -> str:
        """Name here of a tensor in a file of MedicalNet."""
        name = re.sub(r"^conv1\.", "conv_stem.", re.sub(r"^bn1\.(?!0\.)", "bn1.0.", name))
        return re.sub(r"^layer(\d)\.", lambda stage: f"blocks.{int(stage[1]) - 1}.", name)
