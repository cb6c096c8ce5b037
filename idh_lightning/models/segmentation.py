"""Tumour segmentation: a 3D U-Net that finds a glioma and votes, voxel by voxel, on its IDH status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from idh_lightning.errors import ModelError
from idh_lightning.files import atomic_write
from idh_lightning.models.fast.convolutions import OneDNNConv3d

PRETRAINED = Path(__file__).parent / "pretrained" / "locator.safetensors"
"""Weights that were learnt from synthetic patients alone; the card beside them says how."""

WIDTHS = (16, 32, 64, 96)
"""Channels of the levels of the U-Net, from the finest to the coarsest."""

PATCH = 2
"""Edge, in voxels, of the cubes that the finest level works on: a step on all voxels takes four times as long."""

GRID = (49, 65, 49)
"""Voxels along D, H, W of the grid that the shipped network has learnt on."""

FINER = 1.2
"""How many times as many voxels along an edge as it has learnt on go in as they are."""

VOTE_GAIN = 256.0
"""How much faster scale and offset of the vote are learnt than they would be as stored: two numbers near one may take
steps of a hundredth, where deep layers that may be pretrained take steps of 3e-5."""

NEVER = -20.0
"""Logit of tumour outside the brain: a probability of 2e-9."""

LEAST_PIECE = 0.1
"""Share of the largest piece of a tumour below which another piece is a speck."""

NOT_TUMOUR, WILDTYPE_TUMOUR, MUTANT_TUMOUR = 0, 1, 2
"""Classes of a voxel."""


class TumourSegmenter(nn.Module):
    """Residual 3D U-Net from volumes to three logits per voxel: not tumour, wildtype tumour, mutant tumour.

    Its channels are the four sequences; a missing one is 0 throughout. It works on cubes of 2 x 2 x 2 voxels, taken as
    channels on the way in and given back on the way out, so that the output has the grid of the input. Of a finer grid
    than it has learnt on it sees means over as many voxels as make tumours as large as it knows them, and is
    interpolated, for a quarter of the work that all voxels of 97 x 129 x 97 would be. The grid goes with the weights;
    weights without one, of an earlier version, have learnt on whatever comes.

    Attributes:
        learnt_on: Voxels along D, H, W of that grid; empty if it is not known.
        mirrored: Whether logits are the mean over volumes and their left-right mirror images, in twice the time.

    Source: U-Net, Ronneberger et al. 2015, arXiv:1505.04597; residual units, He et al. 2016, arXiv:1603.05027; instance
    normalisation, Ulyanov et al. 2016, arXiv:1607.08022; sub-pixel output, Shi et al. 2016, arXiv:1609.05158.
    """

    def __init__(self, in_channels: int = 4, widths: Sequence[int] = WIDTHS, learnt_on: Sequence[int] = GRID) -> None:
        """Build it with so many channels at each level, to learn on such a grid."""
        super().__init__()
        self.widths, self.learnt_on, self.mirrored = tuple(widths), tuple(learnt_on), False
        self.enter = OneDNNConv3d(in_channels * PATCH**3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualUnit(width) for width in widths)
        self.shrink = nn.ModuleList(OneDNNConv3d(fine, coarse, 3, 2, padding=1) for fine, coarse in pairwise(widths))
        self.grow = nn.ModuleList(OneDNNConv3d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(ResidualUnit(width) for width in widths[:-1])
        self.leave = OneDNNConv3d(widths[0], 3 * PATCH**3, 1)
        nn.init.normal_(self.leave.weight, std=0.01)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]
        self.register_load_state_dict_pre_hook(_without_a_grid)  # type: ignore[no-untyped-call]

    def get_extra_state(self) -> Tensor:
        """Grid that it has learnt on, for its state: three numbers, or none."""
        return torch.tensor(self.learnt_on, dtype=torch.float32, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the grid of a state."""
        self.learnt_on = tuple(int(voxels) for voxels in state.tolist())

    def voxels_in_one(self, grid: Sequence[int]) -> float:
        """How many voxels of a grid, along an edge, are one of those that it sees.

        The voxels are cubes, and the edge with the least room for a brain decides how large they are.
        """
        finer = min((fine / coarse for fine, coarse in zip(grid, self.learnt_on, strict=False)), default=1.0)
        return finer if finer > FINER else 1.0

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits [B, 3, D, H, W] of volumes [B, C, D, H, W], z-scores within the brain and 0 outside it."""
        logits = self._logits(volumes)
        if self.mirrored:
            logits = (logits + self._logits(volumes.flip(4)).flip(4)) / 2
        # Where every sequence is 0 there is no brain, and so no tumour.
        nothing = logits.new_tensor([0.0, NEVER, NEVER])[:, None, None, None]
        return torch.where((volumes != 0).any(dim=1, keepdim=True), logits, nothing)

    def _logits(self, volumes: Tensor) -> Tensor:
        seen = _means(volumes, self.voxels_in_one(volumes.shape[2:]))
        size = seen.shape[2:]
        hidden = self.enter(_to_cubes(seen))
        kept = []
        for unit, shrink in zip(self.down, self.shrink, strict=False):
            kept.append(unit(hidden))
            hidden = shrink(kept[-1])
        hidden = self.down[-1](hidden)
        for grow, unit, skip in zip(reversed(self.grow), reversed(self.up), reversed(kept), strict=True):
            # Cell i of the coarse level lies at cell 2 i of the fine one, where the number of cells is odd.
            wide = functional.interpolate(grow(hidden), skip.shape[2:], mode="trilinear", align_corners=True)
            hidden = unit(skip + wide)
        logits = _from_cubes(self.leave(hidden), 3)[:, :, : size[0], : size[1], : size[2]]
        if size != volumes.shape[2:]:
            logits = functional.interpolate(logits, volumes.shape[2:], mode="trilinear")
        return logits


class ResidualUnit(nn.Module):
    """Two convolutions with instance normalisation whose result is added to what came in."""

    def __init__(self, width: int) -> None:
        """Build it for so many channels."""
        super().__init__()
        self.norms = nn.ModuleList(nn.InstanceNorm3d(width, affine=True) for _ in range(2))
        self.convolutions = nn.ModuleList(OneDNNConv3d(width, width, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F, d, h, w] of features of the same shape."""
        hidden = features
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(functional.silu(norm(hidden)))
        return features + hidden


