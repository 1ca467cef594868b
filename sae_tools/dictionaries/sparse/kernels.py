"""Which implementation of the kernels serves a tensor: numba on a CPU, Triton on CUDA, PyTorch everywhere else.

`SAE_TOOLS_KERNELS=torch` in the environment asks for PyTorch's everywhere.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from sae_tools.dictionaries.sparse import torch_kernels

_FAST = {"cpu": "numba_kernels", "cuda": "triton_kernels"}


def kernels_for(tensor: Tensor) -> ModuleType:
    """The module whose kernels are the fastest for parameters and rows of `tensor`'s device and dtype.

    Only float32 has kernels of its own (`top_k` of such a module also takes candidates in bfloat16).
    """
    if tensor.dtype != torch.float32 or tensor.device.type not in _FAST:
        return torch_kernels
    return _fast(tensor.device.type, os.environ.get("SAE_TOOLS_KERNELS"))


@cache
def _fast(device: str, wanted: str | None) -> ModuleType:
    if wanted == "torch":
        return torch_kernels
    try:
        return importlib.import_module(f"sae_tools.dictionaries.sparse.{_FAST[device]}")
    except ImportError:  # not there for this platform or this version of Python
        return torch_kernels
