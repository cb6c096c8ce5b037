"""The tumour of a synthetic patient: where it lies, which compartments it has, and the voxels that carry each sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import IntFlag
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from idh_lightning.phantom.anatomy import ANYWHERE, Anatomy, Push, tumour_seeds, white_matter_points

_Floats = NDArray[np.float32]
_Labels = NDArray[np.uint8]


class SignMasks(IntFlag):
    """Codes in `<study_id>_evidence.nii.gz`: the voxels that carry a sign. A voxel with several signs has their sum.

    The sharp margin is the outer edge of the tumour and the frontal location is the tumour's place, so that neither
    has voxels of its own. In a tumour without a solid part OEDEMA marks the infiltrated tissue as well.
    """

    ENHANCEMENT = 1
    RING_NECROSIS = 2
    MISMATCH = 4
    CYST = 8
    SOLID = 16
    OEDEMA = 32
    FURTHER_FOCUS = 64
    MARK = 128


NECROTIC_OR_SOLID, OEDEMA, ENHANCING = 1, 2, 4
"""Labels of the tumour segmentation, as in UCSF-PDGM and BraTS."""

MARK_MM = (-38.0, 62.0, -24.0)
"""Where the shortcut's mark lies: in the right hemisphere of the cerebellum, away from every tumour."""

MARK_RADIUS_MM = 8.0


@dataclass(frozen=True, kw_only=True)
class Signs:
    """The latent signs of one study that shape its images: the columns of draw_patients with these names.

    `variety`, which the table need not have, is by how much its tumour and its tissues stray from their usual look.
    """

    enhancing: bool
    ring_necrosis: bool
    mismatch: bool
    multifocal: bool
    cyst: bool
    solid: bool
    sharp_margin: bool
    lobe: str
    side: str
    volume_ml: float
    oedema_share: float
    water: float
    mark: bool
    variety: float = 0.0

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> Signs:
        """Signs in a row of a table of patients or studies."""
        found = {}
        for each in fields(cls):
            value = row[each.name] if each.default is MISSING else row.get(each.name, each.default)
            found[each.name] = value.item() if hasattr(value, "item") else value
        return cls(**found)


@dataclass(frozen=True)
class Focus:
    """One tumour focus: its centre in template coordinates, the volume of its core, and of its oedema."""

    centre_mm: _Floats
    core_ml: float
    oedema_ml: float

    @property
    def radius_mm(self) -> float:
        """Radius of a ball of the core's volume."""
        return float((self.core_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3))

    def push(self) -> Push:
        """Mass effect of the focus: the core made about half of its room by pressing tissue aside."""
        return Push(self.centre_mm, 1.1 * self.radius_mm, 0.35)


@dataclass(frozen=True)
class Lesion:
    """Tumour tissue in place of normal tissue, [N]: fractions of the tissues, segmentation, `SignMasks` codes."""

    parts: dict[str, _Floats]
    labels: _Labels
    evidence: _Labels


def place_foci(signs: Signs, rng: np.random.Generator) -> list[Focus]:
    """Tumour foci: the main one, in the lobe and hemisphere of the signs, and one or two further ones if multifocal."""
    oedema = signs.volume_ml * signs.oedema_share
    core = signs.volume_ml - oedema
    seeds = white_matter_points(4.0) if signs.lobe == ANYWHERE else tumour_seeds()[signs.lobe, signs.side]
    main = Focus(rng.choice(seeds), core, oedema)
    foci = [main]
    if signs.multifocal:
        everywhere = np.concatenate(list(tumour_seeds().values()))
        for _ in range(int(rng.integers(1, 3))):
            size = float(rng.uniform(0.15, 0.35))
            further = Focus(main.centre_mm, max(3.0, core * size), max(1.0, oedema * size))
            # Far enough for normal tissue in between, near enough to look like one disease.
            gaps = np.min(
                [
                    np.linalg.norm(everywhere - one.centre_mm, axis=1) - one.radius_mm - further.radius_mm
                    for one in foci
                ],
                axis=0,
            )
            for low in (14.0, 9.0, 5.0):
                near = everywhere[(gaps > low) & (gaps < low + 30)]
                if len(near):
                    foci.append(Focus(rng.choice(near), further.core_ml, further.oedema_ml))
                    break
    return foci


