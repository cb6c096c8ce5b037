"""Whether maps change when they should, and stay when they should."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from idh_lightning.attribution.faithfulness import brain
from idh_lightning.attribution.maps import Method
from idh_lightning.attribution.scores import mean_with_interval
from idh_lightning.errors import ExplanationError
from idh_lightning.models import StemTailNetwork, VotingNetwork, calibrate_batch_norm

_Map = NDArray[np.floating]

BOUNDS: Mapping[str, tuple[Literal["<", ">"], float]] = {
    "randomised": ("<", 0.3),
    "randomised tail": ("<", 0.9),
    "shifted": (">", 0.7),
    "permuted labels": ("<", 0.5),
    "other seed": (">", 0.3),
}
"""What the mean rank correlation of two maps of a study must be in each check.

A random tail leaves the locator as it was, and so may leave much of a map; but a map that stays throughout tells where
the tumour is, not what the classifier made of it.
"""


def cascade(methods: Sequence[Method], network: StemTailNetwork, volumes: Tensor, *, seed: int = 0) -> pd.DataFrame:
    """Likeness of the maps of a network and of the same with more and more random weights, on two volumes or more.

    From the radiomics head and the classifier down through the tail, then the locator, then the stem, the weights of a
    copy are randomised module by module, each on top of those before. The entries of each tensor are permuted: unlike
    a fresh draw that keeps their distribution as learnt, is the same for every kind of module, and leaves nothing of
    the smooth kernels that an untrained stem begins with. The BatchNorm layers of what was randomised are then
    calibrated on the volumes, as those of an untrained network are; otherwise signals would fade, and a map would
    change for want of any signal. All methods explain the same random networks.

    Returns:
        One row per method, module and study, the modules in the order of the cascade: `method`, `part` ("tail",
        "locator" or "stem"), `module`, `study` (index in the batch), `spearman` and `ssim` (both within the brain).

    Raises:
        ModelError: If there is one volume only.

    Source: Adebayo et al. 2018, arXiv:1810.03292, section 3.
    """
    inside = brain(volumes)
    maps = {method.name: method(network, volumes) for method in methods}
    randomised = copy.deepcopy(network)
    chance = torch.Generator().manual_seed(seed)
    done: list[nn.Module] = []
    frames = []
    for name, part in track(modules_downwards(network).items(), "Randomising"):
        module = _find(randomised, name)
        _permute(module, chance)
        done.append(module)
        _calibrate(randomised, done, volumes)
        frames += [
            _agreement(maps[method.name], method(randomised, volumes), inside).assign(
                method=method.name, part=part, module=name
            )
            for method in methods
        ]
    return pd.concat(frames, ignore_index=True)[["method", "part", "module", "study", "spearman", "ssim"]]


def shifts(
    method: Method, network: StemTailNetwork, volumes: Tensor, *, voxels: Sequence[int] = (1, 2)
) -> pd.DataFrame:
    """Likeness of the map of a study and that of the study moved by some voxels along each direction, moved back.

    Returns:
        One row per shift and study: `shift` (for example "H-2"), `study`, `spearman`, `ssim` (within the part of the
        brain that stays in view).
    """
    inside = brain(volumes)
    maps = method(network, volumes)
    frames = []
    for axis, distance, sign in itertools.product(range(3), voxels, (1, -1)):
        there = [0, 0, 0]
        there[axis] = sign * distance
        back = [-step for step in there]
        again = _moved(method(network, _moved(volumes, there)), back)
        in_view = _moved(_moved(inside.float(), there), back) > 0
        frames.append(_agreement(maps, again, in_view).assign(shift=f"{'DHW'[axis]}{sign * distance:+d}"))
    return pd.concat(frames, ignore_index=True)[["shift", "study", "spearman", "ssim"]]


def between(method: Method, networks: Mapping[str, StemTailNetwork], volumes: Tensor) -> pd.DataFrame:
    """Likeness of the maps of every two networks.

    Of networks that differ in their seed they should be alike; of one network and another that learnt from permuted
    labels they should not.

    Returns:
        One row per pair and study: `pair` ("first, second"), `study`, `spearman`, `ssim` (within the brain).

    Raises:
        ExplanationError: If there is one network only.
    """
    if len(networks) < 2:
        raise ExplanationError(
            f"networks: found {len(networks)}; expected at least two to compare. Add a run with another seed."
        )
    inside = brain(volumes)
    maps = {name: method(network, volumes) for name, network in networks.items()}
    frames = [
        _agreement(maps[first], maps[second], inside).assign(pair=f"{first}, {second}")
        for first, second in itertools.combinations(networks, 2)
    ]
    return pd.concat(frames, ignore_index=True)[["pair", "study", "spearman", "ssim"]]


def sanity_table(results: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Methods, and the checks that they pass.

    Args:
        results: Method -> check (a key of `BOUNDS`) -> what `cascade` ("randomised", "randomised tail"), `shifts`
            ("shifted") or `between` ("permuted labels", "other seed") returned. Batches of studies that were checked
            one after the other are concatenated with `study` made unique; cascades of the same studies with several
            seeds as they are, which steadies what a single draw of random weights gives by chance.

    Returns:
        One row per method and check: `method`, `check`, `value` (mean Spearman correlation over studies, each study
        with the mean of its shifts, pairs or seeds; of a cascade, with all modules random, or all of the tail), `low`
        and `high` (95%, BCa bootstrap over studies; NaN with fewer than 3 studies or one value), `n` studies, `bound`
        (for example "< 0.3"), `passed` (whether `value` keeps to it).

    Raises:
        ExplanationError: If a check is unknown.
    """
    rows = []
    for (method, checks), check in ((pair, check) for pair in results.items() for check in pair[1]):
        if check not in BOUNDS:
            raise ExplanationError(f"check: found '{check}'; expected one of {', '.join(BOUNDS)}. Correct the name.")
        frame = checks[check]
        if check == "randomised tail":
            frame = frame[frame["part"] == "tail"]
        if "module" in frame:
            frame = frame[frame["module"] == frame["module"].iloc[-1]]
        studies = frame.groupby("study")["spearman"].mean().to_numpy()
        value, low, high = mean_with_interval(studies)
        relation, bound = BOUNDS[check]
        rows.append(
            {
                "method": method,
                "check": check,
                "value": value,
                "low": low,
                "high": high,
                "n": len(studies),
                "bound": f"{relation} {bound}",
                "passed": value < bound if relation == "<" else value > bound,
            }
        )
    return pd.DataFrame(rows)


