"""Class-balanced sampler: the studies of an epoch, their order and the seeds of their augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from idh_lightning.errors import SplitError


class Draw(int):
    """The index of a study together with the seed of its augmentation.

    It is an int, so that TorchIO's queue can pass it on to the data set, in whichever process that lives.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> Draw:
        """Tie a seed to an index."""
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        """Keep the seed when the draw travels to a worker process."""
        return Draw, (int(self), self.seed)


class ClassBalancedSampler(Sampler[int]):
    """Yields the studies of one epoch so that both classes come up in a fixed proportion.

    Each class is gone through in a fresh random order again and again, so that no study comes up twice before every
    other of its class has come up once. Order and augmentation seeds depend on (seed, epoch) alone: not on the number
    of workers, and not on what ran before, which is what makes a resumed run equal to an undisturbed one.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        seed: int,
        epoch: int,
        mutant_fraction: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan an epoch.

        Args:
            labels: One per study, 0 or 1.
            seed: Of the run.
            epoch: Number of the epoch, from 0.
            mutant_fraction: Share of the epoch's draws, over all processes as many as studies, that are mutant.
            rank: Index of this process.
            world_size: Number of processes; each takes every world_size-th draw of each class, so each is balanced.

        Raises:
            SplitError: If a class is absent or the fraction is out of range.
        """
        indices = {label: np.flatnonzero(np.asarray(labels) == label) for label in (0, 1)}
        if not all(len(members) for members in indices.values()):
            raise SplitError(
                f"training studies: found {len(indices[0])} wildtype and {len(indices[1])} mutant; expected both "
                "classes. Change the split or add studies."
            )
        if not 0.0 < mutant_fraction < 1.0:
            raise SplitError(
                f"data.mutant_fraction: found {mutant_fraction}; expected a number between 0 and 1. Correct it."
            )
        per_process = max(len(labels) // world_size, 1)
        mutants = min(max(round(per_process * mutant_fraction), 1), max(per_process - 1, 1))
        generator = np.random.default_rng([seed, epoch])
        drawn = {
            1: _cycle(indices[1], mutants * world_size, generator),
            0: _cycle(indices[0], (per_process - mutants) * world_size, generator),
        }
        own = np.concatenate([drawn[1][rank::world_size], drawn[0][rank::world_size]])
        order = np.random.default_rng([seed, epoch, rank]).permutation(len(own))
        seeds = np.random.default_rng([seed, epoch, rank, 1]).integers(0, 2**31, len(own))
        self._draws = [Draw(int(own[position]), int(seeds[rank_in])) for rank_in, position in enumerate(order)]

    def __iter__(self) -> Iterator[int]:
        """Yield the draws of the epoch."""
        return iter(self._draws)

    def __len__(self) -> int:
        """Return the number of draws of this process."""
        return len(self._draws)


def _cycle(members: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` draws from `members`, going through all of them in a new order each time."""
    rounds = -(-count // len(members))
    return np.concatenate([generator.permutation(members) for _ in range(rounds)] or [members[:0]])[:count]
