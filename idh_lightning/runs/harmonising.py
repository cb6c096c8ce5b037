"""ComBat of the radiomics head: scale and shift of its features at each site, learnt from training patients."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from idh_lightning.cohort import Cohort, Study
from idh_lightning.cohort.checks import counted
from idh_lightning.cohort.reader import LEAKING
from idh_lightning.errors import ConfigError
from idh_lightning.models.locator import located, segmentation
from idh_lightning.models.radiomics import INTENSITY_STATISTICS, SiteChanges, sites_of
from idh_lightning.volumes import VolumeStore

if TYPE_CHECKING:
    from idh_lightning.models import StemTailNetwork

logger = logging.getLogger(__name__)

LEAST_PATIENTS = 5
"""Training patients with a tumour found that a site needs to be harmonised."""


def require_sites(column: str, cohort: Cohort) -> None:
    """Raise a ConfigError unless a cohort carries a column of sites, and ComBat is installed."""
    if LEAKING.search(column):
        raise ConfigError(
            f"model.harmonise: column {column!r} gives the label away; expected one with the site. Name another column."
        )
    columns = list(dict.fromkeys(name for study in cohort.studies for name in study.carried))
    if column not in columns:
        named = ", ".join(map(repr, columns[:10])) or "none beside age, sex and files"
        raise ConfigError(
            f"model.harmonise: cohort {cohort.name} has no column {column!r}; found {named}. Name the column that "
            "tells sites apart, or give model.harmonise=null."
        )
    if importlib.util.find_spec("combatlearn") is None:
        raise ConfigError(
            "model.harmonise: needs a package that is not installed (combatlearn); expected the extra 'sites'. "
            "pip install 'idh_lightning[sites]', or give model.harmonise=null."
        )


def combat(network: StemTailNetwork, studies: Sequence[Study], store: VolumeStore) -> SiteChanges:
    """ComBat's scale and shift of each radiomic feature at each site, from the first study of training patients.

    Empirical Bayes without covariates (Johnson, Li and Rabinovic 2007, by combatlearn): what a new study is does not
    have to be known, but where sites differ in their patients, that is taken away too. A feature is left as it is if a
    sequence that it reads is missing in a study, or if it is the same in all studies of a site; a site, if it has fewer
    than `LEAST_PATIENTS` patients with a tumour found.

    Args:
        network: With a radiomics head, and the column that names sites.
        studies: Of training.
        store: Holds them.

    Raises:
        ConfigError: If fewer than two sites are left.
    """
    from combatlearn import ComBat

    table = _measured(network, [study for study in studies if not study.follow_up], store)
    homes, labels = table.pop("site"), table.pop("label")
    patients = homes[homes != ""].value_counts()
    sites = sorted(patients.index[patients >= LEAST_PATIENTS])
    if len(sites) < 2:
        raise ConfigError(
            f"model.harmonise: found {counted(len(sites), 'site')} with {LEAST_PATIENTS} or more training patients "
            f"whose tumour is found ({', '.join(f'{site} {n}' for site, n in patients.items()) or 'none is named'}); "
            "expected two. Give model.harmonise=null."
        )
    inside = homes.isin(sites)
    known, homes = table[inside], homes[inside]
    varied = (known.groupby(homes).std() > 1e-6).all()
    absent = (known.to_numpy()[:, : len(network.sequences)] == 0).any(0)  # as the mean of a missing sequence is
    varied.iloc[: INTENSITY_STATISTICS * len(absent)] &= ~np.tile(absent, INTENSITY_STATISTICS)
    known = known.loc[:, varied]
    ends = [pd.DataFrame(value, index=[f"{value} {site}" for site in sites], columns=known.columns) for value in (0, 1)]
    where = pd.concat([homes, *(pd.Series(sites, index=end.index) for end in ends)])
    learnt = ComBat(batch=where, method="johnson").fit(known)
    shift, far = (learnt.transform(end.astype(float)).to_numpy() for end in ends)
    changes = np.tile([[1.0], [0.0]], (len(sites), 1, table.shape[1]))
    changes[:, :, varied.to_numpy()] = np.stack([far - shift, shift], axis=1)
    for site in sites:
        of_site = labels[homes.index][homes == site]
        logger.info("Harmonised: site %s, %d training patients, %d positive.", site, len(of_site), of_site.sum())
        if of_site.nunique() < 2:
            logger.warning(
                "model.harmonise: all %d training patients of site %s are of one class, so what ComBat takes away may "
                "be the disease as well as the scanner.",
                len(of_site),
                site,
            )
    logger.info("%d of %d radiomic features are harmonised.", varied.sum(), len(varied))
    return {site: change.tolist() for site, change in zip(sites, changes, strict=True)}


@torch.no_grad()
def _measured(network: StemTailNetwork, studies: Sequence[Study], store: VolumeStore) -> pd.DataFrame:
    """Radiomic features of the studies whose tumour is found, with site and label, by study."""
    assert network.locator is not None
    assert network.radiomics is not None
    rows = {}
    for study, site in zip(studies, sites_of(network, studies), strict=True):
        image = torch.from_numpy(np.array(store.open(study).image, dtype=np.float32))[None]
        maps, _ = located(image, segmentation(network.locator, image, network.sequences))
        if bool((maps[:, 0] > 0.5).any()):
            found = network.radiomics.features(maps[:, 1:], maps[:, 0])[0].tolist()
            rows[study.study_id] = [*found, site, study.label]
    table = pd.DataFrame.from_dict(rows, orient="index").rename(columns=str)
    size = network.radiomics.weigh.in_features
    return table.reindex(columns=list(map(str, range(size + 2)))).rename(
        columns={str(size): "site", str(size + 1): "label"}
    )