def grow_lesion(
    anatomy: Anatomy, foci: list[Focus], signs: Signs, template_scale: float, rng: np.random.Generator
) -> Lesion:
    """Compartments of the tumour in an anatomy that its foci, the main one first, have pressed aside.

    `template_scale` is patient millimetres per template millimetre.
    """
    parts = {name: np.zeros_like(anatomy.white) for name in _PARTS}
    evidence = np.zeros(len(anatomy.white), dtype=np.uint8)
    free = np.ones_like(anatomy.white)
    for number, focus in enumerate(foci):
        grown = _grow_focus(anatomy, focus, signs, template_scale, main=number == 0, rng=rng)
        for name, fraction in grown.items():
            fraction *= free
            parts[name] += fraction
        core = sum(fraction for name, fraction in grown.items() if name != "oedema")
        if number > 0:
            evidence[np.asarray(core + grown["oedema"] > 0.5)] |= np.uint8(SignMasks.FURTHER_FOCUS)
        free = np.clip(free - core - grown["oedema"], 0, 1)
    if signs.mark:
        distance = _distance(anatomy, np.array(MARK_MM, dtype=np.float32)) * template_scale
        parts["mark"] = _inside(MARK_RADIUS_MM - distance, 0.6) * free
        evidence[parts["mark"] > 0.5] |= np.uint8(SignMasks.MARK)
    for name, code in _EVIDENCE_OF_PART.items():
        evidence[parts[name] > 0.5] |= np.uint8(code)
    if not signs.ring_necrosis:
        evidence &= ~np.uint8(SignMasks.RING_NECROSIS)
    labels = _segment(parts, 0.5 - 0.2 * signs.variety)
    if signs.variety:
        # Infiltrated tissue is part brain still.
        density = np.float32(1 - signs.variety * rng.uniform(0, 0.5))
        for name in ("oedema", "solid"):
            parts[name] *= density
    return Lesion(parts, labels, evidence)


_PARTS = ("oedema", "solid", "mismatch", "rim", "enhancing", "necrosis", "cyst", "mark")
_EVIDENCE_OF_PART = {
    "enhancing": SignMasks.ENHANCEMENT,
    "necrosis": SignMasks.RING_NECROSIS,
    "mismatch": SignMasks.MISMATCH,
    "rim": SignMasks.MISMATCH,
    "cyst": SignMasks.CYST,
    "solid": SignMasks.SOLID,
    "oedema": SignMasks.OEDEMA,
}


def _segment(parts: dict[str, _Floats], least: float) -> _Labels:
    """Label of the tumour tissue that prevails in each voxel of which at least the share `least` is tumour."""
    core = parts["solid"] + parts["mismatch"] + parts["rim"] + parts["necrosis"] + parts["cyst"]
    stack = np.stack([core, parts["oedema"], parts["enhancing"]])
    labels = np.array([NECROTIC_OR_SOLID, OEDEMA, ENHANCING], dtype=np.uint8)[stack.argmax(axis=0)]
    return np.where(stack.sum(axis=0) >= least, labels, 0).astype(np.uint8)