def modules_downwards(network: StemTailNetwork | VotingNetwork) -> dict[str, str]:
    """Modules that `cascade` randomises, from the classifier to the input, and the part each belongs to."""
    if isinstance(network, VotingNetwork):  # all of it votes; its last layer is what a tail is elsewhere
        below = ("up", "grow", "down", "shrink", "enter")
        return {"locator.leave": "tail"} | {f"locator.{name}": "stem" for name in below}
    layers = []
    for name, child in network.network.named_children():
        stages = [f"blocks.{index}" for index, _ in enumerate(child.children())] if name == "blocks" else [name]
        layers += [stage for stage in stages if any(True for _ in network.network.get_submodule(stage).parameters())]
    layers.reverse()
    cut = next(index for index, name in enumerate(layers) if f"{network.trainable_from}.".startswith(f"{name}."))
    gates = [name for name in ("locator", "missing_sequence_embedding") if getattr(network, name) is not None]
    reader = [] if network.radiomics is None else ["radiomics"]
    parts = {"tail": [*reader, *layers[: cut + 1]], "locator": gates, "stem": layers[cut + 1 :]}
    return {name: part for part, names in parts.items() for name in names}


def _find(network: StemTailNetwork, name: str) -> nn.Module:
    holder = network if name in dict(network.named_modules()) else network.network
    return holder.get_submodule(name)


@torch.no_grad()
def _permute(module: nn.Module, chance: torch.Generator) -> None:
    for weight in module.parameters():
        order = torch.randperm(weight.numel(), generator=chance).to(weight.device)
        weight.copy_(weight.flatten()[order].view_as(weight))


def _calibrate(network: StemTailNetwork, randomised: Sequence[nn.Module], volumes: Tensor) -> None:
    """Calibrate the BatchNorm layers in randomised modules; the others have nothing random before them."""
    norms = {inner for module in randomised for inner in module.modules() if isinstance(inner, _BatchNorm)}
    others = [module for module in network.modules() if isinstance(module, _BatchNorm) and module not in norms]
    before = [copy.deepcopy(norm.state_dict()) for norm in others]
    calibrate_batch_norm(network, [volumes])
    for norm, state in zip(others, before, strict=True):
        norm.load_state_dict(state)


def _moved(grids: Tensor, steps: Sequence[int]) -> Tensor:
    """Grids [..., D, H, W] moved by whole voxels along D, H and W, with zeros coming in."""
    return functional.pad(grids, [change for step in reversed(steps) for change in (step, -step)])


def _agreement(maps: Tensor, others: Tensor, inside: Tensor) -> pd.DataFrame:
    """`study`, `spearman` and `ssim` of two batches of maps [B, D, H, W] within the brain [B, D, H, W]."""
    rows = []
    for study, (first, second, head) in enumerate(zip(maps, others, inside, strict=True)):
        one, two, where = (tensor.cpu().numpy() for tensor in (first, second, head))
        rows.append(
            {
                "study": study,
                "spearman": _rank_correlation(one[where], two[where]),
                "ssim": _similarity(_scaled(one, where), _scaled(two, where), where),
            }
        )
    return pd.DataFrame(rows)


def _scaled(cam: _Map, head: NDArray[np.bool_]) -> _Map:
    """Map with 0 outside the brain and 1 at its largest value."""
    within: _Map = np.where(head, cam, 0).astype(np.float64)
    scaled: _Map = within / max(within.max(), np.finfo(np.float64).tiny)
    return scaled


def _similarity(first: _Map, second: _Map, head: NDArray[np.bool_]) -> float:
    """Mean within the brain of the structural similarity, with the constants of its source.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, section III.
    """
    _, everywhere = structural_similarity(  # type: ignore[no-untyped-call]
        first, second, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return float(everywhere[head].mean())


def _rank_correlation(first: _Map, second: _Map) -> float:
    """Spearman's correlation; with a map of one value, which has no ranks, 1 if both are such, else 0."""
    flat = [np.ptp(values) == 0 for values in (first, second)]
    if any(flat):
        return float(all(flat))
    return float(spearmanr(first, second).statistic)
