"""A checkpoint of a small network with every part that the default one has, and the tiny heads behind it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from scipy.special import expit
from tiny_locator import threshold_locator
from tiny_studies import write_study

from idh_lightning.checkpoint import CHECKPOINT_FORMAT
from idh_lightning.cohort import SEQUENCES, Cohort, Study
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.evaluation import Calibrator, DevelopmentCohort, PostProcessing, image_covariates
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.ood import fit_ood_detector
from idh_lightning.runs.assembly import classifier
from idh_lightning.runs.preparation import PreparedCohort
from idh_lightning.volumes import PrepareReport, StoredVolume

LEARNT = PostProcessing(
    calibrator=Calibrator(slope=1.0, intercept=0.0),
    operating_point=OperatingPoint(threshold=0.4, rule="youden", target=None, sensitivity=0.8, specificity=0.8, n=8),
    conformal=ConformalSets(coverage=0.9, wildtype=0.7, mutant=0.7, n_wildtype=12, n_mutant=12),
    baselines=dict.fromkeys(
        ("age", "age_sex", "features", "deep", "reader", "vote", "model_age"), "not known of made-up heads"
    ),
)

GRID = (25, 33, 25)
"""As the default grid: odd edges, the last of whose layers (2, 3, 2) differ in parity."""

SMALL = ("model=efficientnet_b0", "model.weights=none", f"data.grid=[{','.join(map(str, GRID))}]")
"""All in which the recipe of the small network differs from that of a default run."""


def tiny_cohort(folder: Path, number: int = 24, **settings: object) -> list[Study]:
    """Write heads of different tissue."""
    return [write_study(folder, f"head-{index:02d}", seed=index, **settings) for index in range(number)]


def settings_of(run: Path, *overrides: str) -> DictConfig:
    """Return the configuration of a default run but for what is small."""
    places = (f"paths.run={run}", f"paths.store={run / 'store'}", "name=tiny")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=[*SMALL, *places, *overrides])


def write_checkpoint(run: Path, cohort: list[Study], *, seed: int = 0) -> Path:
    """Write a run folder with nothing but checkpoints/best.ckpt, and return it."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").write_bytes(_checkpoint(_Heads(cohort), seed))
    return run


class _Heads:
    """Heads that equal others with the same names, labels and voxels, wherever they lie."""

    def __init__(self, cohort: list[Study]) -> None:
        self.cohort = cohort
        files = [file for study in cohort for file in (*study.files.values(), study.mask) if file]
        content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        self.key = (*((study.study_id, study.patient_id, study.label) for study in cohort), *content)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Heads) and self.key == other.key


@cache
def _checkpoint(heads: _Heads, seed: int) -> bytes:
    """Content of the file, which many tests ask for and which takes seconds to make."""
    with TemporaryDirectory() as folder:
        _write(Path(folder), heads.cohort, seed)
        return (Path(folder) / "checkpoints" / "best.ckpt").read_bytes()


def write_run(run: Path, cohort: list[Study], *, seed: int = 0) -> Path:
    """Write a run folder with its recipe, checkpoint, store and predictions, and return it."""
    table, probabilities = _write(run, cohort, seed)
    table.assign(probability=probabilities).query("split != 'train'").to_csv(run / "predictions.csv", index=False)
    table.to_csv(run / "cohort.csv", index=False)
    (run / ".hydra").mkdir()
    OmegaConf.save(settings_of(run, f"seed={seed}"), run / ".hydra" / "config.yaml", resolve=True)
    OmegaConf.save({"hydra": {"runtime": {"cwd": str(run.parent)}}}, run / ".hydra" / "hydra.yaml")
    return run


def _write(run: Path, cohort: list[Study], seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Write the checkpoint as training does; return the splits and the calibrated probability of each study."""
    config = settings_of(run, f"seed={seed}")
    store = instantiate_section(config.data.store)(
        preprocessing=instantiate_section(config.data.preprocessing), sequences=SEQUENCES
    )
    report: PrepareReport = store.prepare(cohort, workers=1)
    splits = ["train"] * (len(cohort) // 2) + ["validation", "test"] * len(cohort)
    columns = {"study_id": [study.study_id for study in cohort], "patient_id": [study.patient_id for study in cohort]}
    table = pd.DataFrame(
        {**columns, "label": [study.label for study in cohort], "split": splits[: len(cohort)], "fold": 0}
    )
    named = Cohort(name="tiny heads", sequences=SEQUENCES, studies=tuple(cohort))
    prepared = PreparedCohort(cohort=named, splits=table, store=store, report=report)
    torch.manual_seed(seed)
    model = classifier(config, prepared)
    stored = [store.open(study) for study in cohort]
    logits = _taught(model.network, stored)
    studies = {"train": cohort[: len(cohort) // 2], "validation": cohort[::2]}
    detector = fit_ood_detector(model.network, store, studies)
    assert detector is not None
    metrics = {"settings": {"confidence": 0.95}, "test": {}}
    content = {
        "format": CHECKPOINT_FORMAT,
        "recipe": model.recipe,
        "state_dict": model.state_dict(),
        "post_processing": LEARNT.to_dict(),
        "calibration_covariance": [[0.01, 0.0], [0.0, 0.04]],
        "ood_detector": detector.to_dict(),
        "development": DevelopmentCohort.of(
            named.name, cohort, table, image_covariates(cohort, store), metrics
        ).to_dict(),
    }
    (run / "checkpoints").mkdir(parents=True)
    torch.save(content, run / "checkpoints" / "best.ckpt")
    return table.assign(logit=logits), expit(logits)


def _taught(network: StemTailNetwork, stored: list[StoredVolume]) -> np.ndarray:
    """Give a network a locator that finds the tumours and opinions that differ; return its logits."""
    volumes = torch.stack([torch.from_numpy(np.array(one.image, dtype=np.float32)) for one in stored])
    network.locator = threshold_locator(2.5)
    calibrate_batch_norm(network, torch.split(volumes, 8))
    network.eval()
    assert network.radiomics is not None
    features = network.stem(volumes)
    with torch.no_grad():
        network.radiomics.weigh.weight.normal_()
        for opinion, layer in enumerate((network.network.classifier, network.radiomics.weigh)):
            said = network.answer(features).branch_logits[opinion]
            layer.weight.div_((said[:, 1] - said[:, 0]).std())  # conviction: logits that differ by about one
        # One of three branches.
        network.network.classifier.bias.sub_(network.tail(features).mean(dim=0) / network.branch_weights[0])
        logits = network.tail(features)
    return (logits[:, 1] - logits[:, 0]).double().numpy()