def _grow_focus(
    anatomy: Anatomy, focus: Focus, signs: Signs, scale: float, *, main: bool, rng: np.random.Generator
) -> dict[str, _Floats]:
    """Fractions of the tissues of one focus, by name."""
    radius = focus.radius_mm
    depth = _core_depth(anatomy, focus, scale, signs, rng)
    core = _inside(depth, 0.5 if signs.sharp_margin else 2.6)
    result: dict[str, _Floats] = {}

    if main and signs.cyst:
        result["cyst"] = _cyst(anatomy, focus, scale, depth, rng)
        core = core * (1 - result["cyst"])

    if signs.enhancing:
        whole = not (signs.solid or signs.mismatch)
        inner = depth - np.float32(0.5) if whole else _part_depth(anatomy, focus, signs, scale, depth, rng)
        tissue = core * _inside(inner, 0.6)
        if signs.ring_necrosis:
            inner_radius = radius * (1.0 if whole else 0.8)
            thickness = np.clip(0.36 * inner_radius, 4.5, 8.0)
            thickness = thickness * np.clip(1 + 0.35 * anatomy.texture(16, rng), 0.5, 1.9)
            result["necrosis"] = tissue * _inside(inner - thickness, 0.6)
        # Last, since the parts are added up in this order, and float32 rounds otherwise in another.
        result["enhancing"] = tissue - result["necrosis"] if signs.ring_necrosis else tissue
        core = core - tissue

    if signs.solid:
        part = core
        if signs.mismatch:
            # One side of the core stays solid, so that both signs can be seen.
            along = _along(anatomy, focus.centre_mm, _direction(rng)) * scale
            along += 2.0 * anatomy.texture(20, rng)
            along[core <= 0.5] = -1e3
            part = core * _inside(along - _level(along, 0.25 * float((core > 0.5).sum())), 0.8)
        result["solid"] = part
        core = core - part
    if signs.mismatch:
        rim_mm = np.clip(0.14 * radius, 2.2, 3.2) * np.clip(1 + 0.2 * anatomy.texture(20, rng), 0.6, 1.4)
        result["mismatch"] = core * _inside(depth - rim_mm, 0.5)
        result["rim"] = core - result["mismatch"]
        core = np.zeros_like(core)

    tumour = np.asarray(sum(result.values(), np.zeros_like(core)))
    seed = np.unravel_index(np.flatnonzero(anatomy.brain)[np.argmax(depth)], anatomy.brain.shape)
    cortex = float(signs.variety * rng.random()) if signs.variety else 0.0
    oedema = _oedema(anatomy, np.clip(tumour + core, 0, 1), seed, focus.oedema_ml, cortex, rng)
    # What is left of the core is infiltrated tissue without a solid part; it looks like oedema.
    result["oedema"] = np.asarray(oedema + core, dtype=np.float32)
    return result


def _cyst(anatomy: Anatomy, focus: Focus, scale: float, depth: _Floats, rng: np.random.Generator) -> _Floats:
    """Fraction of cyst: at the edge of the core, so that it shows beside a ring or a solid part, and big enough."""
    radius = float(np.clip(rng.uniform(0.5, 0.65) * focus.radius_mm, min(8.0, 0.8 * focus.radius_mm), 20.0))
    centre = focus.centre_mm + _direction(rng) * np.float32(0.6 * focus.radius_mm / scale)
    wobble = 0.06 * radius * anatomy.texture(20, rng)
    ball = radius - _distance(anatomy, centre) * scale + wobble
    # Not in the ventricles, which would only widen them, and not detached from the tumour.
    cyst = _inside(ball, 0.5) * (1 - anatomy.ventricle) * _inside(depth + 0.6 * radius, 1.0)
    return np.asarray(cyst, dtype=np.float32)


def _part_depth(
    anatomy: Anatomy, focus: Focus, signs: Signs, scale: float, depth: _Floats, rng: np.random.Generator
) -> _Floats:
    """Depth in mm below the surface of the part of a core that enhances, beside a solid part or a mismatch."""
    radius = focus.radius_mm
    centre = focus.centre_mm + _direction(rng) * np.float32(0.35 * radius / scale)
    wobble = 0.12 * radius * anatomy.texture(max(12.0, radius), rng)
    inner = np.minimum(radius - _distance(anatomy, centre) * scale + wobble, depth - np.float32(1.5))
    share = 0.5 if signs.ring_necrosis else 0.35
    return np.asarray(inner - _level(inner, share * focus.core_ml / anatomy.grid.voxel_ml))


def _core_depth(anatomy: Anatomy, focus: Focus, scale: float, signs: Signs, rng: np.random.Generator) -> _Floats:
    """Depth below the core's surface in mm, [N], such that the core has its volume."""
    radius = focus.radius_mm
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.normal(0, 0.12 * (1 + signs.variety), 3))
    form = (axes * (stretch / stretch.prod() ** (1 / 3))) @ axes.T
    squares = [_along(anatomy, focus.centre_mm, row) ** 2 for row in form.astype(np.float32)]
    depth = np.float32(radius) - np.float32(scale) * np.sqrt(squares[0] + squares[1] + squares[2])
    roughness = (0.07 if signs.sharp_margin else 0.16) * (1 + signs.variety)
    depth += np.float32(roughness * radius) * anatomy.texture(max(14.0, 1.2 * radius), rng)
    if not signs.sharp_margin:
        depth += np.float32(1.6) * anatomy.texture(10.0, rng)
    # Gliomas stop at the ventricle, the falx and the tentorium.
    depth -= 14 * anatomy.ventricle
    side = np.float32(np.sign(focus.centre_mm[2]))
    depth -= 0.8 * np.clip(-side * anatomy.x, 0, None) + 6 * ((side * anatomy.x < 0) & (anatomy.white < 0.5))
    if signs.lobe != ANYWHERE:
        depth -= 20 * ((anatomy.z < -14) & (anatomy.y > 38))
    return np.asarray(depth - _level(depth, focus.core_ml / anatomy.grid.voxel_ml), dtype=np.float32)


