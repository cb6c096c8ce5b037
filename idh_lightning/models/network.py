"""A 3D EfficientNet whose first part, the stem, is frozen and whose last part, the tail, learns."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from idh_lightning.errors import ModelError
from idh_lightning.models.fast.convolutions import correct_padding, layout, swap_convolutions
from idh_lightning.models.fast.fused import FoldedStem, can_fold, is_switched_off
from idh_lightning.models.locator import (
    GridPosition,
    TumourLocator,
    cell_means,
    coarsen,
    depth_to_space,
    space_to_depth,
)
from idh_lightning.models.radiomics import KINDS, RadiomicsHead, intensities
from idh_lightning.models.weights import LATER, WeightsOrigin, load_weights

with warnings.catch_warnings():
    # timm_3d 1.0.1 scripts activations on import, which torch >= 2.11 calls deprecated.
    warnings.simplefilter("ignore")
    import timm_3d
    from timm_3d.models._efficientnet_blocks import InvertedResidual, SqueezeExcite

Precision = Literal["auto", "bfloat16", "float32"]


STEM_CHUNK = 4
"""Studies that a CPU takes through the stem at once: at 64^3, 0.07 s a study in fours and 0.11 s in sixteens."""

STEM_VOXELS = 2 * 128**3
"""Voxels that any device takes through the stem at once, if it is more than one study.

On an H200 in float16, two studies at 128^3 took 16 ms together and 26 ms one after the other.
"""


ENTRY = "entry"
"""Layer that only passes on what enters the tail: the stem's features, gated where there is a locator."""


class NetworkOutput(NamedTuple):
    """What the tail makes of features.

    Attributes:
        logits: [B, 2], float32: wildtype, mutant.
        tumour: [B, d, h, w], float32: logit of tumour in each cell of the locator's grid; None without a locator.
        opinions: What `logits` is the mean of, each [B, 2] and to be taught on its own: the deep layers' logits, and
            with a locator those of the tumour reader.
    """

    logits: Tensor
    tumour: Tensor | None
    opinions: tuple[Tensor, ...]


class TailInput(NamedTuple):
    """What the trainable part is given of a batch.

    Attributes:
        deep: [B, F, d, h, w], the stem's features, gated where there is a locator: what the deep layers see.
        tissue: [B, G, e, f, g], float32, intensities of the volumes in the locator's cells: what the reader sees.
        tumour: [B, e, f, g], float32, logit of tumour in each cell. Both are None without a locator.
    """

    deep: Tensor
    tissue: Tensor | None
    tumour: Tensor | None


