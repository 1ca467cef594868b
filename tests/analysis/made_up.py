"""Activations made up for tests, dense and as the shards that a pass would have left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sae_tools.analysis.firings import Firings
from sae_tools.runs.tensors import save_tensors


def dense_activations(contexts: int = 7, length: int = 12, features: int = 9, seed: int = 0) -> np.ndarray:
    """float32 [contexts · length, features]: feature 0 is dead, 1 fires once, 2 always, 3 is constant, 4 has few
    different values, and so ties; the others have densities from rare to dense. Position 0 never fires."""
    random = np.random.default_rng(seed)
    tokens = contexts * length
    x = random.gamma(2, size=(tokens, features)).astype(np.float32)
    x *= random.random((tokens, features)) < np.linspace(0.02, 0.8, features)
    x[:, 0] = 0
    if features > 4:
        x[:, 1] = 0
        x[length + 1, 1] = 0.7
        x[:, 2] = 0.5 + random.random(tokens)
        x[:, 3] = 2
        x[:, 4] = random.integers(0, 3, tokens)
    x[::length] = 0
    return x


def write_shards(folder: Path, dense: np.ndarray, length: int, cuts: list[int], name: str = "it") -> Firings:
    """The shards of contexts from 0 to cuts[0], to cuts[1], …, to the end, written by plain loops."""
    folder.mkdir(parents=True, exist_ok=True)
    contexts, features = len(dense) // length, dense.shape[1]
    bounds = [0, *cuts, contexts]
    files, starts = [], []
    for shard, (first, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        start, token, value = [0], [], []
        for feature in range(features):
            for t in range(first * length, stop * length):
                if dense[t, feature] > 0:
                    token.append(t)
                    value.append(dense[t, feature])
            start.append(len(token))
        files.append(folder / f"{name}.firings-{shard:05d}.safetensors")
        tensors = {
            "start": torch.tensor(start),
            "token": torch.tensor(token, dtype=torch.int32),
            "value": torch.tensor(np.array(value, np.float32)),
        }
        save_tensors(files[-1], tensors)
        starts.append(np.array(start))
    return Firings(files, np.stack(starts))
