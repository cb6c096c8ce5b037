"""3D encoder with a frozen stem and a trainable tail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.errors import ModelError
from idh_lightning.models import surgery
from idh_lightning.models.cells import GridPosition, cell_means, coarsen, depth_to_space, space_to_depth
from idh_lightning.models.encoders import MedicalNetEncoder, encoder
from idh_lightning.models.fast.convolutions import layout, swap_convolutions
from idh_lightning.models.fast.fused import FusedStem, can_fuse
from idh_lightning.models.fast.precision import Precision, arithmetic, dtype_of, precision_on_cpu
from idh_lightning.models.initialisation import steady_initialisation
from idh_lightning.models.locator import CELL, TUMOUR, located, segmentation, tumour_cells
from idh_lightning.models.radiomics import INTENSITY_STATISTICS, RadiomicsHead, SiteChanges
from idh_lightning.models.segmentation import PRETRAINED, TumourSegmenter, VoteHead, load_segmenter
from idh_lightning.models.weights import LATER, WeightsOrigin, load_weights

STEM_CHUNK = 4
"""Studies that a CPU takes through the stem at once: at 64^3, 0.07 s a study in fours and 0.11 s in sixteens."""

STEM_VOXELS = 2 * 128**3
"""Voxels that any device takes through the stem at once, if it is more than one study: on an H200 in float16, two at
128^3 took 16 ms together and 26 ms one after the other."""

HALF_WEIGHT = (300, 100)
"""Training patients of deep layers and of the radiomics head with whom they count half as much as the dense vote."""

ENTRY = "entry"
"""Layer that only passes on what enters the tail: the stem's features, gated where there is a locator."""


class NetworkOutput(NamedTuple):
    """Logits and tumour map of a batch.

    Attributes:
        logits: [B, 2], float32: wildtype, mutant.
        tumour: [B, d, h, w], float32: probability of tumour in each cell of the tumour map; None without a locator.
        branch_logits: `logits` is their weighted mean; each [B, 2] and to be taught on its own: the deep layers'
            logits, and with a locator those of the radiomics head and of the dense vote.
    """

    logits: Tensor
    tumour: Tensor | None
    branch_logits: tuple[Tensor, ...]


class TailInput(NamedTuple):
    """Input of the trainable tail.

    Attributes:
        deep: [B, F, d, h, w], the stem's features, gated where there is a locator: what the deep layers see.
        tissue: [B, G, e, f, g], float32, intensities in the cells of the tumour map, for the radiomics head.
        tumour: [B, e, f, g], float32, probability of tumour in each cell.
        vote: [B], float32, dense vote of the locator. These three are None without a locator.
    """

    deep: Tensor
    tissue: Tensor | None = None
    tumour: Tensor | None = None
    vote: Tensor | None = None


