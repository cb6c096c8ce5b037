"""Stored studies as tensors; their maps scored against the tumour and the signs of synthetic studies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from idh_lightning.attribution.maps import Method, explaining
from idh_lightning.attribution.perturbation import margin_lost
from idh_lightning.attribution.scores import localisation_scores, study_rows
from idh_lightning.cohort import Study
from idh_lightning.errors import ExplanationError
from idh_lightning.models import StemTailNetwork
from idh_lightning.phantom import SignMasks, evidence_file
from idh_lightning.volumes import StoredVolume, codes_on_grid

logger = logging.getLogger(__name__)

ANY_SIGN = "any sign"
"""Name of all signs of a synthetic study taken together, in explanations_by_sign.csv."""

POINTING_WHERE_DECISIVE = "pointing_game_where_decisive"
"""Pointing game on a sign, of the studies in which the network goes by it more than by the whole tumour."""

SIGN_CODES = {code.name.lower(): code for code in SignMasks if code is not SignMasks.OEDEMA and code.name}
"""The signs by which synthetic mutants and wildtypes differ and that have voxels; oedema follows enhancement."""


def volume_tensor(stored: Sequence[StoredVolume], network: StemTailNetwork) -> Tensor:
    """Volumes [B, C, D, H, W], float32, on the device of a network."""
    volumes = torch.stack([torch.from_numpy(np.array(item.image, dtype=np.float32)) for item in stored])
    return volumes.to(next(network.parameters()).device)


def explained_at_once(network: StemTailNetwork, batch_size: int) -> int:
    """Studies that are explained in one batch: one where sites are harmonised, since methods make batches of views."""
    return 1 if getattr(network, "harmonise", None) else batch_size


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
    """Rows of explanations.csv of one study; rows without scores, and a warning, where it has no tumour."""
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


def sign_masks(study: Study, stored: StoredVolume) -> dict[str, np.ndarray]:
    """Sign -> its voxels [D, H, W], of the signs that a synthetic study shows, and all of them as `ANY_SIGN`."""
    file = evidence_file(study)
    if file is None:
        return {}
    codes = codes_on_grid(file, stored)
    found = {sign: voxels for sign, code in SIGN_CODES.items() if (voxels := (codes & int(code)) > 0).any()}
    return found | {ANY_SIGN: np.logical_or.reduce(list(found.values()))} if found else {}


def sign_scores(cam: np.ndarray, masks: Mapping[str, np.ndarray], brain: np.ndarray) -> dict[str, dict[str, float]]:
    """Sign -> scores of one map against the voxels of that sign, for the signs that a study shows."""
    return {sign: localisation_scores(cam, voxels, brain) for sign, voxels in masks.items() if np.any(voxels)}


def sign_rows(
    network: StemTailNetwork, volume: Tensor, study: Study, stored: StoredVolume, cams: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """Rows of explanations_by_sign.csv of one study: every map against every sign.

    Two columns say by how much the margin falls where the sign's voxels, and where the tumour's, give way to their
    mirror: what the network goes by may be told from what it could go by.
    """
    masks = sign_masks(study, stored)
    if not masks:
        return []
    tumour = np.zeros(volume.shape[1:], bool) if stored.mask is None else np.asarray(stored.mask) > 0
    regions = torch.from_numpy(np.stack([*masks.values(), tumour])).to(volume.device)
    with explaining(network), torch.no_grad():
        *each, whole = margin_lost(network, volume)(regions).tolist()
    lost = dict(zip(masks, each, strict=True))
    return [
        {"study_id": study.study_id, "method": name, "sign": sign}
        | scores
        | {"margin_lost": lost[sign], "margin_lost_tumour": whole}
        for name, cam in cams.items()
        for sign, scores in sign_scores(cam, masks, np.asarray(stored.brain)).items()
    ]
