"""Parts of the fused transforms: draws, history, and the voxels of a subject as one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torchio as tio
from torch import Tensor

from idh_lightning.errors import ConfigError

Background = float | Literal["minimum"]
Box = tuple[slice, slice, slice]

PATIENT_AXES = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}


class DrawnTransform(tio.transforms.augmentation.RandomTransform):  # type: ignore[misc]
    """Random transform whose `draw(channels)` returns a transform with fixed parameters, or None for no change."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw a transform, apply it and write it in the subject's history."""
        return apply_recorded(self.draw(sum(len(image.data) for image in self.get_images(subject))), subject)


def apply_recorded(transform: Any, subject: tio.Subject) -> tio.Subject:
    """Apply without a second deep copy of the voxels, which TorchIO's call would make."""
    if transform is not None:
        subject = transform.apply_transform(subject)
        subject.add_transform(transform, transform._get_reproducing_arguments())
    return subject


def happens(transform: Any) -> bool:
    """Whether a transform, which may be None, is drawn this time."""
    return transform is not None and torch.rand(1).item() < transform.probability


def check_fusable(**entries: Any) -> None:
    """Raise ConfigError if an entry asks for something that the fused way does not do."""
    for name, entry in entries.items():
        if entry is None:
            continue
        wrong = {
            "axes": [axis for axis in getattr(entry, "axes", ()) if str(axis)[0].upper() not in PATIENT_AXES],
            "image_interpolation": getattr(entry, "image_interpolation", "linear") != "linear",
            "label_interpolation": getattr(entry, "label_interpolation", "nearest") != "nearest",
            "default_pad_label": getattr(entry, "default_pad_label", 0) != 0,
            "include": entry.include is not None,
            "exclude": entry.exclude is not None,
            "keep": entry.keep is not None,
        }
        for key, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(
                    f"augment.{name}.{key}: is {getattr(entry, key)!r}; expected axes named by anatomy such as 'LR', "
                    "linear interpolation of images, nearest neighbour for labels padded with 0, and all images. "
                    "Correct the key or set augment.fused=false."
                )


def occupied_box(tensor: Tensor, background: Tensor) -> Box | None:
    """Smallest box that holds every voxel of [C, *shape] that is not background [C], or None."""
    mask = tensor[0] != background[0]
    for channel, fill in zip(tensor[1:], background[1:], strict=True):
        mask |= channel != fill
    occupied = mask.view(torch.uint8)  # the maximum of bytes is 20 times faster than `any` of booleans (torch 2.14)
    plane = occupied.amax(0)
    box = []
    for line in (occupied.flatten(1).amax(1), plane.amax(1), plane.amax(0)):
        inside = line.nonzero()
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)  # type: ignore[return-value]


def background_of(volume: Tensor, background: Background) -> Tensor:
    """Background [C] of a volume [C, *shape]."""
    if background == "minimum":
        return volume.amin((1, 2, 3))
    return volume.new_full((len(volume),), float(background))


def memory_order(data: Tensor) -> tuple[int, int, int]:
    """Spatial axes of [C, W, H, D] from the one with the largest stride to the one with the smallest."""
    return tuple(sorted(range(3), key=lambda axis: -data.stride(axis + 1)))  # type: ignore[return-value]


def stack_images(images: Sequence[tio.Image], order: Sequence[int]) -> Tensor:
    """All channels of one or more images, [C, *shape], with axes in memory order."""
    tensors = [image.data.permute(0, *(axis + 1 for axis in order)) for image in images]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def unstack_images(volume: Tensor, images: Sequence[tio.Image], order: Sequence[int]) -> None:
    """Write the channels of [C, *shape], with axes in memory order, back to the images."""
    volume = volume.permute(0, *(1 + order.index(axis) for axis in range(3)))
    for image, channels in zip(images, torch.split(volume, [len(image.data) for image in images]), strict=True):
        image.set_data(channels)


def change_scalars(
    images: Sequence[tio.Image], change: Callable[[Tensor, Sequence[int]], Tensor], subject: tio.Subject
) -> tio.Subject:
    """Change the channels of all images as one volume [C, *shape], given with its memory order; return the subject."""
    if images:
        order = memory_order(images[0].data)
        unstack_images(change(stack_images(images, order).float(), order), images, order)
    return subject
