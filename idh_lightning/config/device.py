"""Device that a setting names."""

from __future__ import annotations

import torch

from idh_lightning.errors import ConfigError

NO_GPU = "and torch finds no such GPU on this machine; expected one that `nvidia-smi` lists and this torch can use."


def torch_device(wanted: str) -> torch.device:
    """Device of a setting: "auto" is a GPU where there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(wanted)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: found {wanted}; expected auto, cpu, cuda or cuda:N. Correct it.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: found {wanted}, {NO_GPU} Set device=auto.")
    return found
