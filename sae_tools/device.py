"""Which device a setting means."""

from __future__ import annotations

import torch

from sae_tools.errors import UserError


def pick_device(name: str | torch.device, setting: str = "device") -> torch.device:
    """`auto` is CUDA where there is one. Raises UserError, naming the setting, for what is no device or not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{setting}: expected auto, cpu, cuda or cuda:1, …, found {name!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"{setting}: {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices here."
        )
    return device
