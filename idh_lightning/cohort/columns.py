"""Which column of a table plays which role: exact names first, then the names that are usual in the field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from idh_lightning.cohort.files import NIFTI
from idh_lightning.cohort.study import SEQUENCES, Fault
from idh_lightning.config.text import to_paste
from idh_lightning.errors import CohortError

_USUAL: Mapping[str, str] = {
    "study_id": "id study study_name scan scan_id session session_id exam exam_id case case_id image_id",
    "patient_id": "patient patient_name pat_id pid subject subject_id participant participant_id person person_id",
    "idh": "idh_status idh_mutation idh_mutation_status idh_mutated idh_mut idh_label idh_genotype idh1/2 "
    "idh1/2_status idh1/idh2",
    "age_years": "age age_y age_yrs age_at_mri age_at_scan age_at_scan_years age_at_imaging age_at_diagnosis "
    "patient_age",
    "sex": "gender patient_sex biological_sex",
    "follow_up": "followup is_follow_up",
    "FLAIR": "flair t2_flair t2f flair_t2 t2w_flair",
    "T1": "t1 t1w t1n t1_pre t1_native t1_nativ t1_pre_contrast t1_without_contrast pre_t1",
    "T1c": "t1c t1ce t1gd t1gad t1km t1+ t1+c t1+gd t1+k t1_post t1_post_contrast t1_contrast t1_with_contrast t1w_ce "
    "t1w_c t1w_gd t1w_post t1w+c ce_t1 ce_t1w gd_t1 post_t1 contrast_t1",
    "T2": "t2 t2w",
    "mask": "mask seg segm segmentation tumor_segmentation tumour_segmentation tumor_mask tumour_mask tumor_seg "
    "tumour_seg tumor tumour lesion_mask roi",
}
"""Role -> names by which it goes elsewhere; case, spaces and other marks do not matter."""

_OF_FILES = (*SEQUENCES, "mask")


def match_columns(header: Iterable[str], wanted: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return role -> column for the roles that have one.

    A column of the wanted name comes first, then one that differs from it in case and marks only, then one with a name
    that is usual. A table that names the patient only names the study by it.

    Args:
        header: Names of the columns.
        wanted: Role -> name of its column; "" where it has none.
        path: Of the table, for the CohortError that is raised if several columns could play one role.
    """
    header = list(header)
    found = {role: name for role, name in wanted.items() if name and name in header}
    free = [name for name in header if name not in found.values()]
    for role, name in wanted.items():
        if not name or role in found:
            continue
        fits = [one for one in free if _plain(one) == _plain(name)] or [one for one in free if _usual(one, role)]
        if len(fits) > 1:
            raise CohortError(
                f"{path}: columns {', '.join(map(repr, fits))} could all be {role}; expected one. Name it: "
                f"{' or '.join(to_paste(f'cohort.columns.{role}', one) for one in fits)}"
            )
        if fits:
            found[role] = fits[0]
    if "study_id" in wanted and "study_id" not in found and "patient_id" in found:
        found["study_id"] = found["patient_id"]
    return found


def require_columns(header: Iterable[str], found: Mapping[str, str], wanted: Mapping[str, str], path: Path) -> None:
    """Raise a CohortError with the columns that are there and a line to paste if one that must be there is not.

    Args:
        header: Names of the columns.
        found: As `match_columns` returns it.
        wanted: Role -> column name, of those that must be there.
        path: Where the table came from, for the message.
    """
    absent = {role: name for role, name in wanted.items() if role not in found}
    if not absent:
        return
    names = list(header)
    near = {role: _nearest(role, name, names, found.values()) for role, name in absent.items()}
    lines = [to_paste(f"cohort.columns.{role}", one) for role, ones in near.items() for one in ones]
    raise CohortError(
        f"{path}: no column {', '.join(f'{name!r} ({role})' for role, name in absent.items())}; found "
        f"{', '.join(repr(name[:40]) for name in names[:40]) or 'none'}. "
        + (f"If this is it, add {' or '.join(lines)}. Else name" if lines else "Name")
        + f" the right column in {', '.join(f'cohort.columns.{role}' for role in absent)}, or correct the table."
    )


def unused_images(table: pd.DataFrame, found: Mapping[str, str], path: Path) -> Iterator[Fault]:
    """Yield a warning for each column of image files that plays no role, while a sequence or the mask has no column."""
    lacking = [role for role in _OF_FILES if role not in found]
    for name in map(str, table.columns):
        if lacking and name not in found.values() and table[name].str.lower().str.endswith(NIFTI).any():
            yield Fault(
                where=path.name, check="unused_images", severity="warning",
                found=f"column {name!r} holds images and is not used",
                expected=f"a column for {', '.join(lacking)}, or none",
                remedy="If it is one of these, name it: "
                + " or ".join(to_paste(f"cohort.columns.{role}", name) for role in lacking),
            )  # fmt: skip


def describe_columns(header: Iterable[str], found: Mapping[str, str], wanted: Iterable[str]) -> str:
    """Return in words which column is used for what, which are not used, and which of the wanted roles have none."""
    used = ", ".join(role if role == name else f"{role} from {name!r}" for role, name in found.items())
    rest = [name for name in header if name not in found.values()]
    carried = ", ".join(map(repr, rest[:20])) + (f" and {len(rest) - 20} more" if len(rest) > 20 else "")
    lacking = ", ".join(role for role in wanted if role in _OF_FILES and role not in found)
    used += f"; no column for {lacking}" if lacking else ""
    return f"used {used}; carried along, never given to the network: {carried or 'none'}"


def _plain(name: str) -> str:
    """Return a name without case, spaces and other marks but +, which says contrast."""
    return re.sub(r"[^\w+]+|_", "", name.casefold())


def _usual(name: str, role: str) -> bool:
    plain = {_plain(name)}
    if role in _OF_FILES:
        plain |= {re.sub(r"^(path|file)|(path|file|filename|image|img|nifti|nii)$", "", one) for one in plain}
    return bool(plain & {_plain(one) for one in _USUAL.get(role, "").split()})


def _nearest(role: str, name: str, header: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Return up to three columns whose names contain, or are like, that of a role."""
    free = {_plain(one): one for one in header if one not in set(taken)}
    words = {_plain(name), _plain(role.split("_")[0])}
    like = difflib.get_close_matches(_plain(name), list(free), n=3, cutoff=0.75)
    return [one for plain, one in free.items() if plain in like or any(word in plain for word in words)][:3]
