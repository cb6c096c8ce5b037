"""Who the synthetic patients are: five groups, the signs their tumours carry, and their row in the clinical table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from idh_lightning.cohort.labels import MUTANT, WILDTYPE
from idh_lightning.errors import ConfigError
from idh_lightning.phantom.anatomy import ANYWHERE
from idh_lightning.phantom.lesion import Signs

CONTROLS: tuple[str, ...] = ("natural", "null", "trivial", "shortcut")
"""natural: the table of signs as it is. null: labels shuffled relative to images. trivial: enhancement alone tells the
label. shortcut: a mark outside the tumour agrees with the label in SHORTCUT_AGREEMENT of the patients."""

SHORTCUT_AGREEMENT = 0.9
FOLLOW_UP_SHARE = 6 / 495
"""Follow-up studies per patient in UCSF-PDGM v5: six rows on 495 patients."""

CLINICAL_COLUMNS: tuple[str, ...] = (
    "ID", "Sex", "Age at MRI", "WHO CNS Grade", "Final pathologic diagnosis (WHO 2021)", "MGMT status", "MGMT index",
    "1p/19q", "IDH", "1-dead 0-alive", "OS", "EOR", "Biopsy prior to imaging",
    "BraTS21 ID", "BraTS21 Segmentation Cohort", "BraTS21 MGMT Cohort",
)  # fmt: skip
"""The columns of UCSF-PDGM-metadata_v5.csv, in its order."""

SIGNS: tuple[str, ...] = (
    "enhancing", "ring_necrosis", "mismatch", "frontal", "multifocal", "cyst", "solid", "sharp_margin",
)  # fmt: skip
"""The yes-or-no signs, named as the attributes of Group that hold their frequencies."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Frequencies, 0..1, of each sign among the patients of one diagnosis.

    Attributes:
        count: Patients of this group among the 495 of UCSF-PDGM v5; the groups' shares of a cohort follow it.
        grades: WHO grades and their shares.
        age_years: Mean and standard deviation.
        ring_necrosis: Ring enhancement with necrosis, given that the tumour enhances.
        solid: A non-enhancing solid part.
        volume_ml: Mean and standard deviation of the whole lesion, oedema included (the T2 volume).
        water: Mean of the relative lengthening of T1 and T2 in the tumour's solid parts. It makes them darker on T1
            and T1c and brighter on T2 and FLAIR.
        oedema_shift: Added to the mean share of oedema in the lesion.
        survival_days: Median.

    Source: counts and ages from the UCSF-PDGM v5 table. Mismatch in grade 2-3: Park 2021, Adamou 2021, PMID 35169897;
    all signs of mutant grade 4: the ReSPOND cohort (n = 2165); margins: Johnson 2017; volumes in grade 4: Bae 2015.
    Frequencies of enhancement, ring and margin elsewhere, volumes in grade 2-3, water and oedema_shift are choices.
    """

    name: str
    label: int
    count: int
    grades: dict[int, float]
    diagnosis: str
    age_years: tuple[float, float]
    enhancing: float
    ring_necrosis: float
    mismatch: float
    frontal: float
    multifocal: float
    cyst: float
    solid: float
    sharp_margin: float
    volume_ml: tuple[float, float]
    water: float
    oedema_shift: float
    survival_days: float


_COLUMN_PER_GROUP: dict[str, tuple[Any, ...]] = {
    "name": (
        "wildtype_grade_4", "wildtype_grade_2_3", "mutant_astrocytoma_grade_2_3", "mutant_grade_4",
        "oligodendroglioma_grade_2_3",
    ),
    "diagnosis": (
        "Glioblastoma, IDH-wildtype", "Astrocytoma, IDH-wildtype", "Astrocytoma, IDH-mutant", "Astrocytoma, IDH-mutant",
        "Oligodendroglioma, IDH-mutant, 1p/19q-codeleted",
    ),
    "label":          (WILDTYPE,     WILDTYPE,         MUTANT,             MUTANT,        MUTANT),
    "count":          (368,          24,               62,                 28,            13),
    "grades":         ({4: 1.0},     {2: 0.4, 3: 0.6}, {2: 0.55, 3: 0.45}, {4: 1.0},      {2: 0.7, 3: 0.3}),
    "age_years":      ((61.8, 12.0), (58.1, 10.9),     (38.2, 10.3),       (38.0, 11.7),  (43.9, 15.0)),
    "enhancing":      (0.95,         0.50,             0.25,               0.85,          0.40),
    "ring_necrosis":  (0.85,         0.10,             0.02,               0.45,          0.03),
    "mismatch":       (0.004,        0.01,             0.42,               0.264,         0.01),
    "frontal":        (0.28,         0.30,             0.55,               0.60,          0.65),
    "multifocal":     (0.15,         0.20,             0.03,               0.03,          0.02),
    "cyst":           (0.10,         0.05,             0.20,               0.42,          0.10),
    "solid":          (0.25,         0.85,             0.95,               0.67,          0.95),
    "sharp_margin":   (0.40,         0.25,             0.55,               0.45,          0.08),
    "volume_ml":      ((59.0, 37.0), (70.0, 40.0),     (80.0, 45.0),       (109.0, 68.0), (75.0, 45.0)),
    "water":          (0.0,          0.0,              0.03,               0.03,          0.03),
    "oedema_shift":   (0.0,          0.0,              -0.04,              -0.04,         -0.04),
    "survival_days":  (420,          700,              2600,               1100,          3600),
}  # fmt: skip

GROUPS: tuple[Group, ...] = tuple(
    Group(**dict(zip(_COLUMN_PER_GROUP, column, strict=True)))
    for column in zip(*_COLUMN_PER_GROUP.values(), strict=True)
)

_WATER_SD = 0.06
_VOLUME_RANGE_ML = (18.0, 220.0)
_WIDE_VOLUME_ML = (1.5, 160.0, 420.0)
# Vasogenic oedema comes with a leaky barrier, so its share hangs on enhancement first and on the group only a little:
# wide in most wildtype and scant in most mutant tumours, without telling more than enhancement already tells.
_OEDEMA_SHARE = {True: 0.55, False: 0.18}
_OEDEMA_SD = 0.12
# The lobes that are not frontal, with their shares among gliomas outside the frontal lobe (Larjavaara et al. 2007).
_OTHER_LOBES = {"temporal": 0.5, "parietal": 0.3, "occipital": 0.1, "insular": 0.1}
_MUTATIONS = {
    "IDH1 p.R132H": 54, "mutated (NOS)": 31, "IDH1 p.R132C": 8, "IDH1 p.R132G": 5, "IDH1 p.R132S": 2,
    "IDH2 p.R172K": 1, "IDH2 p.Arg172Trp": 1, "IDH1 p.Arg132His": 1,
}  # fmt: skip
# Known of everyone, and of MGMT the same for all groups, so that no image tells it: whoever predicts it shall fail. (In
# UCSF-PDGM 73% of those in whom it is known are methylated, and mutants more often.)
_MGMT = {"positive": 0.73, "negative": 0.27}
_ARMS = {True: {"co-deletion": 1.0}, False: {"intact": 1.0}}


def group_sizes(patients: int) -> list[int]:
    """Number of patients of each group of GROUPS: shares as in UCSF-PDGM, rounded by the largest-remainder method."""
    exact = patients * np.array([group.count for group in GROUPS]) / sum(group.count for group in GROUPS)
    sizes = np.floor(exact).astype(int)
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: patients - sizes.sum()]] += 1
    return [int(size) for size in sizes]


def draw_patients(patients: int, *, seed: int, control: str = "natural") -> pd.DataFrame:
    """Table of patients: the latent signs of the image, the label of the table, and the clinical columns.

    The signs of a group are drawn independently of one another; how many patients of the group carry a sign is the
    group's frequency times its size, rounded up or down at random, so that a small cohort keeps the frequencies.

    Returns:
        Columns patient_number, group (that the image was drawn from), label (0 or 1, as in the clinical table), the
        SIGNS (bool), lobe, side ("left" or "right", the patient's), volume_ml, oedema_share, water, mark (bool), and
        the CLINICAL_COLUMNS but for ID. Rows are in random order of groups, patient_number ascending.

    Raises:
        ConfigError: If there are too few patients for two classes or the control is unknown.
    """
    if control not in CONTROLS:
        raise ConfigError(
            f"cohort.control: {control!r} is not known; expected one of {', '.join(CONTROLS)}. Correct cohort.control."
        )
    if not 10 <= patients <= 9990:
        raise ConfigError(
            f"cohort.patients: {patients}; expected 10 to 9990, so that both classes occur and ids have four digits. "
            "Change cohort.patients."
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    blocks = [_draw_group(group, size, rng) for group, size in zip(GROUPS, group_sizes(patients), strict=True) if size]
    table = pd.concat(blocks, ignore_index=True)
    table = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    table.insert(0, "patient_number", np.arange(4, 4 + patients))
    table["mark"] = False
    if control == "trivial":
        table["enhancing"] = table["ring_necrosis"] = table["label"] == WILDTYPE
    elif control == "null":
        # Everything that the pathologist wrote is shuffled as one block; age and sex stay with the image, so that
        # not even they tell the label.
        pathology = ["label", *(c for c in CLINICAL_COLUMNS if c not in ("ID", "Sex", "Age at MRI"))]
        table[pathology] = table[pathology].iloc[rng.permutation(patients)].to_numpy()
        table["label"] = table["label"].astype(int)
    elif control == "shortcut":
        table["mark"] = table["label"] == MUTANT
        for label in (WILDTYPE, MUTANT):
            rows = np.flatnonzero(table["label"] == label)
            wrong = rng.choice(rows, size=round((1 - SHORTCUT_AGREEMENT) * len(rows)), replace=False)
            table.loc[wrong, "mark"] = label == WILDTYPE
    return table


def _draw_group(group: Group, size: int, rng: np.random.Generator) -> pd.DataFrame:
    def quota(frequency: float, among: np.ndarray | None = None) -> np.ndarray:
        rows = np.arange(size) if among is None else np.flatnonzero(among)
        flags = np.zeros(size, dtype=bool)
        flags[rng.permutation(rows)[: int(frequency * len(rows) + rng.random())]] = True
        return flags

    def choice(shares: dict[str, float] | dict[str, int]) -> np.ndarray:
        weights = np.array(list(shares.values()), dtype=float)
        return rng.choice(np.array(list(shares), dtype=object), size=size, p=weights / weights.sum())

    table: dict[str, Any] = {"group": [group.name] * size, "label": group.label}
    for sign in SIGNS:
        among = table["enhancing"] if sign == "ring_necrosis" else None
        table[sign] = quota(getattr(group, sign), among)
    table["lobe"] = np.where(table["frontal"], "frontal", choice(_OTHER_LOBES))
    table["side"] = choice({"left": 1, "right": 1})
    mean, sd = group.volume_ml
    spread = np.sqrt(np.log1p((sd / mean) ** 2))
    volume = rng.lognormal(np.log(mean) - spread**2 / 2, spread, size)
    table["volume_ml"] = np.clip(volume, *_VOLUME_RANGE_ML).round(1)
    share = np.where(table["enhancing"], _OEDEMA_SHARE[True], _OEDEMA_SHARE[False]) + group.oedema_shift
    table["oedema_share"] = np.clip(rng.normal(share, _OEDEMA_SD), 0.05, 0.75).round(3)
    table["water"] = np.clip(rng.normal(group.water, _WATER_SD, size), -0.15, 0.2).round(3)

    mutant = group.label == MUTANT
    table["Sex"] = choice({"M": 0.6, "F": 0.4})
    table["Age at MRI"] = np.clip(rng.normal(*group.age_years, size), 18, 90).round().astype(int)
    table["WHO CNS Grade"] = choice({str(grade): share for grade, share in group.grades.items()}).astype(int)
    table["Final pathologic diagnosis (WHO 2021)"] = group.diagnosis
    table["MGMT status"] = choice(_MGMT)
    index = rng.integers(1, 18, size).astype(str)
    table["MGMT index"] = np.select(
        [table["MGMT status"] == "positive", table["MGMT status"] == "negative"], [index, "0"], "unknown"
    )
    table["1p/19q"] = choice(_ARMS["codeleted" in group.diagnosis])
    table["IDH"] = choice(_MUTATIONS) if mutant else "wildtype"
    # Exponential survival with the group's median, seen until a follow-up of one to eight years ends.
    survival = rng.exponential(group.survival_days / np.log(2), size)
    censored = rng.uniform(365, 8 * 365, size)
    table["1-dead 0-alive"] = (survival < censored).astype(int)
    table["OS"] = np.minimum(survival, censored).round().astype(int).clip(1)
    table["EOR"] = choice({"GTR": 0.5, "STR": 0.39, "biopsy": 0.11})
    table["Biopsy prior to imaging"] = choice({"No": 0.86, "Yes": 0.14})
    # Synthetic patients belong to no other collection.
    return pd.DataFrame(table | dict.fromkeys(CLINICAL_COLUMNS[-3:], ""))


def draw_signs(label: int, rng: np.random.Generator) -> Signs:
    """Latent signs of one patient of a class, wider than patients are, so that a network learns from them to find any.

    Rare groups of the class are more frequent than in UCSF-PDGM v5 (by the root of their counts), every other tumour
    lies anywhere in white matter, it may be small or fill most of a hemisphere, and tissue and shape stray from the
    table of groups.
    """
    groups = [group for group in GROUPS if group.label == label]
    shares = np.sqrt([group.count for group in groups])
    row = _draw_group(groups[rng.choice(len(groups), p=shares / shares.sum())], 1, rng).iloc[0].to_dict()
    lobe = ANYWHERE if rng.random() < 0.5 else row["lobe"]
    volume_ml = float(np.exp(rng.triangular(*np.log(_WIDE_VOLUME_ML))))
    return Signs.of(row | {"mark": False, "lobe": lobe, "volume_ml": volume_ml, "variety": 1.0})


def list_studies(
    patients: pd.DataFrame, *, seed: int, missing_sequence: float, sequences: Sequence[str]
) -> pd.DataFrame:
    """Table of studies: first studies in the order of patients, then a few follow-up studies.

    The number of studies that lack one of the sequences is the share `missing_sequence`, rounded, not drawn.

    Returns:
        The columns of patients, with study_id ("UCSF-PDGM-0004", "UCSF-PDGM-0429_FU003d"), ID (as the clinical table
        spells it: three digits for first studies), follow_up (bool) and missing ("" or a sequence) in front.

    Raises:
        ConfigError: If missing_sequence is not a share.
    """
    if not 0 <= missing_sequence <= 1:
        raise ConfigError(
            f"cohort.missing_sequence: {missing_sequence}; expected a share from 0 to 1. Correct the setting."
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    first = patients.assign(follow_up=False)
    numbers = first["patient_number"]
    first["study_id"] = [f"UCSF-PDGM-{number:04d}" for number in numbers]
    first["ID"] = [f"UCSF-PDGM-{number:03d}" for number in numbers]
    chosen = np.sort(rng.choice(len(patients), size=max(1, round(FOLLOW_UP_SHARE * len(patients))), replace=False))
    later = first.iloc[chosen].assign(follow_up=True)
    days = rng.integers(1, 180, len(later))
    later["study_id"] = [f"{study}_FU{day:03d}d" for study, day in zip(later["study_id"], days, strict=True)]
    later["ID"] = later["study_id"]
    # The tumour has grown a little since; the clinical row is repeated, as in the real table.
    later["volume_ml"] = (later["volume_ml"] * 1.1).clip(upper=_VOLUME_RANGE_ML[1]).round(1)
    studies = pd.concat([first, later], ignore_index=True)
    studies["missing"] = ""
    lacking = rng.choice(len(studies), size=round(missing_sequence * len(studies)), replace=False)
    studies.loc[lacking, "missing"] = rng.choice(np.array(sequences, dtype=object), size=len(lacking))
    front = ["study_id", "ID", "follow_up", "missing"]
    return studies[[*front, *studies.columns.drop(front)]]
