"""Comparison of methods of explanation, written into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from idh_lightning.attribution import logit_difference
from idh_lightning.attribution.comparison import MAP_TABLES, MapComparison
from idh_lightning.evaluation import PostProcessing
from idh_lightning.files import write_json, write_text
from idh_lightning.models import StemTailNetwork, tumour_probability
from idh_lightning.reports.drawing import cores_left_to_drawing, drawing_processes, write_explanation
from idh_lightning.reports.explanations_page import write_explanations_page
from idh_lightning.runs.preparation import PreparedCohort
from idh_lightning.volumes import mask_in_patient_space, write_in_patient_space


def write_map_comparison(
    comparison: MapComparison,
    network: StemTailNetwork,
    prepared: PreparedCohort,
    folder: Path,
    *,
    split: str = "test",
    post_processing: PostProcessing | None,
    others: Mapping[str, Sequence[StemTailNetwork]] | None = None,
    trained_on: str,
) -> dict[str, Any]:
    """Compare methods on the studies of a split, write everything about their maps, and return explanations.json.

    Writes explanations.csv, explanations_by_sign.csv (of synthetic studies), explanations.json, sanity.csv,
    cascade.csv, sequences.csv, explanations.html, and of the method that is chosen the maps
    (explanations/<study_id>_cam.nii.gz) and panels (figures/cam/<study_id>.png); of a network that segments, also the
    tumour found (explanations/<study_id>_tumour.nii.gz). The network is left as it was; for `others` see
    `MapComparison`. Without post-processing the larger logit calls a study positive or negative.
    """

    def call(margins: NDArray[np.float64]) -> NDArray[np.integer]:
        if post_processing is None:
            return np.asarray(margins > 0).astype(int)
        return post_processing.apply(margins)["predicted"].to_numpy(dtype=int)

    studies, target = prepared.by_split, prepared.cohort.target
    compared = comparison(
        network,
        prepared.store,
        studies[split],
        studies["train"],
        call=call,
        sequences=prepared.cohort.sequences,
        others=others,
        cohort=prepared.cohort.name,
        trained_on=trained_on,
    )
    for name in MAP_TABLES:
        if name in compared.tables:
            write_text(folder / name, compared.tables[name].to_csv(index=False))
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier comparison
    content = dict(compared.content) | {"target": target.to_dict()}
    write_json(folder / "explanations.json", content)
    # The chosen method explains once more, so that no maps pile up.
    batches = comparison.batches(network, prepared.store, compared.studies, "Drawing")
    with drawing_processes() as draw, cores_left_to_drawing():
        for chunk, stored, volumes in batches:
            with torch.no_grad():
                margins = logit_difference(network(volumes)).double().cpu().numpy()
            calibrated = None if post_processing is None else post_processing.calibrator(margins).tolist()
            maps = compared.method(network, volumes).cpu().numpy()
            found, nothing = tumour_probability(network, volumes), [None] * len(chunk)
            tumours = nothing if found is None else found.cpu().numpy()
            for study, item, cam, probability, tumour in zip(
                chunk, stored, maps, calibrated or nothing, tumours, strict=True
            ):
                if tumour is not None:
                    mask, _ = mask_in_patient_space(tumour * (np.asarray(item.brain) > 0), item)
                    write_in_patient_space(mask, item, folder / "explanations" / f"{study.study_id}_tumour.nii.gz")
                write_explanation(
                    draw, folder, study, item, cam, prepared.cohort.sequences, probability=probability, target=target
                )
    write_explanations_page(folder)
    return content