class StemTailNetwork(nn.Module):
    """A 3D EfficientNet or ResNet cut at one module: everything before it is frozen, it and everything after learns.

    The stem runs without a graph, in eval mode (its BatchNorm statistics never move) and in the precision and memory
    layout that are fastest for it; the tail is an ordinary network. What this saves is the memory of the stem's
    activations: in B7 the tail from `blocks.5` still holds 79% of the parameters.

    A locator, a segmentation network that is frozen as well, tells where the tumour is, and what enters the tail is
    multiplied by that: the classifier sees the tumour and its surroundings, and how sure the locator is of each cell is
    half of the explanation (see `attribution.Evidence`). A linear radiomics head beside the deep layers judges what the
    tumour is like there, where it lies and how large it is, and each voxel of it votes for mutant or wildtype; the
    logits are a mean of the three branches. The vote has learnt from thousands of synthetic patients before, the other
    two from n training patients alone, and their weight in it is n / (n + 300) and n / (n + 100) of that of the vote.
    Prediction needs no mask.
    """

    def __init__(
        self,
        *,
        backbone: str = "tf_efficientnet_b7",
        sequences: Sequence[str] = SEQUENCES,
        trainable_from: str = "blocks.5",
        weights: str = "auto",
        weights_tag: str = "ns_jft_in1k",
        drop_rate: float = 0.3,
        drop_path_rate: float = 0.2,
        stem_precision: Precision = "auto",
        tail_precision: Precision = "auto",
        checkpoint_tail: bool = False,
        missing: Literal["error", "zero"] = "error",
        locator: str | TumourSegmenter | None = None,
        training_patients: int | None = None,
        harmonise: str | None = None,
        sites: SiteChanges | None = None,
    ) -> None:
        """Build the network and load its weights.

        Args:
            backbone: An EfficientNet of timm_3d, without a tag, or one of MEDICALNET.
            sequences: Names of the MRI sequences that the channels of the volumes are.
            trainable_from: Name of the first trainable module, for example "blocks.5" (two last stages and head),
                "blocks.6.2" (two last MBConv blocks and head), or "conv_stem" to train everything.
            weights: "auto" (pretrained if they can be had, else none), "none", a timm tag such as
                "tf_efficientnet_b7.ns_jft_in1k", or a local file of 2D or 3D weights. "later": the caller fills them
                in, so that the 5 s that a good beginning of B7 takes are saved.
            weights_tag: The tag that "auto" asks for.
            drop_rate: Dropout before the classifier, in [0, 1).
            drop_path_rate: Largest stochastic depth rate of the residual blocks, in [0, 1).
            stem_precision: Arithmetic of the stem. "auto" is the trainer's precision on a GPU; on a CPU float32, but of
                features to train on bfloat16 where it is faster in it.
            tail_precision: The same of the tail, which on a CPU takes bfloat16 only while it trains.
            checkpoint_tail: Keep only what enters each block of the tail for the backward pass, and compute the rest
                again when it is needed: less memory for more time, the same gradients.
            missing: "zero" if a study may lack a sequence: the stem then tells the tail which channels are all zero.
            locator: Segmentation network that finds the tumour: "pretrained", a file of `save_segmenter`, or the
                network itself. None for no locator.
            training_patients: Number of those that deep layers and radiomics head learn from, where the vote has learnt
                before; None if all three count the same.
            harmonise: Column of a cohort that names sites, for what was made there (see `sites`); None for none.
            sites: Scale and shift of each radiomic feature at each site.

        Raises:
            ModelError: If the backbone or the module is unknown, or the weights do not fit.
        """
        super().__init__()
        self.network = encoder(backbone, len(sequences), drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        if weights != LATER and not isinstance(self.network, MedicalNetEncoder):
            steady_initialisation(self.network)
        # timm draws a classifier of two outputs from +-0.7, which over 2560 features makes logits of tens at the start.
        nn.init.normal_(self.network.classifier.weight, std=0.01)
        nn.init.zeros_(self.network.classifier.bias)
        self.sequences = tuple(sequences)
        self.trainable_from, self.harmonise = trainable_from, harmonise
        self.stem_precision, self.tail_precision = stem_precision, tail_precision
        self.checkpoint_tail = checkpoint_tail
        self.fuse_stem = True
        self._fusing: dict[torch.dtype, tuple[object, FusedStem]] = {}
        self.weights_origin: WeightsOrigin = load_weights(self.network, backbone, weights, tag=weights_tag)
        self._stem_names, self._tail_names = surgery.cut_names(self.network, trainable_from)
        self.missing_sequence_embedding: nn.Linear | None = None
        if missing == "zero":
            first = self._module((*self._tail_names, "classifier")[0])
            self.missing_sequence_embedding = nn.Linear(len(sequences), surgery.channels_in(first), bias=False)
            nn.init.zeros_(self.missing_sequence_embedding.weight)
        self._traced: dict[tuple[str, int], tuple[float, float, int]] = {}
        self._kept: tuple[Tensor, Tensor] | None = None
        self._keeps = False
        n = training_patients
        shares = [*(1.0 if n is None else n / (n + half) for half in HALF_WEIGHT), 1.0]
        self.branch_weights = [share / sum(shares) for share in shares]
        self._add_locator(locator, sites)
        self.network.add_module(ENTRY, nn.Identity())  # so that it can be explained like any layer
        for parameter in self.stem_parameters():
            parameter.requires_grad_(False)
        self._lay_out_stem()
        swap_convolutions(self.network, within=self._tail_names)
        self.train()

    def _add_locator(self, locator: str | TumourSegmenter | None, sites: SiteChanges | None) -> None:
        self.locator: TumourSegmenter | None = None
        self.radiomics: RadiomicsHead | None = None
        self.vote: VoteHead | None = None
        self._ratio, self._tissue = 1, INTENSITY_STATISTICS * len(self.sequences)
        if locator is None:
            return
        if not self._stem_names:
            raise ModelError(
                f"model.locator: found a locator and model.trainable_from={self.trainable_from}; expected a frozen "
                "stem for it to be a part of. Set model.locator=null, or model.trainable_from=blocks.5."
            )
        if isinstance(locator, str):
            locator = load_segmenter(PRETRAINED if locator == "pretrained" else Path(locator))
        self.locator = locator
        self.radiomics, self.vote = RadiomicsHead(len(self.sequences), sites), VoteHead()
        self._ratio = round(self._trace(ENTRY, 65)[1]) // CELL

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits [B, 2], float32, wildtype and mutant, of volumes [B, C, D, H, W] z-normalised within the brain."""
        return self.tail(self.stem(volumes))

    def stem(self, volumes: Tensor, *, to_train: bool = False) -> Tensor:
        """Frozen features of volumes [B, C, D, H, W], without a graph; `to_train` may round them (`stem_precision`).

        Returns:
            [B, F, d, h, w]; for B7 cut at `blocks.5`, F = 224 and d = D / 16. With a locator, the probability of tumour
            and the intensities in the cells of the tumour map are more channels (see `space_to_depth`), and the dense
            vote is one, constant in space. Where a sequence may be missing there are C more: 1 for a missing sequence.
        """
        if not self._stem_names:
            return self._run_stem(volumes, self.stem_dtype(volumes.device.type))
        if self._kept is not None and self._kept[0] is volumes:
            return self._kept[1]
        dtype = self.stem_dtype(volumes.device.type, to_train=to_train)
        fused = self._fused(volumes, dtype) if self._fuses(volumes.device.type, dtype) else None
        with torch.no_grad():
            chunks = torch.split(volumes, self.studies_at_once(volumes))
            features = torch.cat([self._run_stem(chunk, dtype, fused) for chunk in chunks])
        if self._keeps:
            self._kept = (volumes, features)
        return features

    @contextmanager
    def cache_stem(self) -> Iterator[None]:
        """Context in which one tensor of volumes goes through the stem once, however often it is given."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    @contextmanager
    def with_stem_features(self, volumes: Tensor, features: Tensor) -> Iterator[None]:
        """Context in which `features` stand for the stem's output of `volumes`, and it is not run for them."""
        before, self._kept = self._kept, (volumes, features)
        try:
            yield
        finally:
            self._kept = before

    def studies_at_once(self, volumes: Tensor) -> int:
        """Number of [B, C, D, H, W] that go through the stem together."""
        size = max(STEM_VOXELS // volumes[0, 0].numel(), 1)
        if volumes.device.type == "cpu":
            size = 1 if self._fuses("cpu", self.stem_dtype("cpu")) else min(size, STEM_CHUNK)
        return min(size, len(volumes))

    def tail(self, features: Tensor) -> Tensor:
        """Logits [B, 2] of the stem's features [B, F, d, h, w], with a graph."""
        return self.answer(features).logits

    def answer(self, features: Tensor) -> NetworkOutput:
        """Logits and tumour map of the stem's features [B, F, d, h, w], with a graph."""
        return self.classify(self.entry(features))

    def entry(self, features: Tensor) -> TailInput:
        """Input of the tail from the stem's features [B, F, d, h, w]."""
        with self._tail_arithmetic(features):
            if self.locator is None:
                return TailInput(self._module(ENTRY)(self._embedded(features)))
            own, finer, vote, absent = self._split(features)
            tumour, tissue = torch.split(depth_to_space(finer, self._ratio).float(), [1, self._tissue], dim=1)
            plain = self._embedded(torch.cat([own, absent], 1))
            gate = coarsen(tumour[:, 0], self._ratio)[:, None]
        deep = self._module(ENTRY)(plain * gate.to(plain.dtype))
        return TailInput(deep, tissue, tumour[:, 0], vote[:, 0, 0, 0, 0].float())

    def classify(self, entry: TailInput) -> NetworkOutput:
        """Logits of the branches, and their weighted mean."""
        with self._tail_arithmetic(entry.deep):
            hidden = entry.deep
            lighter = self.checkpoint_tail and self.training and torch.is_grad_enabled()
            for module in map(self._module, self._tail_names):
                hidden = surgery.checkpointed(module, hidden) if lighter else module(hidden)
            hidden = self.network.global_pool(hidden)
            hidden = nn.functional.dropout(hidden, self.network.drop_rate, self.training)
            deep: Tensor = self.network.classifier(hidden).float()
        if self.radiomics is None or self.vote is None:
            return NetworkOutput(deep, None, (deep,))
        device = entry.deep.device.type
        with torch.autocast(device, enabled=False):  # with their gains, their gradients leave the range of float16
            differences = self.radiomics(entry.tissue, entry.tumour), self.vote(entry.vote)
        branches = (deep, *(torch.stack([-difference, difference], 1) / 2 for difference in differences))
        weighted = torch.stack([weight * one for weight, one in zip(self.branch_weights, branches, strict=True)])
        return NetworkOutput(weighted.sum(0), entry.tumour, branches)

    def parts(self) -> list[nn.Module]:
        """Modules whose weights are of different scales: deep layers, embedding, and the heads beside them."""
        modules = (self.network, self.missing_sequence_embedding, self.radiomics, self.vote)
        return [module for module in modules if module is not None]

    def _tail_arithmetic(self, features: Tensor) -> AbstractContextManager[object]:
        on_cpu: Precision = precision_on_cpu() if self.training else "float32"
        return arithmetic(self.tail_precision, features.device.type, on_cpu=on_cpu)

    def tumour_fraction(self, masks: Tensor, layer: str = TUMOUR) -> Tensor:
        """Fraction of tumour of masks [B, D, H, W] in each cell of a layer's output, by default of the tumour map."""
        traced = [self._trace(layer, size) for size in masks.shape[1:]]
        return cell_means(masks, [each[:2] for each in traced], [each[2] for each in traced])

    @contextmanager
    def watch(self, *layers: str) -> Iterator[None]:
        """Context in which gradients reach layers, be they frozen or not.

        The graph begins at the output of the first of them, so that no memory is spent on what lies before it. Within
        the context call `explainable_forward` where one of them is in the stem.

        Raises:
            ModelError: If there is no such layer.
        """

        def begin(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return output if len(layers) > 1 and output.requires_grad else output.detach().requires_grad_(True)

        try:
            modules = [self.network.get_submodule(layer) for layer in layers]
        except AttributeError as error:
            raise ModelError(
                f"explain.layer: found '{', '.join(layers)}'; expected modules of the network, for example 'blocks.4'. "
                "Correct the name."
            ) from error
        with ExitStack() as hooks:
            for module in modules:
                hooks.callback(module.register_forward_hook(begin).remove)
            yield

    def in_stem(self, layer: str) -> bool:
        """Whether a layer is, or holds, a part of the frozen stem."""
        pairs = ((f"{layer}.", f"{name}.") for name in self._stem_names)
        return any(one.startswith(other) or other.startswith(one) for one, other in pairs)

    def explainable_forward(self, volumes: Tensor) -> Tensor:
        """Logits as of `forward`, with a graph through whatever part of the network asks for one."""
        with surgery.without_idle_blocks(self._stem_modules().values()):
            features = self._run_stem(volumes, self.stem_dtype(volumes.device.type))
        return self.tail(features)

    def sampling(self, layer: str, size: int) -> GridPosition:
        """Offset and step, in voxels: cell i of a layer, or of `TUMOUR`, lies at offset + i * step of the input.

        A convolution of stride 2 sees an even number of voxels half a voxel off centre, and over five such layers that
        adds up to a quarter of the head. An odd number such as 65 or 129 keeps the centre at every layer.
        """
        return self._trace(layer, size)[:2]

    def _trace(self, layer: str, size: int) -> tuple[float, float, int]:
        """`cell_geometry`, which never changes and is kept."""
        if layer == TUMOUR:
            return tumour_cells(size)
        if (layer, size) not in self._traced:
            named = self.entry_layer if layer == ENTRY else layer
            self._traced[layer, size] = surgery.cell_geometry(self.network, named, size)
        return self._traced[layer, size]

    def train(self, mode: bool = True) -> StemTailNetwork:
        """Set the tail to training mode; the stem stays in eval mode."""
        # Not all and then the stem back: another thread may be filling a feature bank with it.
        frozen = {module for part in self._frozen().values() for module in part.modules()}
        for module in self.modules():
            module.training = mode and module not in frozen
        return self

    def stem_parameters(self) -> Iterator[nn.Parameter]:
        """Frozen parameters."""
        for module in self._frozen().values():
            yield from module.parameters()

    def stem_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the stem, the locator among them, by name."""
        states = {name: module.state_dict() for name, module in self._frozen().items()}
        return {f"{name}.{inner}": tensor for name, state in states.items() for inner, tensor in state.items()}

    def _module(self, name: str) -> nn.Module:
        module: nn.Module = self.network.get_submodule(name)
        return module

    def _run_stem(self, volumes: Tensor, dtype: torch.dtype, fused: FusedStem | None = None) -> Tensor:
        if not self._stem_names:
            return self._with_missing(volumes, volumes)
        device = volumes.device.type
        with arithmetic(self.stem_precision, device, on_cpu="float32" if dtype == torch.float32 else "bfloat16"):
            hidden = volumes.to(volumes.dtype if fused is None else dtype, memory_format=layout(device))
            for stage in (self._stem_modules() if fused is None else fused.stages).values():
                hidden = stage(hidden)
        features = hidden.float().contiguous()
        if self.locator is not None:
            rounded = dtype if device == "cpu" and self.stem_precision == "auto" else torch.float32
            fine, vote = located(volumes, segmentation(self.locator, volumes, self.sequences, rounded))
            finer = space_to_depth(fine, features.shape[2:], self._ratio)
            votes = vote[:, None, None, None, None].expand(-1, -1, *features.shape[2:])
            features = torch.cat([features, finer, votes], dim=1)
        return self._with_missing(features, volumes)

    def _fuses(self, device: str, dtype: torch.dtype = torch.float32) -> bool:
        """Whether the stem runs with its BatchNorm fused into its convolutions."""
        onednn = device == "cpu"
        return device in ("cpu", "cuda") and self.fuse_stem and can_fuse(self._stem_modules(), dtype, onednn=onednn)

    def _fused(self, volumes: Tensor, dtype: torch.dtype = torch.float32) -> FusedStem | None:
        """The fused stem, made anew where the weights have changed, except through a tensor's `.data`."""
        modules, device = self._stem_modules(), volumes.device.type
        if isinstance(volumes, FakeTensor):  # where weights have no values either: the one that is known
            return self._fusing[dtype][1] if device == "cpu" and dtype in self._fusing else None
        tensors = [t for module in modules.values() for t in (*module.parameters(), *module.buffers())]
        key = (device, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if dtype not in self._fusing or self._fusing[dtype][0] != key:
            self._fusing[dtype] = key, FusedStem(modules, dtype, onednn=device == "cpu")
        return self._fusing[dtype][1]

    def _stem_modules(self) -> dict[str, nn.Module]:
        return {name: self._module(name) for name in self._stem_names}

    def _frozen(self) -> dict[str, nn.Module]:
        return self._stem_modules() | ({} if self.locator is None else {"locator": self.locator})

    def stem_dtype(self, device: str, *, to_train: bool = False) -> torch.dtype:
        """Arithmetic that `stem_precision` means on a type of device, of features to train on or to predict from."""
        exact = self.stem_precision == "auto" and device == "cpu" and not to_train
        return torch.float32 if exact else dtype_of(self.stem_precision, device)

    def _with_missing(self, features: Tensor, volumes: Tensor) -> Tensor:
        if self.missing_sequence_embedding is None:
            return features
        absent = (volumes == 0).flatten(2).all(dim=2).to(features.dtype)
        return torch.cat([features, absent[..., None, None, None].expand(-1, -1, *features.shape[2:])], dim=1)

    def _embedded(self, features: Tensor) -> Tensor:
        if self.missing_sequence_embedding is None:
            return features
        own = features.shape[1] - self.missing_sequence_embedding.in_features
        shift: Tensor = self.missing_sequence_embedding(features[:, own:, 0, 0, 0])
        return features[:, :own] + shift[..., None, None, None]

    def own(self, features: Tensor) -> Tensor:
        """Output [B, F, d, h, w] of the stem's last module among all that the stem gives."""
        return self._split(features)[0]

    def _split(self, features: Tensor) -> Sequence[Tensor]:
        """Features of the last module, the finer grid as space-to-depth channels, dense vote, and missing sequences."""
        absent = 0 if self.missing_sequence_embedding is None else self.missing_sequence_embedding.in_features
        finer, vote = (0, 0) if self.locator is None else ((1 + self._tissue) * self._ratio**3, 1)
        own = features.shape[1] - finer - vote - absent
        parts: Sequence[Tensor] = torch.split(features, [own, finer, vote, absent], dim=1)
        return parts

    @property
    def entry_layer(self) -> str:
        """Last module of the stem, whose output enters the tail."""
        return self._stem_names[-1]

    def _apply(self, fn: Any, recurse: bool = True) -> StemTailNetwork:
        """Move the network, as every `to` does, and lay the stem's weights out for where it is then."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out_stem()
        return self

    def _lay_out_stem(self) -> None:
        for module in self._stem_modules().values():
            module.to(memory_format=layout(next(self.network.parameters()).device.type))
