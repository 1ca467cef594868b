"""One file for each dictionary with what is known about its features: the format, and reading it.

`<folder>/<id>.safetensors` (runs/tensors.py) holds the arrays of `SCHEMA`, N = d_sae features wide. Meta has `format`,
`id`, `d_sae`, `d_in`, `site`, `space`, `architecture` (and `k`), `unit` (of activations, in words), `corpus` (k of
`corpus-<k>.safetensors` and `vocabulary-<k>.json` beside it), `tokens` (counted), `length` (of a context), `before`,
`after`, `intervals`, `matches` (the ids of the other dictionaries on this corpus), `training_tokens` (null: unknown),
`settings` (ReportConfig) and `fingerprint`: of everything that the numbers depend on; a two-site dictionary also
`writes` (a site) and `target_space`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_tools.analysis.examples import BINS
from sae_tools.errors import UserError
from sae_tools.runs.tensors import load_tensors, save_tensors

FORMAT = 1

SCHEMA: dict[str, tuple[str, tuple[str | int, ...]]] = {
    # what features do on the corpus: analysis/examples.py
    "fires": ("int64", ("N",)),
    "maximum": ("float32", ("N",)),
    "mean_active": ("float32", ("N",)),
    "histogram": ("int32", ("N", BINS)),
    "example_start": ("int64", ("N+1",)),
    "example_token": ("int32", ("E",)),
    "example_group": ("uint8", ("E",)),
    "example_value": ("float32", ("E",)),
    "window_start": ("int64", ("E+1",)),
    "window_offset": ("uint8", ("W",)),
    "window_value": ("float32", ("W",)),
    # what ablating them does: analysis/effects.py
    "effect_measured": ("bool", ("E",)),
    "effect_start": ("int64", ("E+1",)),
    "effect_offset": ("uint8", ("F",)),
    "effect_value": ("float32", ("F",)),
    # what they do to the logits directly: analysis/logit_weights.py
    "logit_top_token": ("int32", ("N", "L")),
    "logit_top_value": ("float32", ("N", "L")),
    "logit_bottom_token": ("int32", ("N", "L")),
    "logit_bottom_value": ("float32", ("N", "L")),
    "logit_histogram": ("int32", ("N", "H")),
    "logit_range": ("float32", ("N", 2)),
    "logit_norm": ("float32", ("N",)),
    # their weights: analysis/geometry.py
    "encoder_norm": ("float32", ("N",)),
    "decoder_norm": ("float32", ("N",)),
    "b_enc": ("float32", ("N",)),
    "projection": ("float32", ("N",)),
    "cosine": ("float32", ("N",)),
    "nearest_feature": ("int32", ("N", "K")),
    "nearest_cosine": ("float32", ("N", "K")),
    "antipode_feature": ("int32", ("N",)),
    "antipode_cosine": ("float32", ("N",)),
    # which fire together: analysis/cooccurrence.py; -1 and 0 where there are no more
    "correlated_feature": ("int32", ("N", "C")),
    "correlated_value": ("float32", ("N", "C")),
    "match_feature": ("int32", ("N", "D", "M")),
    "match_value": ("float32", ("N", "D", "M")),
    "match_cosine": ("float32", ("N", "D", "M")),  # of what both add to the residual stream; NaN where that is unknown
}
"""dtype and shape of every array; equal letters are equal sizes."""
LOGITS = frozenset(name for name in SCHEMA if name.startswith("logit_"))
"""Absent where nothing fixed leads from the site to the logits."""
ONE_SITE = frozenset(("projection", "cosine"))
"""Absent where encoder and decoder rows are in different spaces."""


@dataclass(frozen=True)
class FeatureFile:
    arrays: Mapping[str, np.ndarray]
    """By name, as in `SCHEMA`."""
    meta: Mapping[str, Any]

    @property
    def d_sae(self) -> int:
        return len(self.arrays["fires"])

    @property
    def has_logits(self) -> bool:
        return "logit_norm" in self.arrays

    def examples(self, feature: int) -> slice:
        """Where a feature's examples are."""
        return slice(*self.arrays["example_start"][feature : feature + 2].tolist())

    def window(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """(offset, value) of the activations > 0 in an example's window."""
        entries = slice(*self.arrays["window_start"][example : example + 2].tolist())
        return self.arrays["window_offset"][entries], self.arrays["window_value"][entries]

    def effect(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """(offset, nats) of the effects in an example's window that are not 0."""
        entries = slice(*self.arrays["effect_start"][example : example + 2].tolist())
        return self.arrays["effect_offset"][entries], self.arrays["effect_value"][entries]

    @staticmethod
    def load(path: Path) -> FeatureFile:
        """Raises UserError for a file that is missing, damaged or something else."""
        tensors, meta = load_tensors(path)
        wrong = first_misfit(tensors) if meta.get("format") == FORMAT else "it is of another version"
        if wrong:
            raise UserError(f"{path} is no file of features: {wrong}.")
        return FeatureFile({name: tensor.numpy() for name, tensor in tensors.items()}, meta)


def save_features(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the file whole. Raises UserError where no space is left, ValueError for arrays that are not the format's.

    meta: all but `format`.
    """
    wrong = first_misfit(tensors)
    if wrong:
        raise ValueError(wrong)
    save_tensors(path, tensors, {**meta, "format": FORMAT})


def first_misfit(tensors: dict[str, Tensor]) -> str | None:
    """What is not as `SCHEMA` says, in words; None where everything is."""
    missing = SCHEMA.keys() - tensors.keys()
    for group in (LOGITS, ONE_SITE):  # all of it, or none
        if group <= missing:
            missing = missing - group
    if missing:
        return f"{min(missing)} is missing"
    if unknown := tensors.keys() - SCHEMA.keys():
        return f"{min(unknown)[:50]} is unknown"
    sizes: dict[str, int] = {}
    for name, (dtype, dims) in SCHEMA.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        fits = tensor.dtype == getattr(torch, dtype) and tensor.dim() == len(dims)
        for dim, size in zip(dims, tensor.shape, strict=False):
            if isinstance(dim, int):
                fits &= size == dim
            else:
                fits &= sizes.setdefault(dim[0], size - dim.endswith("+1")) == size - dim.endswith("+1")
        if not fits:
            return f"{name} is {tensor.dtype} {list(tensor.shape)} instead of {dtype} [{', '.join(map(str, dims))}]"
    for name, entries in (("example_start", "E"), ("window_start", "W"), ("effect_start", "F")):
        start = tensors[name]
        if len(start) == 0 or int(start[0]) != 0 or int(start[-1]) != sizes[entries] or bool((start.diff() < 0).any()):
            return f"{name} does not rise from 0 to the number of entries"
    return None
