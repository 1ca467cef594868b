"""The same objective on active pairs and on all features.

An architecture writes its objective once, in terms of pre-activations z and a support: z has one number for each active
pair, or one for each row and feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.dictionaries.sparse.autograd import decode_at, per_feature
from sae_tools.dictionaries.sparse.pairs import Pairs


class Support(Protocol):
    def decode(self, f: Tensor, W_dec: Tensor) -> Float[Tensor, "rows d_out"]:
        """f W_dec, differentiable in both."""
        ...

    def decode_groups(
        self, f: Tensor, W_dec: Float[Tensor, "d_sae d_out"], widths: list[int]
    ) -> Sequence[Float[Tensor, "rows d_out"]]:
        """`decode` of features before widths[0], of those from there to widths[1], …: they add up to it."""
        ...

    def per_feature(self, numbers: Float[Tensor, " d_sae"]) -> Tensor:
        """Each entry's feature's number, in a shape that broadcasts against z; differentiable."""
        ...

    def fired(self, f: Tensor) -> Int[Tensor, " d_sae"]:
        """On how many rows each feature is > 0, int64."""
        ...


class OnPairs:
    """Entries are active pairs."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def decode(self, f: Tensor, W_dec: Tensor) -> Float[Tensor, "rows d_out"]:
        return decode_at(f, W_dec, self.pairs)

    def decode_groups(
        self, f: Tensor, W_dec: Float[Tensor, "d_sae d_out"], widths: list[int]
    ) -> Sequence[Float[Tensor, "rows d_out"]]:
        parts = decode_at(f, W_dec, self.pairs.split_rows(widths))
        return parts.view(self.pairs.rows, len(widths), W_dec.shape[1]).unbind(1)

    def per_feature(self, numbers: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        return per_feature(numbers, self.pairs)

    def fired(self, f: Tensor) -> Int[Tensor, " d_sae"]:
        return self.pairs.count(f.detach() > 0)


class OnAll:
    """Entries are all features of each row, [rows, d_sae]."""

    def decode(self, f: Tensor, W_dec: Tensor) -> Float[Tensor, "rows d_out"]:
        return f @ W_dec

    def decode_groups(
        self, f: Tensor, W_dec: Float[Tensor, "d_sae d_out"], widths: list[int]
    ) -> Sequence[Float[Tensor, "rows d_out"]]:
        return [f[:, first:last] @ W_dec[first:last] for first, last in pairwise([0, *widths])]

    def per_feature(self, numbers: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
        return numbers

    def fired(self, f: Tensor) -> Int[Tensor, " d_sae"]:
        with torch.no_grad():
            return f.sign().sum(0).long()  # exact: counts stay below 2^24; a third of the time of (f > 0).sum(0)