class VoteHead(nn.Module):
    """A learnt scale and offset of the dense vote, which is taken as it is at first."""

    def __init__(self) -> None:
        """Begin with a scale of 1 and an offset of 0."""
        super().__init__()
        self.weigh = nn.Linear(1, 1)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, vote: Tensor) -> Tensor:
        """Logit of mutant minus that of wildtype, [B], of dense votes [B]."""
        learnt: Tensor = self.weigh(vote[:, None])[:, 0]
        return vote + VOTE_GAIN * learnt

    def silence(self) -> None:
        """Begin with a scale of 0, for a label that the voxels have not learnt to vote on."""
        nn.init.constant_(self.weigh.weight, -1 / VOTE_GAIN)

    @property
    def scale(self) -> Tensor:
        """By how much the dense vote is multiplied, a scalar."""
        return 1 + VOTE_GAIN * self.weigh.weight[0, 0]


def save_segmenter(segmenter: TumourSegmenter, file: Path, metadata: Mapping[str, str]) -> None:
    """Write weights in half precision, with `metadata` in the header of the file."""
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in segmenter.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, dict(metadata))


def load_segmenter(file: Path = PRETRAINED) -> TumourSegmenter:
    """Segmenter with the weights of a file of `save_segmenter`, in float32 and set to evaluate.

    Raises:
        ModelError: If the file is not there or holds something else.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        return segmenter_of(tensors)
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{file}: cannot be read as weights of the tumour segmenter ({error}); expected a .safetensors file as "
            "`python -m idh_lightning.train experiment=pretrain_locator` writes it. Name such a file, or "
            "model.locator=pretrained."
        ) from error


def segmenter_of(tensors: Mapping[str, Tensor]) -> TumourSegmenter:
    """Segmenter with given weights by name, which tell its widths; set to evaluate.

    Raises:
        KeyError: If the weights are those of something else.
        RuntimeError: If they do not go together.
    """
    norms = (f"down.{level}.norms.0.weight" for level in range(len(tensors)))
    widths = [len(tensors[name]) for name in norms if name in tensors]
    segmenter = TumourSegmenter(tensors["enter.weight"].shape[1] // PATCH**3, widths)
    segmenter.load_state_dict(tensors)
    return segmenter.eval()


def tumour_logit(logits: Tensor) -> Tensor:
    """Logit [B, D, H, W] of either kind of tumour, of logits [B, 3, D, H, W]."""
    return torch.logsumexp(logits[:, 1:].float(), dim=1) - logits[:, NOT_TUMOUR].float()


def without_specks(probability: Tensor) -> Tensor:
    """Probability of tumour [B, D, H, W], 0 in each connected piece of less than `LEAST_PIECE` of the largest one.

    A piece is where the probability is above a half, voxel by voxel across faces; its size is the sum over it.
    """
    kept = probability.clone()
    for one, volume in enumerate(probability.float().cpu().numpy()):
        pieces, _ = ndimage.label(volume > 0.5)
        sizes = np.bincount(pieces.ravel(), volume.ravel())
        specks = np.flatnonzero(sizes[1:] < LEAST_PIECE * sizes[1:].max(initial=0.0)) + 1
        kept[one][torch.from_numpy(np.isin(pieces, specks)).to(kept.device)] = 0
    return kept


def found_tumour(logits: Tensor) -> Tensor:
    """Probability of tumour [B, D, H, W], without specks, of logits [B, 3, D, H, W]."""
    return without_specks(torch.sigmoid(tumour_logit(logits)))


def vote_contributions(logits: Tensor) -> Tensor:
    """Contribution of each voxel to the dense vote, [B, D, H, W], of logits [B, 3, D, H, W].

    Each voxel votes by how much more it looks like mutant than like wildtype tumour, with a weight that is its
    probability of tumour as a share of the whole. Where hardly anything is tumour, the weights fade.
    """
    weight = torch.sigmoid(tumour_logit(logits))
    total = weight.sum((1, 2, 3), keepdim=True)
    difference = logits[:, MUTANT_TUMOUR].float() - logits[:, WILDTYPE_TUMOUR].float()
    return weight * difference / (total + 1.0)


def dense_vote(logits: Tensor) -> Tensor:
    """Logit of mutant minus that of wildtype, [B]: the sum of `vote_contributions` over the voxels."""
    return vote_contributions(logits).sum((1, 2, 3))


def _without_a_grid(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Add the grid that a state of an earlier version lacks: none is known."""
    state.setdefault(f"{prefix}_extra_state", torch.zeros(0, device="cpu"))


