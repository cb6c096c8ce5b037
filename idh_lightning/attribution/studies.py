"""Stored studies as tensors, and their maps as rows of explanations.csv."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from idh_lightning.attribution.maps import Method
from idh_lightning.attribution.scores import study_rows
from idh_lightning.cohort import Study
from idh_lightning.errors import ExplanationError
from idh_lightning.models import StemTailNetwork
from idh_lightning.volumes import StoredVolume

logger = logging.getLogger(__name__)


def volume_tensor(stored: Sequence[StoredVolume], network: StemTailNetwork) -> Tensor:
    """Volumes [B, C, D, H, W], float32, on the device of a network."""
    volumes = torch.stack([torch.from_numpy(np.array(item.image, dtype=np.float32)) for item in stored])
    return volumes.to(next(network.parameters()).device)


def reference_maps(network: StemTailNetwork, methods: Sequence[Method], stored: StoredVolume) -> dict[str, np.ndarray]:
    """Name of a method -> its reference map [D, H, W] for one study; nothing for a study without a mask."""
    if stored.mask is None:
        return {}
    volume = volume_tensor([stored], network)
    mask = torch.from_numpy(np.array(stored.mask) > 0).float()[None].to(volume.device)
    with torch.no_grad():
        return {method.name: method.reference(network, volume, mask)[0].cpu().numpy() for method in methods}


def explanation_rows(
    network: StemTailNetwork,
    methods: Sequence[Method],
    study: Study,
    stored: StoredVolume,
    cams: Mapping[str, np.ndarray],
    mean_tumour: np.ndarray | None,
) -> list[dict[str, object]]:
    """Rows of explanations.csv of one study; rows without scores, and a warning, where it has no tumour.

    Args:
        network: That was explained.
        methods: Of explanation.
        study: That was explained.
        stored: Its volume.
        cams: Name of a method -> its map [D, H, W].
        mean_tumour: Of `mean_mask`.
    """
    try:
        if stored.mask is None:
            raise ExplanationError("the study has no tumour mask")
        references = reference_maps(network, methods, stored)
        both = {name: (cam, references[name]) for name, cam in cams.items()}
        rows = study_rows(both, np.asarray(stored.mask), np.asarray(stored.brain), mean_tumour)
    except ExplanationError as error:
        logger.warning("Study %s: its maps are not scored: %s", study.study_id, error)
        rows = [{"method": name} for name in cams]
    return [{"study_id": study.study_id, **row} for row in rows]
