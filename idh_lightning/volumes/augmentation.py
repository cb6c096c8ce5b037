"""Augmentation of MRI studies: TorchIO's transforms, drawn one by one and applied together.

The entries of `Augmentation` are TorchIO's own random transforms. They check their settings and draw their random
numbers, so every range means what TorchIO's documentation says. What differs is how the draws are applied: flip, affine
and elastic deformation become one map and one resampling of all sequences, and contrast, bias field and noise become
one pass over the voxels that are not background. `fused: false` applies the same entries the stock way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torchio as tio
from torch import Tensor

from idh_lightning.volumes.intensity import RandomIntensity
from idh_lightning.volumes.spatial import RandomSpatial
from idh_lightning.volumes.transforms import (
    Background,
    DrawnTransform,
    apply_recorded,
    background_of,
    change_scalars,
    happens,
)


class Augmentation(tio.Compose):  # type: ignore[misc]
    """A TorchIO transform made of named random effects, each of which may be left out.

    The order is that of the arguments. The subject given is left as it was.

    Args:
        flip: Mirrors the study; axes are named by anatomy, "LR" for left-right.
        affine: Scales, turns and shifts the study. `default_pad_value` gives way to `background`.
        elastic: Deforms the study smoothly.
        gamma: Raises the magnitude of every value to a power and keeps its sign; one power per sequence.
        bias_field: Multiplies by a smooth field, exp(polynomial); one field per sequence.
        noise: Adds Gaussian noise; one mean and one standard deviation per sequence.
        sequence_dropout: Blanks one sequence.
        fused: Apply space in one resampling and intensity in one pass; otherwise each entry on its own, the stock way.
        background: Value of voxels that show nothing: it fills what moves into view, and intensity effects leave it
            alone. "minimum" takes the smallest value of each sequence.

    Raises:
        ConfigError: If an entry asks for something that the fused way does not do.
    """

    def __init__(
        self,
        *,
        flip: tio.RandomFlip | None = None,
        affine: tio.RandomAffine | None = None,
        elastic: tio.RandomElasticDeformation | None = None,
        gamma: tio.RandomGamma | None = None,
        bias_field: tio.RandomBiasField | None = None,
        noise: tio.RandomNoise | None = None,
        sequence_dropout: RandomSequenceDropout | None = None,
        fused: bool = True,
        background: Background = 0.0,
    ) -> None:
        space = {"flip": flip, "affine": affine, "elastic": elastic}
        intensity = {"gamma": gamma, "bias_field": bias_field, "noise": noise}
        transforms: list[Any] = [*space.values(), *intensity.values()]
        if fused:
            transforms = [
                RandomSpatial(**space, background=background, copy=False),
                RandomIntensity(**intensity, background=background, copy=False),
            ]
        # No deep copy of the voxels, here and above: what is fused writes to new tensors.
        super().__init__([t for t in (*transforms, sequence_dropout) if t is not None], copy=False)
        self.fused = fused

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """New subject; images that no effect touched share their voxels with the one given."""
        return self._change(subject)(subject)

    def drawn(self, subject: tio.Subject) -> Callable[[tio.Subject], tio.Subject]:
        """Draw what a call would do to a subject, and return what does it.

        Draws come from the one generator of the process, so that they have to be made one after the other. What is
        returned draws nothing, if `fused` is true, and may run beside others.
        """
        return self._change(subject) if happens(self) else lambda subject: subject

    def _change(self, subject: tio.Subject) -> Callable[[tio.Subject], tio.Subject]:
        channels = sum(len(image.data) for image in subject.get_images(intensity_only=True))
        drawn = [t.draw(channels) if happens(t) else None for t in self.transforms] if self.fused else None

        def change(subject: tio.Subject) -> tio.Subject:
            own = tio.Subject({k: copy.copy(v) if isinstance(v, tio.Image) else v for k, v in subject.items()})
            own.applied_transforms = list(subject.applied_transforms)
            if drawn is None:
                return super(Augmentation, self).apply_transform(own)
            for transform in drawn:
                own = apply_recorded(transform, own)
            return own

        return change


class RandomSequenceDropout(DrawnTransform, tio.IntensityTransform):  # type: ignore[misc]
    """Blank one sequence chosen at random, so that the network learns to do without it; never the only one.

    Args:
        background: See `Augmentation`.
        missing: "error" if no study may lack a sequence; then none is blanked, whatever `p`.
        p: Probability that a study loses a sequence.
        **kwargs: See `torchio.Transform`.
    """

    def __init__(
        self,
        background: Background = 0.0,
        missing: Literal["error", "zero"] = "zero",
        p: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(p=p if missing == "zero" else 0.0, **kwargs)
        self.background = background

    def draw(self, channels: int) -> SequenceDropout | None:
        """Transform for one study of so many channels, or None if it has only one."""
        if channels < 2:
            return None
        channel = int(torch.randint(channels, (1,)))
        return SequenceDropout(channel, self.background, include=self.include, exclude=self.exclude)


class SequenceDropout(tio.IntensityTransform):  # type: ignore[misc]
    """Set one channel, counted over all images of the subject, to background."""

    def __init__(self, channel: int, background: Background = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channel, self.background = channel, background
        self.args_names = ["channel", "background"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Blank the channel."""
        return change_scalars(self.get_images(subject), self._blanked, subject)

    def _blanked(self, volume: Tensor, _order: Sequence[int]) -> Tensor:
        out = volume.clone()
        out[self.channel] = background_of(volume, self.background)[self.channel]
        return out