def _means(volumes: Tensor, voxels: float) -> Tensor:
    """Means over so many voxels along each edge, [B, C, d, h, w]; of one voxel the volumes themselves."""
    for axis, length in enumerate(volumes.shape[2:] if voxels > 1 else (), start=2):
        weights = _overlaps(length, round(length / voxels)).to(volumes)
        volumes = torch.movedim(functional.linear(torch.movedim(volumes, axis, -1), weights), -1, axis)
    return volumes


def _overlaps(fine: int, coarse: int) -> Tensor:
    """Weights [coarse, fine] of the mean over each of `coarse` equal parts of an edge of `fine` voxels."""
    ends = torch.arange(coarse + 1, dtype=torch.float64) * fine / coarse
    firsts = torch.arange(fine, dtype=torch.float64)
    within = torch.minimum(ends[1:, None], firsts + 1) - torch.maximum(ends[:-1, None], firsts)
    return within.clamp_min(0) * coarse / fine


def _to_cubes(volumes: Tensor) -> Tensor:
    """Voxels [B, C, D, H, W], with zeros beyond an odd end, as [B, 8 C, D / 2, H / 2, W / 2]."""
    room = [length % PATCH for length in volumes.shape[2:]]
    padded = functional.pad(volumes, [0, room[2], 0, room[1], 0, room[0]])
    depth, height, width = (length // PATCH for length in padded.shape[2:])
    split = padded.reshape(volumes.shape[0], volumes.shape[1], depth, PATCH, height, PATCH, width, PATCH)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(volumes.shape[0], -1, depth, height, width)


def _from_cubes(features: Tensor, channels: int) -> Tensor:
    """Inverse of `_to_cubes`, with what lies beyond an odd end."""
    depth, height, width = features.shape[2:]
    split = features.reshape(features.shape[0], channels, PATCH, PATCH, PATCH, depth, height, width)
    joined = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return joined.reshape(features.shape[0], channels, depth * PATCH, height * PATCH, width * PATCH)
