"""A checkpoint of an untrained network that answers with conviction, and the tiny heads that it remembers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tiny_studies import write_study

from idh_lightning.cohort import SEQUENCES, Study
from idh_lightning.evaluation import Calibrator, ConformalSets, Learnt, OperatingPoint
from idh_lightning.inference import remember
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.module import IDHClassifier
from idh_lightning.objectives import FocalLoss
from idh_lightning.volumes import Preprocessing, VolumeStore

LEARNT = Learnt(
    calibrator=Calibrator(slope=1.0, intercept=0.0),
    operating_point=OperatingPoint(threshold=0.4, rule="youden", target=None, sensitivity=0.8, specificity=0.8, n=8),
    conformal=ConformalSets(coverage=0.9, wildtype=0.7, mutant=0.7, n_wildtype=12, n_mutant=12),
    baselines={},
)


def tiny_cohort(folder: Path, number: int = 24, **settings: object) -> list[Study]:
    """Write heads of different tissue."""
    return [write_study(folder, f"head-{index:02d}", seed=index, **settings) for index in range(number)]


def write_checkpoint(run: Path, cohort: list[Study], *, seed: int = 0, without: tuple[str, ...] = ()) -> Path:
    """Write a run folder with nothing but checkpoints/best.ckpt, and return it."""
    torch.manual_seed(seed)
    settings = {"backbone": "tf_efficientnet_b0", "trainable_from": "blocks.5", "weights": "none"}
    network = StemTailNetwork(in_channels=len(SEQUENCES), **settings)
    preprocessing = {"grid": 32, "crop": "brain", "missing": "error", "clip_percentiles": [0.05, 99.95]}
    store = VolumeStore(run / "store", Preprocessing(**preprocessing), SEQUENCES)
    faults = store.prepare(cohort, workers=1).faults
    volumes = torch.stack([torch.from_numpy(np.array(store.open(study).image, dtype=np.float32)) for study in cohort])
    calibrate_batch_norm(network, torch.split(volumes, 8))
    network.eval()
    with torch.no_grad():
        network.network.classifier.weight.mul_(20.0)
        logits = network(volumes)
        network.network.classifier.bias.sub_(logits.mean(dim=0))
    data = SimpleNamespace(store=store, studies={"train": cohort[: len(cohort) // 2], "validation": cohort[::2]})
    recipe = {
        "model": {"_target_": "idh_lightning.models.StemTailNetwork", **settings},
        "objective": {"_target_": "idh_lightning.objectives.FocalLoss"},
        "preprocessing": {"_target_": "idh_lightning.volumes.Preprocessing", **preprocessing},
        "explain": {"_target_": "idh_lightning.explain.GradCAM", "layer": "blocks.4"},
        "sequences": list(SEQUENCES),
        "cohort": "tiny heads",
        "weights": network.weights_origin.as_dict(),
        "seed": seed,
        "fold": 0,
    }
    found = remember(network, data, faults)
    assert found is not None
    content = {
        "recipe": recipe,
        "state_dict": IDHClassifier(network=network, objective=FocalLoss()).state_dict(),
        "learnt": LEARNT.to_dict(),
        "calibration_covariance": [[0.01, 0.0], [0.0, 0.04]],
        "training_range": found.to_dict(),
    }
    (run / "checkpoints").mkdir(parents=True)
    torch.save({key: value for key, value in content.items() if key not in without}, run / "checkpoints" / "best.ckpt")
    return run
