"""A checkpoint as a folder that others load: in the layout of the Hugging Face Hub, or as a bundle of MONAI."""

from __future__ import annotations

import importlib.metadata
import logging
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from huggingface_hub import ModelCardData, PyTorchModelHubMixin
from torch import Tensor, nn

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.config.text import to_paste
from idh_lightning.errors import ConfigError, ModelError
from idh_lightning.files import atomic_folder, atomic_write, write_json, write_text
from idh_lightning.hub import HUB
from idh_lightning.inference.ensemble import Member, one_checkpoint

logger = logging.getLogger(__name__)

FolderFormat = Literal["hub", "monai_bundle"]

MONAI_VERSION = "1.6.1"
"""Version of MONAI that bundles are tested with."""

_USE = """
## Use

With idh_lightning installed; FOLDER is this one, or `hf://OWNER/NAME` at the hub:

```bash
python -m idh_lightning.predict checkpoint=FOLDER input=/data/new_patient output=answers
```

From Python, for images: `idh_lightning.Predictor("FOLDER").predict("/data/new_patient")`; the network alone, for
volumes: `idh_lightning.inference.HubModel.from_pretrained("FOLDER")`.
"""


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="idh_lightning"):
    """Network of a checkpoint as huggingface_hub loads it: volumes [B, C, D, H, W] to calibrated probabilities [B].

    The volumes are as `volumes.Preprocessing` makes them; `Predictor` answers for images.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Build the network of a checkpoint, in eval mode; a CheckpointError if that cannot be used."""
        super().__init__()
        member = Member.of(checkpoint)
        self.checkpoint = checkpoint
        self.network = member.network
        self.calibrator = member.calibrator

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the probability of the positive class."""
        logits = self.network(volumes).double()
        return torch.sigmoid(self.calibrator.slope * (logits[:, 1] - logits[:, 0]) + self.calibrator.intercept)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None = None, **_: Any) -> Self:
        at = f"@{revision}" if revision else ""
        return cls(Checkpoint.read(model_id if Path(model_id).is_dir() else f"{HUB}{model_id}{at}"))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.checkpoint.write_folder(save_directory)
        write_text(save_directory / "README.md", _card(self.checkpoint))


def share(checkpoint: str | Path, folder: Path | None = None, *, form: FolderFormat = "hub") -> Path:
    """Write a checkpoint as a folder, compare what is loaded from there with it, and return the folder.

    Args:
        checkpoint: See `one_checkpoint`.
        folder: By default hub or monai_bundle beside the .ckpt; of another checkpoint in the working folder.
        form: "hub" is what `HubModel.from_pretrained` and checkpoint=FOLDER read, "monai_bundle" has it in `models`.

    Raises:
        ConfigError: If something is in the folder.
        CheckpointError: If the checkpoint cannot be used.
        ModelError: If the folder would give other probabilities.
    """
    read = one_checkpoint(checkpoint)
    folder = folder or beside(read.file) / form
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        free = next(name for number in count(2) if not (name := Path(f"{folder}-{number}")).exists())
        raise ConfigError(
            f"output: {folder} is there and not empty; expected a new folder. Move it away, or give another: "
            + to_paste("output", str(free))
        )
    model = HubModel(read)
    volumes = torch.randn((2, *_shape(read)), generator=torch.Generator().manual_seed(0))
    with atomic_folder(folder) as temporary:
        place = temporary if form == "hub" else temporary / "models"
        model._save_pretrained(place)
        if form == "monai_bundle":
            _write_bundle(model, temporary)
        with torch.no_grad():
            ours, theirs = model(volumes), HubModel.from_pretrained(place)(volumes)
        if not torch.equal(ours, theirs):
            raise ModelError(
                f"{folder}: would give other probabilities than {read.file}. Nothing was written; please report it."
            )
    logger.info("%s: written; it gives the same probabilities as %s.", folder, read.file)
    return folder


def beside(file: Path) -> Path:
    """Folder to write into beside a checkpoint: never the package or the cache of the hub."""
    return file.parent if file.suffix == ".ckpt" else Path()


def _write_bundle(model: HubModel, folder: Path) -> None:
    """Write what MONAI needs beside the checkpoint; `monai.bundle.load` reads weights of torch.save alone."""
    checkpoint = model.checkpoint
    with atomic_write(folder / "models" / "model.pt") as temporary:
        torch.save({name: one.clone() for name, one in model.state_dict().items()}, temporary)
    write_text(folder / "docs" / "README.md", _card(checkpoint))
    write_json(folder / "configs" / "inference.json", _INFERENCE)
    channels, *edges = _shape(checkpoint)
    target = checkpoint.target
    image = {
        "type": "image", "format": "magnitude", "modality": "MR", "num_channels": channels, "spatial_shape": edges,
        "dtype": "float32", "value_range": [], "is_patch_data": False,
        "channel_def": {str(index): name for index, name in enumerate(checkpoint.sequences)},
    }  # fmt: skip
    answer = {
        "type": "probabilities", "format": "classes", "num_channels": 1, "spatial_shape": [], "dtype": "float64",
        "value_range": [0, 1], "is_patch_data": False, "channel_def": {"0": target.chance},
    }  # fmt: skip
    version = importlib.metadata.version("idh_lightning")
    metadata = {
        "version": "0.1.0", "changelog": {"0.1.0": f"written by idh_lightning {version}"},
        "monai_version": MONAI_VERSION, "pytorch_version": str(torch.__version__), "numpy_version": np.__version__,
        "required_packages_version": {"idh_lightning": version}, "name": folder.name,
        "task": f"{target.title} of a glioma",
        "description": f"{target.title} of a glioma from MRI. Research software, not for clinical use.",
        "authors": "the makers of the checkpoint", "copyright": "see docs/README.md",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}},
    }  # fmt: skip
    write_json(folder / "configs" / "metadata.json", metadata)


_INFERENCE = {
    "bundle_root": ".",
    "device": "$'cuda' if __import__('torch').cuda.is_available() else 'cpu'",
    "dataset_dir": "/data/new_patient",
    "network_def": {
        "_target_": "idh_lightning.inference.HubModel.from_pretrained",
        "pretrained_model_name_or_path": "$@bundle_root + '/models'",
    },
    "predictor": {"_target_": "idh_lightning.inference.Predictor", "checkpoint": "$@bundle_root + '/models'"},
    "run": ["$[print(answer) for answer in @predictor.predict(@dataset_dir)]"],
}
"""configs/inference.json of a bundle."""


def _shape(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Channels and edges of the volumes that a network takes."""
    grid = checkpoint.recipe["preprocessing"]["grid"]
    return (len(checkpoint.sequences), *([grid] * 3 if isinstance(grid, int) else grid))


def _card(checkpoint: Checkpoint) -> str:
    """Model card with its metadata and with how to use the folder."""
    card = (checkpoint.model_card or f"# {checkpoint.target.title} of a glioma\n").rstrip("\n") + "\n"
    if not card.startswith("---"):
        metadata = ModelCardData(library_name="pytorch", tags=["medical", "mri", "glioma", checkpoint.target.name])
        card = f"---\n{metadata.to_yaml()}\n---\n\n{card}"
    return card + _USE
