"""The parts of a training in plain PyTorch: cohort, volumes, split, data module, network, one step."""

import tempfile
from pathlib import Path

import torch

from idh_lightning.cohort import SPLITS, HoldOut
from idh_lightning.data import IDHDataModule
from idh_lightning.models import StemTailNetwork, calibrate_batch_norm
from idh_lightning.objectives import FocalLoss
from idh_lightning.phantom import PhantomCohort
from idh_lightning.volumes import Preprocessing, VolumeStore


def main() -> None:
    """Take one optimizer step on four synthetic studies."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        cohort = PhantomCohort(Path(root) / "data", patients=24, spacing_mm=6.0, workers=1).read()
        store = VolumeStore(Path(root) / "store", Preprocessing(grid=33), cohort.sequences)
        store.prepare(cohort.studies)
        split = HoldOut(seed=0, validation=0.2, test=0.2)(cohort).set_index("study_id")["split"]
        data = IDHDataModule(
            studies={name: [one for one in cohort.studies if split[one.study_id] == name] for name in SPLITS},
            store=store,
            augmentation=None,
            seed=0,
        )
        network = StemTailNetwork(backbone="tf_efficientnet_b0", weights="none")
        calibrate_batch_norm(network, data.calibration_batches(8))  # the network starts untrained
        objective = FocalLoss()
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-4)
        batch = next(iter(data.training_loader(epoch=0)))
        network.train()
        for step in range(2):
            loss = objective(network(batch.volumes), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"step {step}: volumes {tuple(batch.volumes.shape)}, labels {batch.labels.tolist()}, loss {loss:.3f}")


if __name__ == "__main__":
    main()
