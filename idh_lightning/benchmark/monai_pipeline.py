"""The same training as a MONAI user writes it; needs the extra `benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import EfficientNetBN
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Rand3DElasticd,
    RandAffined,
    RandFlipd,
    Resized,
)
from torch import nn

from idh_lightning.cohort import Study

FROZEN_STAGES = 5
"""Of the seven stages of blocks, as in `conf/model/efficientnet_b7.yaml`."""


def model(channels: int) -> nn.Module:
    """MONAI's untrained B7 with its first part frozen."""
    network = EfficientNetBN("efficientnet-b7", pretrained=False, spatial_dims=3, in_channels=channels, num_classes=2)
    for part in (network._conv_stem, network._bn0, *network._blocks[:FROZEN_STAGES]):
        part.requires_grad_(False)
    return network  # type: ignore[no-any-return]


def batches(
    studies: Sequence[Study], sequences: Sequence[str], shape: Sequence[int], *, batch_size: int, seed: int
) -> Any:
    """Loader of {"image": [B, C, D, H, W], "label": [B]}: read and resized once, augmented anew each epoch.

    Ranges and probabilities are those of `conf/augment/default.yaml`, as far as MONAI has the same effects.
    """
    transform = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Resized("image", tuple(reversed(shape))),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            Rand3DElasticd("image", sigma_range=(5, 7), magnitude_range=(50, 150), prob=0.3, padding_mode="zeros"),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandAffined(
                "image",
                prob=0.75,
                rotate_range=[0.087] * 3,
                scale_range=[0.05] * 3,
                translate_range=[1.5] * 3,
                padding_mode="zeros",
            ),
        ]
    ).set_random_state(seed)
    records = [{"image": [str(study.files[name]) for name in sequences], "label": study.label} for study in studies]
    torch.manual_seed(seed)
    return DataLoader(CacheDataset(records, transform, progress=False), batch_size=batch_size, shuffle=True)
