"""One seed drives everything: every random choice takes a generator derived from it and from the choice's name."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the choice called `names`, a hash, so that no two choices share a random stream by accident."""
    key = "\0".join(str(part) for part in (seed, *names)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator: random numbers are drawn on the CPU and moved, so that every device sees the same ones."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.default_rng(derived_seed(seed, *names))
