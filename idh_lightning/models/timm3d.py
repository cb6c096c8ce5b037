"""timm_3d, imported without the packages that it imports and that nothing here reaches through it.

It imports torchvision for a class and for transforms of images, wandb for a summary, and timm for its version: three
seconds of a new patient's answer. Empty stand-ins take their places meanwhile; whoever imports them later gets them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "Conv3dSame",
    "DepthwiseSeparableConv",
    "InvertedResidual",
    "ResNet",
    "SqueezeExcite",
    "timm_3d",
]

_UNREACHED = ("torchvision", "wandb", "timm")


class _Empty(type):
    """Kind of an empty class, of which every name is another one."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


class _StandIn(ModuleType):
    """Module of which every name is an empty class."""

    __version__ = "0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


class _StandIns(MetaPathFinder, Loader):
    """Finder of stand-ins for packages and all that is in them."""

    def __init__(self, packages: Sequence[str]) -> None:
        """Stand in for some packages."""
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Spec of a stand-in; None for every other module."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Stand-in of that name."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Add nothing to it."""


@contextmanager
def _without(packages: Sequence[str]) -> Iterator[None]:
    """Have imports of packages that are not there yet give stand-ins, and forget these at the end."""
    finder = _StandIns([name for name in packages if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


with _without(_UNREACHED), warnings.catch_warnings():
    # timm_3d 1.0.1 scripts activations on import, which torch >= 2.11 calls deprecated.
    warnings.simplefilter("ignore")
    import timm_3d
    from timm_3d.layers.conv2d_same import Conv3dSame
    from timm_3d.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
    from timm_3d.models.resnet import BasicBlock, Bottleneck, ResNet
