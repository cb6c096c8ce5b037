"""Lightning's own switches that a run could not honour: each is refused before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TRIAL = (
    "cohort.patients=40 cohort.spacing_mm=4 data.grid=32 model=efficientnet_b0 split.validation=0.25 split.test=0.25 "
    "trainer.max_epochs=1"
)
"""A whole run that takes a minute."""

_EVERY_STUDY = (
    "since the checkpoint, the threshold and every metric are of all of these studies. Remove it, or take fewer "
    "studies: cohort.exclude=[ID,...], of the synthetic cohort cohort.patients=N"
)

_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "fast_dev_run": ((False, 0), f"which would leave no checkpoint to test. A whole run in a minute: {TRIAL}"),
    "overfit_batches": ((0, 0.0), "which takes the validation studies away. Use split.training_patients=N"),
    "limit_val_batches": ((None, 1.0), _EVERY_STUDY),
    "limit_test_batches": ((None, 1.0), _EVERY_STUDY),
    "limit_predict_batches": ((None, 1.0), "and a run predicts by testing. Remove it"),
    "val_check_interval": (
        (None, 1.0),
        "since a run can only go on from the end of an epoch. Remove it; trainer.limit_train_batches=0.5 gives shorter "
        "epochs",
    ),
    "enable_checkpointing": ((None, True), "since a run is tested by its best checkpoint. Remove it"),
    "barebones": ((False,), "which takes checkpoints, loggers and callbacks away. Remove it; the group `callbacks` "
                  "has each of them: ~callbacks.progress"),
    "logger": ((), "which the group `logger` decides. Use logger=csv, wandb or tensorboard"),
    "callbacks": ((), "which the group `callbacks` decides. Use +callbacks.NAME._target_=CLASS"),
    "plugins": ((), "which a run sets itself. Remove it; precision is trainer.precision"),
    "inference_mode": ((False,), "while maps need gradients. Remove it"),
    "use_distributed_sampler": ((False,), "while every process draws its own studies already. Remove it"),
    "reload_dataloaders_every_n_epochs": (
        (1,),
        "while the studies of each epoch are drawn from (seed, epoch). Remove it",
    ),
    "sync_batchnorm": ((False,), "which would take the frozen BatchNorm layers apart. Remove it"),
}  # fmt: skip
"""Switch -> the values that are well, and why others are not, with what to use instead."""

_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", "None")
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


def refused_switches(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield one message per setting of `trainer` and `callbacks` that a run could not honour."""
    trainer, callbacks = config.get("trainer"), config.get("callbacks") or {}
    if not isinstance(trainer, Mapping):
        return
    for name, (allowed, why) in _REFUSED.items():
        # For Lightning 1 is one batch where 1.0 is all of them.
        if name in trainer and not any(trainer[name] == one and type(trainer[name]) is type(one) for one in allowed):
            yield f"trainer.{name}: found {trainer[name]}, {why}."
    if trainer.get("enable_progress_bar") is False and callbacks.get("progress") is not None:
        yield "trainer.enable_progress_bar: found False; expected the callback to be left out. Use ~callbacks.progress."
    accumulate = config.get("data", {}).get("accumulate", 1)
    if trainer.get("accumulate_grad_batches", accumulate) != accumulate:
        yield (
            f"trainer.accumulate_grad_batches: found {trainer['accumulate_grad_batches']} with data.accumulate="
            f"{accumulate}; expected one number. Use data.accumulate."
        )
    if str(trainer.get("precision")) not in _PRECISIONS:
        yield (
            f"trainer.precision: found {trainer['precision']}; expected auto, 32-true, bf16-mixed or 16-mixed, since "
            "the volumes and what is read of them are in 32 bits. Use one of these."
        )
    strategy = trainer.get("strategy", "auto")
    target = strategy.get("_target_", "") if isinstance(strategy, Mapping) else strategy
    if target not in _STRATEGIES and not str(target).endswith((".DDPStrategy", ".SingleDeviceStrategy")):
        yield (
            f"trainer.strategy: found {target}; expected auto or ddp, since a checkpoint holds the whole network. Use "
            "trainer=ddp trainer.devices=N."
        )
    if "fit" in (config.get("stages") or []):
        yield from _of_training(trainer, callbacks)


def _of_training(trainer: Mapping[str, Any], callbacks: Mapping[str, Any]) -> Iterator[str]:
    epochs, steps, every = (
        trainer.get("max_epochs"),
        trainer.get("max_steps", -1),
        trainer.get("check_val_every_n_epoch", 1),
    )
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        yield (
            f"trainer.max_epochs: found {epochs}; expected a whole number from 1, since the learning rate follows a "
            "schedule with an end. Give one."
        )
    elif not isinstance(every, int) or not 1 <= every <= epochs:
        yield (
            f"trainer.check_val_every_n_epoch: found {every} with trainer.max_epochs={epochs}; expected a whole number "
            "up to that, since the best checkpoint is chosen by validation. Give one."
        )
    batches = trainer.get("limit_train_batches")
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int | float) or batches <= 0):
        yield (
            f"trainer.limit_train_batches: found {batches}; expected a number of batches from 1, or a share above 0.0, "
            "since a training of none leaves nothing to test. Give one, or take a trained network: "
            "stages=[test,report] checkpoint=PATH."
        )
    limit = trainer.get("max_time")
    if limit is not None and not any(map(int, re.findall(r"\d+", str(limit)))):
        yield f"trainer.max_time: found {limit}; expected time for an epoch at least, such as 00:12:00:00. Correct it."
    if not isinstance(steps, int) or steps == 0 or steps < -1:
        yield f"trainer.max_steps: found {steps}; expected a whole number from 1, or -1 for no limit. Correct it."
    if callbacks.get("best") is None:
        yield "callbacks.best: found none; expected the callback that keeps checkpoints/best.ckpt. Leave it in."
