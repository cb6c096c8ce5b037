"""Checkpoint of a run: everything that is needed to use its network elsewhere."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from idh_lightning.attribution import Method
from idh_lightning.cohort import Cohort, DevelopmentPatients, Target
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.config.places import SHIPPED, absolute_paths, without_folders
from idh_lightning.errors import CheckpointError
from idh_lightning.evaluation import DevelopmentCohort, PostProcessing
from idh_lightning.files import atomic_write, write_text
from idh_lightning.hub import HUB, UnreachableError, hub_file
from idh_lightning.models import LATER, StemTailNetwork, WeightsOrigin
from idh_lightning.models.segmentation import PRETRAINED, TumourSegmenter, load_segmenter, segmenter_of
from idh_lightning.models.weights import torch_content
from idh_lightning.ood import OutOfDistributionDetector
from idh_lightning.volumes import Preprocessing

CHECKPOINT_FORMAT = 3
"""Number of the layout of a checkpoint; 1 was that of version 0.1, and 2 had a locator that learnt with the tail."""

DESCRIPTION = "pretrained.json"
"""File beside the shipped weights that holds all else of their checkpoint."""

_CALLED: Mapping[str, Any] = {
    "idh_lightning.attribution": object,
    "idh_lightning.models": nn.Module,
    "idh_lightning.objectives": nn.Module,
    "idh_lightning.volumes": Preprocessing,
    "torch.nn": nn.Module,
}
"""Packages whose classes a recipe may call, below these."""

HUB_FILES = ("config.json", "model.safetensors")
"""Files of a checkpoint as the hub has them: all but the weights, and these."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Checkpoint of a run, `checkpoints/best.ckpt`.

    Attributes:
        file: Where it lies.
        recipe: Settings of the network, its objective, its preprocessing and its maps; cohort and sequences, seed. Of
            files that the training began with it has the names, not the folders.
        state_dict: Weights, by the names that the LightningModule gives them.
        ood_detector: Fitted on the training studies; None before the end of the fit, and where these were too few.
        post_processing: Calibration, threshold and prediction sets; None before the report of the run.
        calibration_covariance: [2, 2], of the calibration line.
        development: Patients and results of the run; None before its report.
        earlier: Patients of the network whose weights its training began with; None if there was none.
        model_card: Text of model_card.md; None before the report.
        notice: Sentence that goes with every answer of the network; "" for that of a run.
    """

    file: Path
    recipe: Mapping[str, Any]
    state_dict: Mapping[str, Tensor]
    ood_detector: OutOfDistributionDetector | None = None
    post_processing: PostProcessing | None = None
    calibration_covariance: NDArray[np.float64] | None = None
    development: DevelopmentCohort | None = None
    earlier: DevelopmentPatients | None = None
    model_card: str | None = None
    notice: str = ""

    @staticmethod
    def locate(path: str | Path) -> Path:
        """File of a checkpoint: the path, the best.ckpt of a run folder, or the weights that "pretrained" names.

        Of a folder as `write_folder` leaves it, at the hub (hf://owner/name) or here, it is config.json. A
        CheckpointError if there is none.
        """
        if not isinstance(path, str | Path):
            raise CheckpointError(
                f"checkpoint: found several, {', '.join(map(str, path))}; expected one, since only predict answers by "
                "several together. Name one of them."
            )
        if str(path) == SHIPPED:
            return PRETRAINED
        if str(path).startswith(HUB):
            return _downloaded(str(path))
        path = Path(path)
        path = path / "models" if (path / "models" / HUB_FILES[0]).is_file() else path  # of a bundle for MONAI
        there = [name for name in HUB_FILES if (path / name).is_file()]
        if len(there) == 1 and not (path / "checkpoints").is_dir():
            (absent,) = set(HUB_FILES) - set(there)
            raise CheckpointError(
                f"{path / absent}: there is no such file; expected it beside {there[0]}. Download or copy it as well."
            )
        if len(there) == len(HUB_FILES):
            return path / HUB_FILES[0]
        file = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(
                f"{file}: there is no such file; expected a checkpoint. Give a run folder or a .ckpt."
            )
        return file

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Checkpoint in a file or a run folder; "pretrained" is that in the package.

        Raises:
            CheckpointError: If the file is absent, damaged, or not one of this version of this project.
        """
        if str(path) == SHIPPED:
            return cls.pretrained()
        file = cls.locate(path)
        try:
            if file.name == HUB_FILES[0]:
                return cls._of_content(file, _content_in(file.parent))
            return cls._of_content(file, torch_content(file))
        except CheckpointError:
            raise
        except Exception as error:  # of any kind, where the file holds anything else
            raise _unusable(file, error) from error

    @classmethod
    def pretrained(cls, folder: Path | None = None) -> Self:
        """Checkpoint of the shipped network, in the package or in a folder as `write_pretrained` leaves it.

        Raises:
            CheckpointError: If a file is absent or damaged, or the description is of other weights.
        """
        weights = PRETRAINED if folder is None else folder / PRETRAINED.name
        described = weights.with_name(DESCRIPTION)
        for file in (weights, described):
            if not file.is_file():
                raise CheckpointError(
                    f"{file}: there is no such file; expected the network that the package ships. Install the package "
                    "again, make it again (python -m idh_lightning.train experiment=pretrain_locator), or name a run: "
                    "checkpoint=RUN."
                )
        try:
            content = json.loads(described.read_text(encoding="utf-8"))
            if content["weights_sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
                raise CheckpointError(
                    f"{described}: describes other weights than {weights}; expected both from one writing. Install the "
                    "package again, or make them again (python -m idh_lightning.train experiment=pretrain_locator)."
                )
            tensors = load_segmenter(weights).state_dict()
            content["state_dict"] = {f"network.locator.{name}": tensor for name, tensor in tensors.items()}
            return cls._of_content(weights, content)
        except CheckpointError:
            raise
        except Exception as error:
            raise _unusable(described, error) from error

    @classmethod
    def _of_content(cls, file: Path, content: Mapping[str, Any]) -> Self:
        """Checkpoint of what `write` or the shipped description holds."""
        if not {"recipe", "state_dict"} <= set(content):
            raise ValueError("it has no recipe or no weights")
        if content.get("format") != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{file}: written by another version (checkpoint format {content.get('format', 1)}); expected "
                f"format {CHECKPOINT_FORMAT}. Train again, or use it with the version that wrote it."
            )
        _refuse_foreign_targets(content["recipe"], file)
        covariance, card = content.get("calibration_covariance"), content.get("model_card")
        for path in absolute_paths(content["recipe"]):  # of a checkpoint that was written with them
            card = card and card.replace(path, without_folders(path))
        return cls(
            file=file,
            recipe=without_folders(content["recipe"]),
            state_dict=content["state_dict"],
            ood_detector=_restored(OutOfDistributionDetector, content.get("ood_detector")),
            post_processing=_restored(PostProcessing, content.get("post_processing")),
            calibration_covariance=None if covariance is None else np.array(covariance, dtype=float),
            development=_restored(DevelopmentCohort, content.get("development")),
            earlier=_restored(DevelopmentPatients, content.get("earlier")),
            model_card=card,
            notice=content.get("notice", ""),
        )

    def write(self) -> None:
        """Put the checkpoint in the place of its file, in one step."""
        with atomic_write(self.file) as temporary:
            torch.save(self._content(), temporary)

    def write_folder(self, folder: Path) -> None:
        """Write the checkpoint as the hub has it: HUB_FILES, weights as safetensors and all else as JSON."""
        content = self._content()
        weights = {name: one.contiguous().clone() for name, one in content.pop("state_dict").items()}
        with atomic_write(folder / HUB_FILES[1]) as temporary:
            save_file(weights, temporary)
            content["weights_sha256"] = hashlib.sha256(temporary.read_bytes()).hexdigest()
        text = json.dumps(content, indent=1, default=Tensor.tolist, allow_nan=False)
        write_text(folder / HUB_FILES[0], text + "\n")

    def _content(self) -> dict[str, Any]:
        """Content for `_of_content`: primitives and tensors."""
        content: dict[str, Any] = {
            "format": CHECKPOINT_FORMAT,
            "recipe": self.recipe,
            "state_dict": self.state_dict,
            "model_card": self.model_card,
            "notice": self.notice,
        }
        for name in ("ood_detector", "post_processing", "development", "earlier"):
            part = getattr(self, name)
            content[name] = None if part is None else part.to_dict()
        covariance = self.calibration_covariance
        content["calibration_covariance"] = None if covariance is None else np.asarray(covariance).tolist()
        return content

    @property
    def target(self) -> Target:
        """Target that the network predicts."""
        return Target.of_record(self.recipe.get("target"))

    @property
    def sequences(self) -> tuple[str, ...]:
        """Sequences that the network takes, in the order of its channels."""
        return tuple(self.recipe["sequences"])

    def lacking(self, present: Collection[str]) -> str:
        """Fault, in words, of a study with these sequences, or "": of some the network needs at least one."""
        needed = self.recipe.get("one_of") or self.sequences
        if set(needed) & set(present):
            return ""
        return (
            f"none of {' and '.join(needed)} is there; expected one of them at least, which the network has learnt to "
            "see a tumour on. Add the file, or name it: "
            + " or ".join(f"{name.lower()}=/data/{name}.nii.gz" for name in needed)
        )

    def network(self) -> StemTailNetwork:
        """Network in eval mode, with its weights; a CheckpointError if recipe and weights do not go together."""
        try:
            made = instantiate_section(self.recipe["model"], _partial_=True, weights=LATER)
            network: StemTailNetwork = made(sequences=self.sequences, locator=self.locator())
            network.weights_origin = WeightsOrigin(**self.recipe["weights"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise _unusable(self.file, error) from error
        self.load_into(network)
        return network.eval()

    def locator(self) -> TumourSegmenter | None:
        """Locator of the network with its weights, so that no other file is read; None if the network has none.

        Raises:
            CheckpointError: If its weights do not go together.
        """
        weights = self._weights("network.locator.")
        try:
            return segmenter_of(weights) if weights else None
        except (KeyError, RuntimeError) as error:
            raise _unusable(self.file, error) from error

    def load_into(self, network: StemTailNetwork) -> None:
        """Load the weights of the checkpoint into a network; a CheckpointError if they do not fit."""
        try:
            network.load_state_dict(self._weights("network."))
        except RuntimeError as error:
            raise _unusable(self.file, error) from error

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        """Weights whose names begin with a prefix, by what follows it."""
        return {name[len(prefix) :]: one for name, one in self.state_dict.items() if name.startswith(prefix)}

    def explanation(self) -> Method:
        """Method of explanation of the run: networks and volumes -> maps [B, D, H, W]."""
        made: Method = instantiate_section(self.recipe["explain"])
        return made

    def reported(self) -> tuple[PostProcessing, DevelopmentCohort]:
        """Post-processing and development cohort; a CheckpointError if the run has not come to its report."""
        if self.post_processing is None or self.development is None:
            raise CheckpointError(
                f"{self.file}: holds no threshold, calibration and patients; expected the best.ckpt of a run that "
                "wrote its report. Report that run: stages=[report] hydra.run.dir=RUN and the overrides it was made "
                "with."
            )
        return self.post_processing, self.development

    def require_cohort(self, cohort: Cohort) -> None:
        """Raise a CheckpointError unless a cohort has the target and the sequences of the network, in its order."""
        self.require_target(cohort.target)
        if self.sequences != cohort.sequences:
            raise CheckpointError(
                f"{self.file}: trained on {', '.join(self.sequences)}, while the cohort has "
                f"{', '.join(cohort.sequences)}; expected the same sequences. Use another checkpoint or cohort."
            )

    def require_target(self, target: Target) -> None:
        """Raise a CheckpointError unless a target is that of the network."""
        if self.target != target:
            raise CheckpointError(
                f"{self.file}: predicts {self.target.title} ({self.target.name}), while the cohort has "
                f"{target.title} ({target.name}) as its label; expected the same target. Leave cohort.target out, or "
                "use another checkpoint."
            )


def _restored(kind: Any, state: Any) -> Any:
    return None if state is None else kind.from_dict(state)


def _unusable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file}: cannot be used ({type(error).__name__}: {error}); expected a checkpoint of this project. "
        "Give another one."
    )


def _downloaded(place: str) -> Path:
    """Local config.json of hf://owner/name, its weights beside it."""
    name, _, revision = place.removeprefix(HUB).partition("@")
    try:
        described, _ = (hub_file(name, one, revision or None) for one in HUB_FILES)
        return described
    except UnreachableError as error:
        raise CheckpointError(
            f"{place}: cannot be had ({error}); expected a model at the hub that `export format=hub` wrote, and a "
            "network or a copy in its cache. Copy its folder here from where there is one and give checkpoint=FOLDER."
        ) from error


def _content_in(folder: Path) -> dict[str, Any]:
    """Content of a folder as `write_folder` leaves it."""
    described, weights = (folder / name for name in HUB_FILES)
    content: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))
    if content["weights_sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
        raise CheckpointError(
            f"{described}: describes other weights than {weights.name}; expected both from one writing. Write or "
            "download both again."
        )
    return content | {"state_dict": load_file(weights)}


def _refuse_foreign_targets(section: Any, file: Path) -> None:
    """Refuse a recipe that would call anything but classes made for it: a checkpoint may come from anywhere."""
    if isinstance(section, Mapping):
        if "_target_" in section and not _is_ours(section["_target_"]):
            raise CheckpointError(
                f"{file}: its recipe would call '{section['_target_']}'; expected classes of idh_lightning or "
                "torch.nn. Use a checkpoint that this project wrote."
            )
        section = list(section.values())
    if isinstance(section, list | tuple):
        for value in section:
            _refuse_foreign_targets(value, file)


def _is_ours(target: Any) -> bool:
    """Whether a recipe may call a name. A path through a module will not do: it may lead on, as files.os.system."""
    package, _, name = str(target).rpartition(".")
    found = getattr(importlib.import_module(package), name, None) if package in _CALLED else None
    return isinstance(found, type) and issubclass(found, _CALLED[package])
