"""The LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from idh_lightning.checkpoint import CHECKPOINT_FORMAT
from idh_lightning.data import Batch, FeatureBatch
from idh_lightning.errors import CheckpointError, TrainingError, way_on
from idh_lightning.models import NetworkOutput, StemTailNetwork
from idh_lightning.models.radiomics import at_sites

LARGE_WEIGHT = 1e4
"""No weight comes near in a training that goes well: after the default run none is above 24."""


class IDHClassifier(lightning.LightningModule):
    """Learns to tell IDH-mutant from IDH-wildtype glioma.

    Logs `<stage>/loss`, `<stage>/study_accuracy` (at probability 0.5, uncalibrated) and `<stage>/study_auroc` for the
    stages train, val and test, which count studies while metrics.json counts patients.
    """

    def __init__(
        self,
        *,
        network: StemTailNetwork,
        objective: nn.Module,
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        weight_decay: float = 0.0,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        """Join network and objective.

        Args:
            network: Maps volumes [B, C, D, H, W] to logits [B, 2].
            objective: Maps logits [B, 2] and labels [B] to a scalar.
            optimizer: From parameter groups to an optimizer; only needed to fit.
            scheduler: From an optimizer and `total_steps` to a schedule that is stepped once per optimizer step.
            weight_decay: Of the weight matrices; biases and normalisation layers have none.
            recipe: Primitives in every checkpoint, which suffice to build this model again.
        """
        super().__init__()
        self.network = network
        self.objective = objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.weight_decay = weight_decay
        self.recipe = recipe or {}
        self.sites: Mapping[str, str] = {}
        """Site of each study, where the network harmonises them."""
        self.planned_steps: int | None = None
        """Of a training that is gone on with: the optimizer steps of its schedule."""
        metrics = MetricCollection({"study_accuracy": BinaryAccuracy(), "study_auroc": BinaryAUROC()})
        # A ModuleDict refuses the key "train", which is one of its methods.
        stages = ("train", "val", "test")
        self.metrics = nn.ModuleDict({f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in stages})

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits [B, 2] of volumes [B, C, D, H, W]."""
        logits: Tensor = self.network(volumes)
        return logits

    def training_step(self, batch: Batch | FeatureBatch, batch_index: int) -> Tensor:
        """Loss of a training batch."""
        return self._shared_step(batch, "train")[0]

    def validation_step(self, batch: Batch | FeatureBatch, batch_index: int) -> None:
        """Score a validation batch."""
        self._shared_step(batch, "val")

    def test_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> Tensor:
        """Score a batch of the validation (loader 0) or test studies (loader 1).

        Returns:
            [B, 1 or 4], logits of the mutant class minus those of the wildtype class: that of the network, whose
            sigmoid is P(mutant), and, where there is a locator, those of its branches: deep layers, radiomics head and
            dense vote.
        """
        output = self._shared_step(batch, "test")[1] if dataloader_idx else self._output(batch, "test")
        each = [output.logits, *(output.branch_logits if len(output.branch_logits) > 1 else ())]
        return torch.stack([logits[:, 1] - logits[:, 0] for logits in each], dim=1)

    def configure_optimizers(self) -> Any:
        """Optimizer over the trainable weights, and its schedule per optimizer step."""
        if self.optimizer is None or self.scheduler is None:
            raise RuntimeError("this model was built to predict; give it an optimizer and a scheduler to fit it")
        optimizer = self.optimizer(groups_by_decay(self.network, self.weight_decay))
        total_steps = int(self.trainer.estimated_stepping_batches)
        if self.planned_steps not in (None, total_steps):
            raise CheckpointError(
                f"this training was planned for {self.planned_steps} steps of the optimizer and would now have "
                f"{total_steps}; expected the same number, since the learning rate follows a schedule. Train on from "
                "the weights that it has, with a schedule of their own in a new folder: "
                f"checkpoint={Path(self.trainer.default_root_dir) / 'checkpoints' / 'best.ckpt'}, or go on with as "
                f"many devices, epochs and studies per step as before: {way_on()}"
            )
        scheduler = self.scheduler(optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of each module of the network on its own, since their scales differ."""
        clip_gradients(self, self.network.parts(), optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the recipe beside the weights, so that the file can be used on its own."""
        checkpoint |= {"format": CHECKPOINT_FORMAT, "recipe": self.recipe}

    def _output(self, batch: Batch | FeatureBatch, stage: str) -> NetworkOutput:
        with at_sites(self.network, [self.sites.get(study, "") for study in batch.study_ids]):
            if isinstance(batch, FeatureBatch):
                return self.network.answer(batch.features)
            return self.network.answer(self.network.stem(batch.volumes, to_train=stage != "test"))

    def _shared_step(self, batch: Batch | FeatureBatch, stage: str) -> tuple[Tensor, NetworkOutput]:
        output = self._output(batch, stage)
        loss: Tensor = self.objective(output.logits, batch.labels)
        # Each branch is taught on its own: of their mean, the deep layers would soon learn the training patients by
        # heart and leave the others nothing to learn.
        branches = output.branch_logits if stage == "train" else ()
        taught = sum(self.objective(each, batch.labels) for each in branches) if branches else loss
        # torchmetrics decides at every call whether it was given logits or probabilities; float32 probabilities
        # leave it no doubt.
        probability = torch.softmax(output.logits.detach().float(), dim=1)[:, 1]
        metrics = self.metrics[f"{stage}_metrics"]
        metrics.update(probability, batch.labels)  # type: ignore[operator]
        # Over all processes, since checkpoints are chosen by it; torchmetrics gathers the metrics itself.
        log = {"batch_size": len(batch.labels), "add_dataloader_idx": False, "on_epoch": True, "sync_dist": True}
        if not bool(torch.isfinite(taught)):
            raise TrainingError(self._why_not_finite(batch, stage))
        self.log(f"{stage}/loss", loss.detach(), on_step=stage == "train", prog_bar=True, **log)  # type: ignore[arg-type]
        self.log_dict(metrics, on_step=False, prog_bar=stage == "val", **log)  # type: ignore[arg-type]
        return taught, output

    def _why_not_finite(self, batch: Batch | FeatureBatch, stage: str) -> str:
        """Place, likely cause and remedy of a loss that is not finite."""
        given = batch.features if isinstance(batch, FeatureBatch) else batch.volumes
        broken = [study for study, one in zip(batch.study_ids, given, strict=True) if not torch.isfinite(one).all()]
        largest = max(float(parameter.detach().abs().max()) for parameter in self.network.parameters())
        if broken:
            cause = (
                f"the values of {', '.join(broken)} are not finite before anything is learnt from them. Look at these "
                "studies, or leave them out with cohort.exclude=[ID,...]"
            )
        elif not largest < LARGE_WEIGHT:
            cause = (
                f"the largest weight has become {largest:.3g}, as with a learning rate that is too high. Begin a new "
                "run with a lower optimizer.lr, or with trainer.precision=32-true"
            )
        else:
            cause = (
                "weights and volumes are finite, so numbers grew too large on the way, as they do in 16 bits. Begin a "
                "new run with trainer.precision=32-true, or with a lower optimizer.lr"
            )
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        kept = f"The best weights before are kept: {best}" if best else "No weights were kept, since no epoch had ended"
        return (
            f"{stage}/loss: not finite in epoch {self.current_epoch + 1}, step {self.global_step}, in the "
            f"batch of {', '.join(dict.fromkeys(batch.study_ids))}; expected a number. Likely cause: {cause}. "
            f"{kept}; --resume would come to this step again."
        )


def groups_by_decay(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: first what has one dimension or is a bias, without decay, then the matrices.

    As `timm.optim.param_groups_weight_decay`, whose import takes two seconds.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, one in network.named_parameters():
        if one.requires_grad:
            groups[one.ndim > 1 and not name.endswith(".bias")].append(one)
    return [{"params": some, "weight_decay": decay} for some, decay in zip(groups, (0.0, weight_decay), strict=True)]


def clip_gradients(
    module: lightning.LightningModule,
    parts: Iterable[nn.Module],
    optimizer: Optimizer,
    gradient_clip_val: float | None,
    gradient_clip_algorithm: str | None,
) -> None:
    """Clip the gradients of each part of a module on its own, as Lightning's setting asks.

    lightning 2.6.6 refuses to clip under mixed precision when the optimizer is a fused one, since it may have to
    undo the scaling of gradients first. On a CPU nothing is scaled, and the fused AdamW is four times as fast.
    """
    by_norm = str(gradient_clip_algorithm or "norm").rsplit(".", 1)[-1].lower() == "norm"
    refused = module.device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False)
    if gradient_clip_val and not refused:
        clip = nn.utils.clip_grad_norm_ if by_norm else nn.utils.clip_grad_value_
        for part in parts:
            clip(part.parameters(), gradient_clip_val)
    else:
        module.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
