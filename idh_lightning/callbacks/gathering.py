"""What all processes of a run have, in one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import lightning
import torch

T = TypeVar("T")


def gathered(trainer: lightning.Trainer, own: Sequence[T]) -> list[T]:
    """Return the items of all processes, in the order of the processes; each process must call it.

    Args:
        trainer: Knows how many processes there are.
        own: Picklable items of this process, as many as it has.
    """
    if trainer.world_size == 1:
        return list(own)
    parts: list[Sequence[T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, list(own))
    return [item for part in parts for item in part]