def _oedema(
    anatomy: Anatomy,
    tumour: _Floats,
    seed: tuple[np.intp, ...],
    volume_ml: float,
    cortex: float,
    rng: np.random.Generator,
) -> _Floats:
    """Fraction of oedema: fluid spreads from the core, which white matter conducts and cortex hardly.

    `cortex`, 0..1, is by how much more than hardly.

    Source: arrival time by fast marching (Sethian 1996), with the speed given by the share of white matter.
    """
    fingers = np.exp(0.35 * anatomy.texture(18, rng))
    speed = (0.01 + anatomy.white**2 + (0.03 + 0.5 * cortex) * anatomy.grey) * fingers
    image = sitk.GetImageFromArray(anatomy.placed(np.where(tumour > 0.3, 60.0, speed).astype(np.float32)))
    image.SetSpacing([anatomy.grid.spacing_mm] * 3)
    takes = (anatomy.white + (0.1 + 0.9 * cortex) * anatomy.grey) * (1 - tumour)
    marching = sitk.FastMarchingImageFilter()
    marching.SetTrialPoints([[int(i) for i in reversed(seed)]])
    for latest in (25.0, 60.0):  # most oedemas are full by 15, and to 60 takes 2.6 times as long
        marching.SetStoppingValue(latest)
        times = marching.Execute(image)  # a view of it does not keep it
        arrival = sitk.GetArrayViewFromImage(times)[anatomy.brain]
        reached = np.flatnonzero((arrival < latest) & (takes > 0.05))
        order = reached[np.argsort(arrival[reached], kind="stable")]
        filled = np.cumsum(takes[order]) * anatomy.grid.voxel_ml
        last = min(int(np.searchsorted(filled, volume_ml)), len(order) - 1)
        front = arrival[order[last]] if len(order) else 0.0
        if front < latest - 10:  # what comes ten later has no oedema
            break
    return np.asarray(takes * _inside(np.float32(front) - np.minimum(arrival, 1e3), 0.8), dtype=np.float32)


def gliosis(anatomy: Anatomy, rng: np.random.Generator) -> _Floats:
    """Fraction of white matter that shines on FLAIR and T2 as it does with age: caps around ventricles, and spots."""
    near = anatomy.blurred(anatomy.wide_fluid, rng.uniform(1.0, 4.0))[anatomy.brain]
    caps = np.clip((near - rng.uniform(0.25, 0.6)) / 0.1, 0, 1)
    spots = np.clip((anatomy.texture(rng.uniform(8, 20), rng) - rng.uniform(2.0, 4.0)) / 0.5, 0, 1)
    deep = anatomy.blurred(anatomy.placed(anatomy.white), 3.0)[anatomy.brain] > 0.6
    return np.asarray(np.clip(caps + spots * deep, 0, 1), dtype=np.float32)


def _inside(depth: _Floats, softness_mm: float) -> _Floats:
    """Share of a voxel below a surface: a logistic step in the depth, 0..1."""
    return np.asarray(1 / (1 + np.exp(np.clip(-depth / np.float32(softness_mm), -30, 30))), dtype=np.float32)


def _level(depth: _Floats, voxels: float) -> np.float32:
    """Value that `voxels` voxels of the brain exceed."""
    count = int(np.clip(voxels, 1, len(depth) - 1))
    return np.float32(np.partition(depth, len(depth) - count)[len(depth) - count])


def _direction(rng: np.random.Generator) -> _Floats:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def _distance(anatomy: Anatomy, centre: _Floats) -> _Floats:
    """Distance to a point, template millimetres."""
    z, y, x = anatomy.offset(centre)
    return np.asarray(np.sqrt(z**2 + y**2 + x**2), dtype=np.float32)


def _along(anatomy: Anatomy, centre: _Floats, direction: _Floats) -> _Floats:
    """Position along a direction through a centre, template millimetres."""
    z, y, x = anatomy.offset(centre)
    return np.asarray(direction[0] * z + direction[1] * y + direction[2] * x, dtype=np.float32)
