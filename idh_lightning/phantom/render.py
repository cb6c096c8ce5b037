"""One synthetic study as arrays: anatomy, tumour, signal, and everything that differs between scanners."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.phantom.anatomy import Anatomy, Grid, draw_pose, field_grid, make_anatomy
from idh_lightning.phantom.lesion import Signs, gliosis, grow_lesion, place_foci
from idh_lightning.phantom.physics import TISSUES, Tissue, signals

_Floats = NDArray[np.float32]

_WATERED = ("solid", "mismatch", "rim", "oedema")
"""The compartments that the latent `water` makes darker on T1 and brighter on T2."""

_UNEVENNESS = 0.09
"""Standard deviation of the signal within living tumour, as a share of it."""

_T1_SLICES_MM, _T2_SLICES_MM = (1.0, 1.2, 2.0), (1.2, 2.0, 3.0, 4.0)
_SLICE_MM = {"FLAIR": _T2_SLICES_MM, "T1": _T1_SLICES_MM, "T1c": _T1_SLICES_MM, "T2": _T2_SLICES_MM}


@dataclass(frozen=True)
class Images:
    """Arrays of one study on the whole field, [D, H, W]; `sequences` are 0 outside the brain and at least 1 inside.

    `labels` is the tumour segmentation, `evidence` the sum of `SignMasks` codes.
    """

    grid: Grid
    sequences: dict[str, NDArray[np.int16]]
    labels: NDArray[np.uint8]
    evidence: NDArray[np.uint8]


def render_study(
    signs: Signs, *, spacing_mm: float, patient_seed: np.random.SeedSequence, study_seed: np.random.SeedSequence
) -> Images:
    """Images of one study.

    Args:
        signs: The latent signs.
        spacing_mm: Isotropic voxel size.
        patient_seed: Of what stays the same in a follow-up study: anatomy, tumour shape, tissue.
        study_seed: Of what changes from session to session: pose, bias fields, gains, noise, slice thickness.
    """
    anatomy_rng, lesion_rng, tissue_rng = (np.random.default_rng(child) for child in patient_seed.spawn(3))
    pose_rng, scanner_rng = (np.random.default_rng(child) for child in study_seed.spawn(2))
    field = field_grid(spacing_mm)
    pose = draw_pose(pose_rng)
    foci = place_foci(signs, lesion_rng)
    anatomy = make_anatomy(field, pose, [focus.push() for focus in foci], anatomy_rng)
    lesion = grow_lesion(anatomy, foci, signs, float(pose.scale.mean()), lesion_rng)
    # Normal tissue makes room for the tumour.
    left = 1 - np.clip(np.asarray(sum(lesion.parts.values())), 0, 1)
    parts = {name: getattr(anatomy, name) * left for name in ("white", "grey", "csf", "vein")} | lesion.parts
    if signs.variety:
        parts["gliosis"] = gliosis(anatomy, tissue_rng) * parts["white"]
        parts["white"] = parts["white"] - parts["gliosis"]
    levels = _stray(signals(_draw_tissues(signs.water, tissue_rng)), signs.variety, tissue_rng)
    unevenness = _UNEVENNESS
    if signs.variety:
        unevenness += signs.variety * tissue_rng.uniform(0, 0.25)
    images = _scan(parts, anatomy, levels, unevenness, tissue_rng, scanner_rng)
    window = tuple(slice(start, start + n) for start, n in zip(anatomy.low, anatomy.grid.shape, strict=True))

    def whole(values: NDArray[np.generic]) -> NDArray[np.generic]:
        full = np.zeros(field.shape, dtype=values.dtype)
        full[window] = anatomy.placed(values)
        return full

    return Images(
        field,
        {sequence: whole(images[sequence]) for sequence in SEQUENCES},  # type: ignore[misc]
        whole(lesion.labels),  # type: ignore[arg-type]
        whole(lesion.evidence),  # type: ignore[arg-type]
    )


def _draw_tissues(water: float, rng: np.random.Generator) -> dict[str, Tissue]:
    """Tissues of one patient: the tumour's with the patient's water and uptake of contrast agent."""
    tissues = dict(TISSUES)
    for name in _WATERED:
        tissues[name] = tissues[name].watered(water)
    uptake = float(np.clip(rng.normal(1.0, 0.15), 0.7, 1.4))
    tissues["enhancing"] = replace(tissues["enhancing"], agent_mm=tissues["enhancing"].agent_mm * uptake)
    tissues["gliosis"] = TISSUES["oedema"]
    return tissues


def _stray(
    levels: dict[str, dict[str, float]], variety: float, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Signals by sequence and tissue, off by random shares, and with more or less contrast of white and grey matter."""
    if not variety:
        return levels
    strayed = {}
    for sequence, of in levels.items():
        off = np.exp(rng.normal(0, 0.1 * variety, len(of))), rng.normal(0, 0.04 * variety * of["white"], len(of))
        new = {name: abs(level * factor + more) for (name, level), factor, more in zip(of.items(), *off, strict=True)}
        new["grey"] = new["white"] + (of["grey"] - of["white"]) * (1 - variety * rng.uniform(-0.2, 0.9))
        strayed[sequence] = new
    return strayed


def _scan(
    parts: dict[str, _Floats],
    anatomy: Anatomy,
    signals_of: dict[str, dict[str, float]],
    unevenness: float,
    tissue_rng: np.random.Generator,
    scanner_rng: np.random.Generator,
) -> dict[str, NDArray[np.int16]]:
    """Images by sequence, [N]: the mixed signals seen through bias field, slice profile, gain and noise."""
    spacing_mm = anatomy.grid.spacing_mm
    # Living tumour is uneven; the mismatch core and fluid are not.
    uneven = sum(parts[name] for name in ("solid", "enhancing", "necrosis", "oedema"))
    texture = 1 + np.float32(unevenness) * uneven * anatomy.texture(9.0, tissue_rng)
    there = {name: part for name, part in parts.items() if part.any()}
    images = {}
    for sequence, levels in signals_of.items():
        image = sum(np.float32(levels[name]) * part for name, part in there.items()) * texture
        image *= np.exp(np.float32(scanner_rng.uniform(0.02, 0.08)) * anatomy.texture(160.0, scanner_rng))
        thickness_mm = scanner_rng.choice(_SLICE_MM[sequence])
        if thickness_mm > spacing_mm:
            # A boxcar profile has the standard deviation thickness / sqrt(12); the voxel has its own share already.
            sigma = np.sqrt((thickness_mm**2 - spacing_mm**2) / 12) / spacing_mm
            image = gaussian_filter1d(anatomy.placed(image), sigma, axis=0)[anatomy.brain]
        noise = np.float32(scanner_rng.uniform(0.015, 0.03) * levels["white"])
        normal = scanner_rng.standard_normal(anatomy.brain.shape, dtype=np.float32)[anatomy.brain]
        image = np.abs(image + noise * normal)
        gain = 300 / levels["white"] * np.exp(scanner_rng.normal(0, 0.2))
        images[sequence] = np.clip(image * np.float32(gain), 1, 32000).astype(np.int16)
    return images
