"""Which device a setting means."""

from __future__ import annotations

from typing import Literal

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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has products of bfloat16 that are faster than those of float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def selection_precision(
    setting: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> Literal["float32", "bfloat16"]:
    """What `training.selection` means on a device."""
    if setting != "auto":
        return setting
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def allow_tf32(device: torch.device) -> None:
    """Lets a GPU multiply float32 matrices in TF32 (10 bits of mantissa, float32 sums); a CPU has no such thing."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
