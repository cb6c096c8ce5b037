"""First-order and shape features of a tumour, for a baseline that a network has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from idh_lightning.errors import EvaluationError


def tumour_features(
    images: npt.NDArray[np.floating],
    mask: npt.NDArray[np.integer],
    *,
    sequences: Sequence[str],
    spacing_mm: Sequence[float],
) -> dict[str, float]:
    """First-order and shape features of the tumour of one study.

    Args:
        images: [C, D, H, W], normalised within the brain, so that intensities compare between patients.
        mask: [D, H, W] on the same grid; any non-zero voxel is tumour.
        sequences: [C], names of the channels.
        spacing_mm: Voxel size along D, H, W.

    Returns:
        `volume_ml`; `roundness` (area of the sphere of the same volume over that of the tumour, 1 for a sphere),
        `elongation` and `flatness` (ratios of principal axes, >= 1); `foci` (connected parts of at least 0.1 mL, at
        least 1); and for each sequence the mean, standard deviation, 10th and 90th percentile of the tumour.

    Raises:
        EvaluationError: If the mask is empty or the shapes do not fit.

    Source: SimpleITK's LabelShapeStatisticsImageFilter (Lehmann 2007, Insight Journal).
    """
    inside = np.asarray(mask) != 0
    if images.shape != (len(sequences), *inside.shape):
        raise EvaluationError(
            f"tumour features: images are {images.shape} with a mask of {inside.shape}; expected "
            f"{(len(sequences), *inside.shape)}. Give both on one grid, one channel per sequence."
        )
    if not inside.any():
        raise EvaluationError(
            "tumour features: the mask is empty; expected a tumour. Correct the mask or leave the study out."
        )
    tumour = sitk.GetImageFromArray(inside.astype(np.uint8))
    tumour.SetSpacing([float(size) for size in reversed(spacing_mm)])
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(tumour)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    parts = sitk.RelabelComponent(
        sitk.ConnectedComponent(tumour, True), minimumObjectSize=max(1, int(np.ceil(0.1 / voxel_ml)))
    )
    features = {
        "volume_ml": float(inside.sum()) * voxel_ml,
        "roundness": float(shape.GetRoundness(1)),
        "elongation": float(shape.GetElongation(1)),
        "flatness": float(shape.GetFlatness(1)),
        "foci": float(max(1, sitk.GetArrayViewFromImage(parts).max())),
    }
    for name, image in zip(sequences, images, strict=True):
        values = image[inside].astype(float)
        low, high = np.percentile(values, [10, 90])
        features |= {
            f"{name}_mean": float(values.mean()),
            f"{name}_sd": float(values.std()),
            f"{name}_p10": float(low),
            f"{name}_p90": float(high),
        }
    # A tumour of one slice or one voxel has no flatness; a ratio of 1 leaves it in the middle of the others.
    return {name: value if np.isfinite(value) else 1.0 for name, value in features.items()}
