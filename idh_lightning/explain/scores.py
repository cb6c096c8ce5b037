"""How well a map lies on the tumour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve

from idh_lightning.errors import ExplanationError


def localisation_scores(
    cam: NDArray[np.floating], mask: NDArray[np.integer], brain: NDArray[np.integer]
) -> dict[str, float]:
    """Return how well one map finds one tumour.

    Args:
        cam: [D, H, W], >= 0; the map before anything outside the brain was taken away.
        mask: [D, H, W], non-zero in the tumour.
        brain: [D, H, W], non-zero in the brain; tumour outside of it counts as brain.

    Returns:
        pointing_game: 1.0 if the hottest voxel of the brain lies in the tumour, else 0.0.
        energy_inside: Share of the map's sum in the brain that lies in the tumour.
        auprc: Average precision of the map as a detector of tumour among brain voxels; chance is the tumour's share.
        best_iou: Largest intersection over union with the tumour over all thresholds.
        outside_brain: Share of the map's sum that lies outside the brain.
        A map that is zero throughout the brain scores 0 in the first four, `auprc` being chance.

    Raises:
        ExplanationError: If shapes differ or the mask is empty.

    Source: pointing game, Zhang et al. 2018, doi:10.1007/s11263-017-1059-x; energy, Wang et al. 2020,
        arXiv:1910.01279, section 4.3.
    """
    if cam.shape != mask.shape or cam.shape != brain.shape:
        raise ExplanationError(
            f"map {cam.shape}, mask {mask.shape}, brain {brain.shape}: shapes differ; expected one grid. "
            "Resample the mask to the grid of the map."
        )
    tumour = mask > 0
    if not tumour.any():
        raise ExplanationError("the tumour mask is empty; expected some tumour. Leave the study out of scoring.")
    head = (brain > 0) | tumour
    values, truth = cam[head].astype(np.float64), tumour[head]
    total, in_brain = float(cam.sum(dtype=np.float64)), float(values.sum())
    precision, recall, _ = precision_recall_curve(truth, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.nan_to_num(1.0 / (1.0 / precision + 1.0 / recall - 1.0))
    alive = in_brain > 0
    return {
        "pointing_game": float(truth[int(np.argmax(values))]) if alive else 0.0,
        "energy_inside": float(values[truth].sum() / in_brain) if alive else 0.0,
        "auprc": float(average_precision_score(truth, values)),
        "best_iou": float(iou.max()) if alive else 0.0,
        "outside_brain": 1.0 - in_brain / total if total > 0 else 0.0,
    }
