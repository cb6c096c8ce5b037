"""Maps against the signs of synthetic studies, whose voxels are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from idh_lightning.attribution.maps import explaining
from idh_lightning.attribution.perturbation import margin_lost
from idh_lightning.attribution.scores import localisation_scores
from idh_lightning.cohort import Study
from idh_lightning.models import StemTailNetwork
from idh_lightning.phantom import SignMasks, evidence_file
from idh_lightning.volumes import StoredVolume, codes_on_grid

ANY_SIGN = "any sign"
"""Name of all signs of a synthetic study taken together, in explanations_by_sign.csv."""

POINTING_WHERE_DECISIVE = "pointing_game_where_decisive"
"""Pointing game on a sign, of the studies in which the network goes by it more than by the whole tumour."""

SIGN_CODES = {code.name.lower(): code for code in SignMasks if code is not SignMasks.OEDEMA and code.name}
"""The signs by which synthetic mutants and wildtypes differ and that have voxels; oedema follows enhancement."""


def sign_masks(study: Study, stored: StoredVolume) -> dict[str, np.ndarray]:
    """Sign -> its voxels [D, H, W], of the signs that a synthetic study shows, and all of them as `ANY_SIGN`."""
    file = evidence_file(study)
    if file is None:
        return {}
    codes = codes_on_grid(file, stored)
    found = {sign: voxels for sign, code in SIGN_CODES.items() if (voxels := (codes & int(code)) > 0).any()}
    return found | {ANY_SIGN: np.logical_or.reduce(list(found.values()))} if found else {}


def sign_scores(cam: np.ndarray, masks: Mapping[str, np.ndarray], brain: np.ndarray) -> dict[str, dict[str, float]]:
    """Sign -> scores of one map against the voxels of that sign, for the signs that a study shows.

    Args:
        cam: [D, H, W], >= 0.
        masks: Sign -> [D, H, W], non-zero in the voxels that carry it.
        brain: [D, H, W], non-zero in the brain.
    """
    return {sign: localisation_scores(cam, voxels, brain) for sign, voxels in masks.items() if np.any(voxels)}


def sign_rows(
    network: StemTailNetwork, volume: Tensor, study: Study, stored: StoredVolume, cams: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """Rows of explanations_by_sign.csv of one study: every map against every sign.

    Two columns say by how much the margin falls where the sign's voxels, and where the tumour's, give way to their
    mirror: what the network goes by may be told from what it could go by.

    Args:
        network: That was explained.
        volume: [C, D, H, W].
        study: With its signs; there are none in a real one.
        stored: Its volume.
        cams: Name of a method -> its map [D, H, W].
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
