"""What ComBat would bring between sites: ROC-AUC of radiomic features with and without it, in folds.

python examples/harmonise_sites.py TABLE TABLE ..., each table the patients of one site; by default two synthetic sites.
The tumour is found by the network in the package. ComBat and a logistic regression learn from the training patients of
each fold, and ComBat is told the site of those that are tested, as it must be.
"""

import sys
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from combatlearn import ComBat
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import Table
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.evaluation.discrimination import auroc_delong, compare_auroc
from idh_lightning.models.locator import located, segmentation
from idh_lightning.models.radiomics import INTENSITY_STATISTICS, RadiomicsHead
from idh_lightning.phantom import PhantomCohort
from idh_lightning.reports.tables import as_estimate
from idh_lightning.volumes import VolumeStore

REPEATS = 20


def main() -> None:
    """Measure the features of every patient's first study, and judge them in folds."""
    with tempfile.TemporaryDirectory() as folder:
        tables = [Path(name) for name in sys.argv[1:]]
        if absent := [str(table) for table in tables if not table.is_file()]:
            sys.exit(f"{', '.join(absent)}: no such file; expected a table of the patients of one site. Correct it.")
        sites = {str(table): Table(table=table, missing="zero").read().studies for table in tables} or {
            f"site {seed}": PhantomCohort(Path(folder) / str(seed), patients=20, seed=seed, spacing_mm=4.0, workers=1)
            .read()
            .studies
            for seed in (0, 1)
        }
        table = measured_features(sites, Path(folder))
    features, mutant, site = table.drop(columns=["mutant", "site"]), table["mutant"] > 0, table["site"]
    plain, harmonised = np.zeros(len(table)), np.zeros(len(table))
    for seed in range(REPEATS):
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        for train, test in folds.split(features, mutant):
            known, new = features.iloc[train], features.iloc[test]
            plain[test] += scored(known, mutant.iloc[train], new)
            combat = ComBat(batch=site, method="johnson").fit(known)
            harmonised[test] += scored(combat.transform(known), mutant.iloc[train], combat.transform(new))
    print(
        f"{features.shape[1]} features, scores of {REPEATS} repeats of five folds; ROC-AUC and DeLong's 95% intervals"
    )
    for name, rows in [("all", site.notna()), *((name, site == name) for name in sites)]:
        labels = mutant[rows].to_numpy(int)
        if min(labels.sum(), len(labels) - labels.sum()) < 2:
            print(f"{name}: too few of one class, n = {len(labels)}, {labels.sum()} mutant")
            continue
        both = [auroc_delong(labels, score[rows]) for score in (harmonised, plain)]
        statistics = (*both, compare_auroc(labels, harmonised[rows], plain[rows])["difference"])
        with_it, without, gain = (as_estimate(found).text for found in statistics)
        print(
            f"{name}: with ComBat {with_it}, without {without}, gain {gain}, n = {len(labels)}, {labels.sum()} mutant"
        )
    for one, other in permutations(sites, 2):
        pairs = np.ix_(mutant & (site == one), ~mutant & (site == other))
        shares = [(score[:, None] > score[None])[pairs] for score in (harmonised, plain)]
        if shares[0].size:
            print(
                f"mutants of {one} above wildtypes of {other}: {shares[0].mean():.2f} of {shares[0].size} pairs with "
                f"ComBat, {shares[1].mean():.2f} without"
            )
    alone = auroc_delong(mutant.to_numpy(int), mutant.groupby(site).transform("mean").to_numpy())
    print(f"the share of mutants of each site alone: {alone['value']:.2f}, n = {len(mutant)}")


def measured_features(sites: dict, folder: Path) -> pd.DataFrame:
    """Radiomic features of each patient, with the site and whether mutant; of sequences that every patient has."""
    checkpoint = Checkpoint.read("pretrained")
    locator, sequences = checkpoint.network().locator, checkpoint.sequences
    preprocessing = instantiate_section(checkpoint.recipe["preprocessing"])
    head, rows, everywhere = RadiomicsHead(len(sequences)), [], np.ones(len(sequences), dtype=bool)
    for number, (site, studies) in enumerate(sites.items()):
        store = VolumeStore(folder / "store" / str(number), preprocessing, sequences)  # names of two sites may be alike
        store.prepare(list(studies))
        for study in (study for study in studies if not study.follow_up):
            stored = store.open(study)
            everywhere &= np.asarray(stored.presence) > 0
            image = torch.from_numpy(np.asarray(stored.image, dtype=np.float32))[None]
            with torch.no_grad():
                maps, _ = located(image, segmentation(locator, image, sequences))
                rows.append((*head.features(maps[:, 1:], maps[:, 0])[0].tolist(), study.label, site))
    table = pd.DataFrame(rows).rename(columns=str)
    size = table.shape[1] - 2
    kept = np.concatenate([np.tile(everywhere, INTENSITY_STATISTICS), np.ones(size, dtype=bool)])[:size]
    return pd.concat(
        [table.iloc[:, :size].loc[:, kept], table.iloc[:, size:].set_axis(["mutant", "site"], axis=1)], axis=1
    )


def scored(known: pd.DataFrame, mutant: pd.Series, new: pd.DataFrame) -> np.ndarray:
    """Decision of a logistic regression on standardised features."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    return model.fit(known, mutant).decision_function(new)


if __name__ == "__main__":
    main()
