"""A locator that needs no training: what is bright in FLAIR is tumour, and T1c says of which kind."""

import torch

from idh_lightning.models.segmentation import TumourSegmenter


def threshold_locator(level: float = 1.5, *, sharpness: float = 8.0) -> TumourSegmenter:
    """Return a segmenter whose logit of tumour rises with FLAIR above a level; the votes of a voxel are its T1c."""
    made = TumourSegmenter(widths=[16, 16]).requires_grad_(False)
    for parameter in made.parameters():
        parameter.zero_()
    for part in range(8):  # of a cube of 2 x 2 x 2 voxels
        flair, t1c = part, 8 + part
        made.enter.weight[flair, part, 1, 1, 1] = made.enter.weight[t1c, 2 * 8 + part, 1, 1, 1] = 1
        for kind, sign in ((8 + part, -0.5), (16 + part, 0.5)):
            made.leave.weight[kind, flair], made.leave.weight[kind, t1c] = sharpness, sign
            made.leave.bias[kind] = -sharpness * level
    return made.eval()


def open_locator(logit: float = 2.0) -> TumourSegmenter:
    """Return a segmenter that takes every voxel for tumour, equally, and casts no vote."""
    made = threshold_locator()
    made.leave.weight.zero_()
    made.leave.bias[8:] = logit - torch.log(torch.tensor(2.0))
    return made
