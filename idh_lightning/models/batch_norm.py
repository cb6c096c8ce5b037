"""Statistics of BatchNorm layers: calibrated on training volumes, or left alone while a block is computed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from idh_lightning.errors import ModelError


def calibrate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set every BatchNorm's statistics to those of some training volumes, and return the number of volumes used.

    An untrained network with its initial statistics (mean 0, variance 1) lets signals fade layer by layer; after this
    each layer passes on a signal of unit scale. Dropout and stochastic depth are off meanwhile.

    Args:
        network: Changed in place.
        batches: Tensors [B, C, D, H, W] of training studies, B >= 2.

    Raises:
        ModelError: If a batch is a single volume.
    """
    was_training = network.training
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.training = True
    volumes_seen = 0
    try:
        with torch.no_grad():
            for batch in batches:
                if len(batch) < 2:
                    raise ModelError(
                        f"BatchNorm calibration: found a batch of {len(batch)} training volume(s); expected at least 2 "
                        "to average over. Add training studies or use pretrained weights."
                    )
                network(batch)
                volumes_seen += len(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)
    return volumes_seen


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm move copies of its statistics, since computing a block again is not seeing a batch again."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    own = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        for norm, buffers in zip(norms, own, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