class StemTailNetwork(nn.Module):
    """A timm_3d EfficientNet cut at one module: everything before it is frozen, it and everything after learns.

    The stem runs without a graph, in eval mode (its BatchNorm statistics never move) and in the precision and memory
    layout that are fastest for it; the tail is an ordinary network. What this saves is the memory of the stem's
    activations: in B7 the tail from `blocks.5` still holds 79 % of the parameters.

    With `focus`, a locator tells from the features of an early stage where the tumour is, and what enters the tail is
    multiplied by that: the classifier sees the tumour and its surroundings, and how sure the locator is of each place
    is half of the explanation (see `attribution.Evidence`). A linear reader beside the tail judges what the
    tumour is like there, where it lies and how large it is (see `RadiomicsHead`); the logits are the mean of both
    opinions. Prediction needs no mask.
    """

    def __init__(
        self,
        *,
        backbone: str = "tf_efficientnet_b7",
        in_channels: int = 4,
        trainable_from: str = "blocks.5",
        weights: str = "auto",
        weights_tag: str = "ns_jft_in1k",
        drop_rate: float = 0.3,
        drop_path_rate: float = 0.2,
        stem_precision: Precision = "auto",
        tail_precision: Precision = "auto",
        checkpoint_tail: bool = False,
        missing: Literal["error", "zero"] = "error",
        focus: str | None = None,
    ) -> None:
        """Build the network and load its weights.

        Args:
            backbone: An EfficientNet of timm_3d, without a tag.
            in_channels: Number of MRI sequences.
            trainable_from: Name of the first trainable module, for example "blocks.5" (two last stages and head),
                "blocks.6.2" (two last MBConv blocks and head), or "conv_stem" to train everything.
            weights: "auto" (pretrained if they can be had, else none), "none", a timm tag such as
                "tf_efficientnet_b7.ns_jft_in1k", or a local file of 2D or 3D weights. "later": the caller fills them
                in, so that the 5 s that a good beginning of B7 takes are saved.
            weights_tag: The tag that "auto" asks for.
            drop_rate: Dropout before the classifier, in [0, 1).
            drop_path_rate: Largest stochastic depth rate of the residual blocks, in [0, 1).
            stem_precision: Arithmetic of the stem. "auto" is the trainer's precision on a GPU; on a CPU bfloat16 where
                the CPU has instructions for it, else float32.
            tail_precision: Arithmetic of the tail. "auto" is the trainer's precision on a GPU; on a CPU float32, or
                bfloat16 while training where the CPU has instructions for it.
            checkpoint_tail: Keep only what enters each block of the tail for the backward pass, and compute the rest
                again when it is needed: less memory for more time, the same gradients.
            missing: "zero" if a study may lack a sequence: the stem then tells the tail which channels are all zero.
            focus: Stage of the stem, for example "blocks.1", from whose features a locator finds the tumour; its grid
                is that of the tumour map. None for no locator.

        Raises:
            ModelError: If the backbone or the module is unknown, or the weights do not fit.
        """
        super().__init__()
        if "efficientnet" not in backbone or not timm_3d.is_model(backbone):
            raise ModelError(
                f"model.backbone: found '{backbone}'; expected an EfficientNet of timm_3d. "
                f"Choose one of: {', '.join(timm_3d.list_models('*efficientnet_b*'))}."
            )
        self.network = timm_3d.create_model(
            backbone, in_chans=in_channels, num_classes=2, drop_rate=drop_rate, drop_path_rate=drop_path_rate
        )
        correct_padding(self.network)
        if weights != LATER:
            steady_initialisation(self.network)
        # timm draws a classifier of two outputs from +-0.7, which over 2560 features makes logits of tens at the start.
        nn.init.normal_(self.network.classifier.weight, std=0.01)
        nn.init.zeros_(self.network.classifier.bias)
        self.trainable_from = trainable_from
        self.stem_precision: Precision = stem_precision
        self.tail_precision: Precision = tail_precision
        self.checkpoint_tail = checkpoint_tail
        self.fold_stem = True
        self._folding: tuple[object, FoldedStem] | None = None
        self.weights_origin: WeightsOrigin = load_weights(self.network, backbone, weights, tag=weights_tag)
        self._stem_names, self._tail_names = _cut(self.network, trainable_from)
        # What each missing sequence adds to the features; it begins with nothing.
        self.absence: nn.Linear | None = None
        if missing == "zero":
            first = self._module(self._tail_names[0] if self._tail_names else "bn2")
            self.absence = nn.Linear(in_channels, _width(first), bias=False)
            nn.init.zeros_(self.absence.weight)
        self.focus = focus
        self.locator: TumourLocator | None = None
        self.reader: RadiomicsHead | None = None
        self._ratio = 1
        self._tissue = KINDS * in_channels
        self._traced: dict[tuple[str, int], tuple[float, float, int]] = {}
        self._kept: tuple[Tensor, Tensor] | None = None
        self._keeps = False
        if focus is not None:
            if focus not in self._stem_names:
                raise ModelError(
                    f"model.focus: found '{focus}'; expected a whole stage before '{trainable_from}', one of "
                    f"{', '.join(self._stem_names) or 'none'}. Correct it, or set model.focus=null."
                )
            self.locator = TumourLocator(_out(self._module(focus)))
            self.reader = RadiomicsHead(in_channels)
            self._ratio = round(self._trace(self.entry_layer, 65)[1] / self._trace(focus, 65)[1])
        # A name for what enters the tail, so that it can be explained like the output of any layer.
        self.network.add_module(ENTRY, nn.Identity())
        for parameter in self.stem_parameters():
            parameter.requires_grad_(False)
        self._lay_out_stem()
        self._speed_up_the_tail()
        self.train()

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            volumes: [B, C, D, H, W], z-normalised within the brain.

        Returns:
            [B, 2], float32: wildtype, mutant.
        """
        return self.tail(self.stem(volumes))

    def stem(self, volumes: Tensor) -> Tensor:
        """Return the frozen features of a batch, without a graph.

        Args:
            volumes: [B, C, D, H, W].

        Returns:
            [B, F, d, h, w]; for B7 cut at `blocks.5`, F = 224 and d = D / 16. Where a sequence may be missing there
            are C more channels, constant in space: 1 for a missing sequence. With a locator, the features that it
            looks at and the intensities that the reader reads are among the channels (see `space_to_depth`).
        """
        if not self._stem_names:
            return self._run_stem(volumes)
        if self._kept is not None and self._kept[0] is volumes:
            return self._kept[1]
        # A fake tensor has a shape and no values, so that there is nothing to fold.
        folds = self._folds(volumes.device.type) and not isinstance(volumes, FakeTensor)
        folded = self._folded(volumes.device.type) if folds else None
        with torch.no_grad():
            chunks = torch.split(volumes, self.studies_at_once(volumes))
            features = torch.cat([self._run_stem(chunk, folded) for chunk in chunks])
        if self._keeps:
            self._kept = (volumes, features)
        return features

    @contextmanager
    def stem_once(self) -> Iterator[None]:
        """Inside, what several calls ask of one tensor of volumes goes through the stem once."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    @contextmanager
    def stem_known(self, volumes: Tensor, features: Tensor) -> Iterator[None]:
        """Inside, `features` are what the stem makes of `volumes`, and it is not run for them."""
        before, self._kept = self._kept, (volumes, features)
        try:
            yield
        finally:
            self._kept = before

    def studies_at_once(self, volumes: Tensor) -> int:
        """Return how many of [B, C, D, H, W] go through the stem together."""
        size = max(STEM_VOXELS // volumes[0, 0].numel(), 1)
        if volumes.device.type == "cpu":
            size = 1 if self._folds("cpu") else min(size, STEM_CHUNK)
        return min(size, len(volumes))

    def tail(self, features: Tensor) -> Tensor:
        """Return the logits [B, 2] of the stem's features [B, F, d, h, w]; this part has a graph."""
        return self.answer(features).logits

    def answer(self, features: Tensor) -> NetworkOutput:
        """Return the logits and the tumour map of the stem's features [B, F, d, h, w]; this part has a graph."""
        return self.classify(self.entry(features))

    def entry(self, features: Tensor) -> TailInput:
        """Return what the trainable part is given of the stem's features [B, F, d, h, w]."""
        with self._tail_arithmetic(features):
            if self.locator is None:
                return TailInput(self._module(ENTRY)(self._without_absence(features)), None, None)
            own, tapped, absent = self._parts(features)
            fine = depth_to_space(tapped, self._ratio)
            found, tissue = torch.split(fine, [self.locator.norm.num_features, self._tissue], dim=1)
            tumour = self.locator(found).float()
            plain = self._without_absence(torch.cat([own, absent], 1))
            gate = coarsen(torch.sigmoid(tumour), self._ratio)
        return TailInput(self._module(ENTRY)(plain * gate[:, None].to(plain.dtype)), tissue.float(), tumour)

    def classify(self, entry: TailInput) -> NetworkOutput:
        """Return what deep layers and tumour reader make of what they are given."""
        with self._tail_arithmetic(entry.deep):
            hidden = entry.deep
            for name in self._tail_names:
                hidden = self._through(self._module(name), hidden)
            hidden = self.network.global_pool(hidden)
            hidden = nn.functional.dropout(hidden, self.network.drop_rate, self.training)
            deep: Tensor = self.network.classifier(hidden).float()
        if self.reader is None or entry.tissue is None or entry.tumour is None:
            return NetworkOutput(deep, entry.tumour, (deep,))
        # The reader does not move the gate: the locator learns where the tumour is from masks and the deep layers.
        device = entry.tissue.device.type
        with torch.autocast(device, enabled=False):  # with its gain, gradients of the reader leave the range of float16
            difference = self.reader(entry.tissue, torch.sigmoid(entry.tumour).detach())
        read = torch.stack([-difference, difference], 1) / 2
        return NetworkOutput((deep + read) / 2, entry.tumour, (deep, read))

    def parts(self) -> list[nn.Module]:
        """Return the parts whose weights are of different scales: deep layers, locator and reader, where they are."""
        return [part for part in (self.network, self.absence, self.locator, self.reader) if part is not None]

    def _through(self, module: nn.Module, hidden: Tensor) -> Tensor:
        if self.checkpoint_tail and self.training and torch.is_grad_enabled():
            for block in module if isinstance(module, nn.Sequential) else [module]:
                hidden = _checkpointed(block, hidden)
            return hidden
        result: Tensor = module(hidden)
        return result

    def _tail_arithmetic(self, features: Tensor) -> AbstractContextManager[object]:
        on_cpu: Precision = _precision_on_cpu() if self.training else "float32"
        return _arithmetic(self.tail_precision, features.device.type, on_cpu=on_cpu)

    def shares(self, masks: Tensor, layer: str | None = None) -> Tensor:
        """Return the share of tumour in each cell of a grid.

        Args:
            masks: [B, D, H, W], of the volumes' grid.
            layer: Whose output has that grid; None for the grid of the locator.

        Returns:
            [B, d, h, w], as the output of the layer, or as the tumour map of `answer`.
        """
        places, cells = [], []
        for size in masks.shape[1:]:
            if layer is not None:
                cells.append(self._trace(layer, size)[2])
            else:
                assert self.focus is not None
                cells.append(self._ratio * self._trace(self.entry_layer, size)[2])
            places.append(self.sampling(layer or self.focus or ENTRY, size))
        return cell_means(masks, places, cells)

    @contextmanager
    def watch(self, *layers: str) -> Iterator[None]:
        """Make gradients reach layers while explaining, be they frozen or not.

        The graph begins at the output of the first of them, so that no memory is spent on what lies before it. Inside
        the context call `explainable_forward` where one of them is in the stem.

        Raises:
            ModelError: If there is no such layer.
        """

        def begin(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            followed = len(layers) > 1 and output.requires_grad
            return output if followed else output.detach().requires_grad_(True)

        try:
            modules = [self.network.get_submodule(layer) for layer in layers]
        except AttributeError as error:
            raise ModelError(
                f"explain.layer: found '{', '.join(layers)}'; expected modules of the network, for example 'blocks.4'. "
                "Correct the name."
            ) from error
        handles = [module.register_forward_hook(begin) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def in_stem(self, layer: str) -> bool:
        """Return whether a layer is, or holds, a part of the frozen stem."""
        pairs = ((f"{layer}.", f"{name}.") for name in self._stem_names)
        return any(one.startswith(other) or other.startswith(one) for one, other in pairs)

    def explainable_forward(self, volumes: Tensor) -> Tensor:
        """Return the logits as `forward` does, with a graph through whatever part of the network asks for one."""
        with self._without_idle_blocks():
            features = self._run_stem(volumes)
        return self.tail(features)

    @contextmanager
    def _without_idle_blocks(self) -> Iterator[None]:
        """Inside, blocks of the stem that only pass their input on, and that nobody watches, are not computed."""
        # An export has to hold for any weights, so it cannot ask whether these are zero.
        stages = () if torch.compiler.is_exporting() else self._stem_modules().values()
        left_out = [
            (stage, name, block)
            for stage in stages
            for name, block in stage.named_children()
            if is_switched_off(block) and not any(inner._forward_hooks for inner in block.modules())
        ]
        try:
            for stage, name, _ in left_out:
                setattr(stage, name, nn.Identity())
            yield
        finally:
            for stage, name, block in left_out:
                setattr(stage, name, block)

    def sampling(self, layer: str, size: int) -> GridPosition:
        """Return where the cells of a layer's output lie: cell i at voxel offset + i * step of the input.

        A convolution of stride 2 sees an even number of voxels half a voxel off centre, and over five such layers that
        adds up to a quarter of the head. An odd number such as 65 or 129 keeps the centre at every layer.

        Args:
            layer: Name of a module of the network.
            size: Voxels of the input along the axis in question.

        Returns:
            Offset and step, in voxels.
        """
        return self._trace(layer, size)[:2]

    def _trace(self, layer: str, size: int) -> tuple[float, float, int]:
        """Return offset and step of a layer's cells, and their number; they never change, so they are kept."""
        if (layer, size) not in self._traced:
            self._traced[layer, size] = self._traced_anew(layer, size)
        return self._traced[layer, size]

    def _traced_anew(self, layer: str, size: int) -> tuple[float, float, int]:
        offset, step, reached = 0.0, 1, False
        layer = self.entry_layer if layer == ENTRY else layer
        for name, module in self.network.named_modules():
            inside = name == layer or name.startswith(f"{layer}.")
            if reached and not inside:
                break
            reached = reached or inside
            if isinstance(module, nn.Conv3d):
                reach, stride = module.dilation[0] * (module.kernel_size[0] - 1), module.stride[0]
                same = getattr(module, "same", False)
                after = -(-size // stride) if same else (size + 2 * int(module.padding[0]) - reach - 1) // stride + 1
                before = max((after - 1) * stride + reach + 1 - size, 0) // 2 if same else int(module.padding[0])
                offset += step * (reach / 2 - before)
                step, size = step * stride, after
        return offset, float(step), size

    def train(self, mode: bool = True) -> StemTailNetwork:
        """Set the tail to training mode; the stem stays in eval mode."""
        # Not all and then the stem back: another thread may be filling a feature bank with it.
        frozen = {module for stem in self._stem_modules().values() for module in stem.modules()}
        for module in self.modules():
            module.training = mode and module not in frozen
        return self

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the frozen parameters."""
        for name in self._stem_names:
            yield from self._module(name).parameters()

    def stem_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the stem by name."""
        return {
            f"{name}.{inner}": tensor
            for name, module in self._stem_modules().items()
            for inner, tensor in module.state_dict().items()
        }

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = self.network.get_submodule(name)
        return module

    def _run_stem(self, volumes: Tensor, folded: FoldedStem | None = None) -> Tensor:
        if not self._stem_names:
            return self._with_absence(volumes, volumes)
        with _arithmetic(self.stem_precision, volumes.device.type, on_cpu=_precision_on_cpu()):
            device, tapped = volumes.device.type, None
            dtype = volumes.dtype if folded is None else self.stem_dtype(device)
            hidden = volumes.to(dtype, memory_format=layout(device))
            for name, part in (self._stem_modules() if folded is None else folded.parts).items():
                hidden = part(hidden)
                tapped = hidden if name == self.focus else tapped
        features = hidden.float().contiguous()
        if tapped is not None:
            assert self.focus is not None
            places = [self.sampling(self.focus, size) for size in volumes.shape[2:]]
            fine = torch.cat([tapped.float(), intensities(volumes, places, tapped.shape[2:])], dim=1)
            finer = space_to_depth(fine, features.shape[2:], self._ratio)
            features = torch.cat([features, finer], dim=1)
        return self._with_absence(features, volumes)

    def _folds(self, device: str) -> bool:
        """Return whether the stem runs with its BatchNorm folded into its convolutions."""
        if self.focus is not None and isinstance(self._module(self.focus), nn.Conv3d):
            return False  # its output is wanted as it is before the BatchNorm
        dtype, onednn = self.stem_dtype(device), device == "cpu"
        return device in ("cpu", "cuda") and self.fold_stem and can_fold(self._stem_modules(), dtype, onednn=onednn)

    def _folded(self, device: str) -> FoldedStem:
        """Return the folded stem, made anew where the weights have changed, except through a tensor's `.data`."""
        modules, dtype = self._stem_modules(), self.stem_dtype(device)
        tensors = [t for module in modules.values() for t in (*module.parameters(), *module.buffers())]
        key = (dtype, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if self._folding is None or self._folding[0] != key:
            self._folding = key, FoldedStem(modules, dtype, onednn=device == "cpu")
        return self._folding[1]

    def _stem_modules(self) -> dict[str, nn.Module]:
        return {name: self._module(name) for name in self._stem_names}

    def stem_dtype(self, device: str) -> torch.dtype:
        """Return the arithmetic that `stem_precision` means on a type of device."""
        precision = self.stem_precision
        if precision == "auto" and device == "cpu":
            precision = _precision_on_cpu()
        if precision != "auto":
            return torch.float32 if precision == "float32" else torch.bfloat16
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32

    def _with_absence(self, features: Tensor, volumes: Tensor) -> Tensor:
        if self.absence is None:
            return features
        absent = (volumes == 0).flatten(2).all(dim=2).to(features.dtype)
        return torch.cat([features, absent[..., None, None, None].expand(-1, -1, *features.shape[2:])], dim=1)

    def _without_absence(self, features: Tensor) -> Tensor:
        if self.absence is None:
            return features
        own = features.shape[1] - self.absence.in_features
        shift: Tensor = self.absence(features[:, own:, 0, 0, 0])
        return features[:, :own] + shift[..., None, None, None]

    def own(self, features: Tensor) -> Tensor:
        """Return what the last module of the stem put out, of all that the stem gives: [B, F, d, h, w]."""
        return self._parts(features)[0]

    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of the last module, folded ones for locator and reader, and which sequences are missing."""
        absent = 0 if self.absence is None else self.absence.in_features
        tapped = 0 if self.locator is None else (self.locator.norm.num_features + self._tissue) * self._ratio**3
        sizes = [features.shape[1] - tapped - absent, tapped, absent]
        own, folded, behind = torch.split(features, sizes, dim=1)
        return own, folded, behind

    @property
    def entry_layer(self) -> str:
        """The last module of the stem, whose output enters the tail."""
        return self._stem_names[-1]

    def _apply(self, fn: Any, recurse: bool = True) -> StemTailNetwork:
        """Move the network, as every `to` does, and lay the stem's weights out for where it is then."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out_stem()
        return self

    def _lay_out_stem(self) -> None:
        for module in self._stem_modules().values():
            module.to(memory_format=layout(next(self.network.parameters()).device.type))

    def _speed_up_the_tail(self) -> None:
        for name in self._tail_names:
            parent, _, child = name.rpartition(".")
            swap_convolutions(self.network.get_submodule(parent), only=child)
        if self.locator is not None:
            swap_convolutions(self.locator)


SMOOTH_SHARE = 0.9
"""Share of the power of a spatial kernel that is smooth after `steady_initialisation`."""

SHARP_MODULES = ("conv_stem", "blocks.0.", "blocks.1.")
"""Modules whose spatial kernels `steady_initialisation` leaves narrow."""

BENT_STAGES = 3
"""Number of stages whose activations `steady_initialisation` lets bend; those after them begin nearly linear."""

LINEAR_OFFSET = 2.0
"""In standard deviations: at two, SiLU of most of the signal is close to a straight line."""


def steady_initialisation(network: nn.Module) -> None:
    """Initialise an untrained EfficientNet so that similar volumes have similar features.

    With timm's initialisation B7 is chaotic in 3D: its 38 residual blocks of the stem amplify any difference, so that
    noise of a tenth of the signal moves the features of a study as far as another patient would, and nothing can be
    learnt from a stem that stays as it is. These changes undo that:

    - each residual branch begins switched off, as the last BatchNorm of the branch has scale 0; in the frozen stem it
      stays so, in the tail it learns;
    - spatial kernels are mostly smooth: a Gaussian plus noise, rather than noise alone. Its standard deviation is an
      eighth of the kernel's edge in the first two stages, so that what is a voxel or two wide, such as an enhancing
      ring, is still there when the first activations bend, and a quarter of the edge after them;
    - 1 x 1 x 1 convolutions are orthogonal, so that they lose as little as their width allows;
    - squeeze-and-excitation begins neutral, the same for every channel and study;
    - in the first three stages, what each channel responds to is spread over the range of its input by random offsets
      before the activation, so that averages of channels keep the shape of the distribution: how much bright tissue
      there is, not only how bright the tissue is on average;
    - after them, offsets put the activations where they are nearly linear: at that depth random bends lose more of
      what the first stages found than they add. The tail bends them as it learns.

    Args:
        network: A timm_3d EfficientNet, changed in place.

    Source: switched-off branches, Goyal et al. 2017, arXiv:1706.02677, section 5.1; orthogonal weights, Saxe et al.
        2014, arXiv:1312.6120.
    """
    nn.init.normal_(network.bn1.bias)  # type: ignore[arg-type, union-attr]
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d) and module.bias is None:
            if module.kernel_size == (1, 1, 1):
                nn.init.orthogonal_(module.weight)
            else:
                _smooth_(module.weight, width=1 / 8 if name.startswith(SHARP_MODULES) else 1 / 4)
        if isinstance(module, SqueezeExcite):
            nn.init.zeros_(module.conv_expand.weight)
            nn.init.zeros_(module.conv_expand.bias)
        if isinstance(module, InvertedResidual):
            if int(name.split(".")[1]) < BENT_STAGES:
                nn.init.normal_(module.bn1.bias)
            else:
                nn.init.constant_(module.bn1.bias, LINEAR_OFFSET)
                nn.init.constant_(module.bn2.bias, LINEAR_OFFSET)
        if getattr(module, "has_skip", False):
            last = module.bn3 if isinstance(module, InvertedResidual) else module.bn2
            nn.init.zeros_(last.weight)


@torch.no_grad()
def _smooth_(weight: Tensor, *, width: float) -> None:
    """Replace a spatial kernel [O, I, k, k, k] by random amounts of a Gaussian of `width` edges, with some noise."""
    outputs, inputs, edge = weight.shape[:3]
    offset = torch.arange(edge) - (edge - 1) / 2
    profile = torch.exp(-(offset**2) / (2 * (edge * width) ** 2))
    gaussian = profile[:, None, None] * profile[None, :, None] * profile[None, None, :]
    noise = torch.randn_like(weight)
    amount = torch.randn(outputs, inputs, 1, 1, 1) if inputs > 1 else torch.ones(outputs, 1, 1, 1, 1)
    smooth = gaussian / gaussian.norm()
    noise = noise / noise.flatten(2).norm(dim=2)[..., None, None, None]
    weight.copy_(amount * smooth * SMOOTH_SHARE**0.5 + noise * (1 - SMOOTH_SHARE) ** 0.5)


def calibrate_batch_norm(network: StemTailNetwork, batches: Iterable[Tensor]) -> int:
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


def _arithmetic(precision: Precision, device: str, *, on_cpu: Precision) -> AbstractContextManager[object]:
    """Return the autocast context of one part of the network.

    Measured on 2 CPU cores at 128^3: bfloat16 with channels last makes the stem 4 times as fast as float32 with AMX;
    with AVX-512, a training step of the tail takes 0.22 instead of 0.41 s for 2 studies. On one core without
    instructions for bfloat16 (AVX2) a study at 65^3 took 7.7 s in it and 0.7 s in float32.
    Elsewhere "auto" leaves it to the trainer.
    """
    if precision == "auto":
        if device != "cpu":
            return nullcontext()
        precision = on_cpu
    if precision == "float32" and not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _checkpointed(block: nn.Module, hidden: Tensor) -> Tensor:
    """Return what a block makes of its input, keeping nothing else for the backward pass."""
    result: Tensor = checkpoint(
        block, hidden, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(block))
    )
    return result


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
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


def _out(module: nn.Module) -> int:
    """Return how many channels a module of the network gives."""
    last = [inner for inner in module.modules() if isinstance(inner, nn.Conv3d | _BatchNorm)][-1]
    return last.out_channels if isinstance(last, nn.Conv3d) else last.num_features


@functools.cache
def _cpu_has(*instructions: str) -> bool:
    """Return whether the CPU has any of some sets of instructions, by their names in `torch.cpu.get_capabilities`."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in instructions)


def _precision_on_cpu() -> Precision:
    return "bfloat16" if _cpu_has("avx512_bf16", "amx_bf16") else "float32"


def _width(module: nn.Module) -> int:
    """Return how many channels a module of the network takes."""
    first = next(inner for inner in module.modules() if isinstance(inner, nn.Conv3d | _BatchNorm))
    return first.in_channels if isinstance(first, nn.Conv3d) else first.num_features


def _cut(network: nn.Module, trainable_from: str) -> tuple[list[str], list[str]]:
    """Return the names of the modules of stem and tail, in the order in which they run.

    A stage that lies wholly in one part is run as one module, so that hooks on `blocks.4` fire; only a stage that is
    cut in two is run block by block.
    """
    blocks: nn.Sequential = network.get_submodule("blocks")  # type: ignore[assignment]
    stages = [f"blocks.{index}" for index in range(len(blocks))]
    coarse = ["conv_stem", "bn1", *stages, "conv_head", "bn2"]
    if trainable_from == "classifier":
        return coarse, []
    if trainable_from in coarse:
        position = coarse.index(trainable_from)
        return coarse[:position], coarse[position:]
    for position, stage in enumerate(coarse):
        members = [f"{stage}.{index}" for index in range(len(network.get_submodule(stage)))] if stage in stages else []  # type: ignore[arg-type]
        if trainable_from in members:
            inner = members.index(trainable_from)
            return coarse[:position] + members[:inner], members[inner:] + coarse[position + 1 :]
    raise ModelError(
        f"model.trainable_from: found '{trainable_from}'; expected one of {', '.join([*coarse, 'classifier'])}, "
        "or a block such as 'blocks.6.2'. Correct the name."
    )
