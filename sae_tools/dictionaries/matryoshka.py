"""Matryoshka: BatchTopK whose first features reconstruct by themselves too (Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.dictionaries.base import Coefficient, Objective
from sae_tools.dictionaries.batchtopk import BatchTopKDictionary, smallest_positive
from sae_tools.dictionaries.sparse import Support
from sae_tools.errors import UserError


class MatryoshkaDictionary(BatchTopKDictionary):
    """BatchTopK with several nested dictionaries: the first `widths[0]` features, the first `widths[1]`, … all of them.

    Loss: the mean over nested dictionaries of ‖x - x̂_m‖², x̂_m made of the first m features' activations, + the
    auxiliary loss of `BatchTopKDictionary` on the error of all. Features are chosen over the whole width and batch. The
    paper adds the errors up, and so does SAELens; dictionary_learning takes the mean. To Adam they are the same; with
    the mean, `aux_coefficient` and the norm at which gradients are clipped mean what they do for BatchTopK, whatever
    the number of widths.
    """

    def __init__(
        self, encoder: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, *, widths: list[int], **settings: Any
    ):
        """widths: ascending, from at least 1 to d_sae; anything else raises UserError. settings: of
        `BatchTopKDictionary`."""
        super().__init__(encoder, b_enc, W_dec, b_dec, **settings)
        self.widths = checked_widths(widths, self.d_sae)

    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        f = z.relu()
        error, loss = y, y.new_zeros(())
        for part in on.decode_groups(f, self.W_dec, self.widths):
            error = error - part
            loss = loss + error.pow(2).sum()
        return Objective(f, error, loss / len(self.widths), {}, {"smallest_active": smallest_positive(f.detach())})

    def _row_losses(self, x: Tensor, target: Tensor, l1: Coefficient) -> Float[Tensor, " rows"]:
        f = self.encode(x)
        error = target - self.decode(torch.zeros_like(f), x)
        losses = []
        for first, last in pairwise([0, *self.widths]):
            error = error - f[:, first:last] @ self.W_dec[first:last]
            losses.append(error.pow(2).sum(-1))
        return torch.stack(losses).mean(0)


def checked_widths(widths: list[int], d_sae: int) -> list[int]:
    """The widths; raises UserError where they are not those of nested dictionaries of which the last has d_sae."""
    ascending = all(a < b for a, b in pairwise([0, *widths]))
    if not (widths and ascending and widths[-1] == d_sae):
        raise UserError(f"architecture.widths is {list(widths)}, but must ascend from at least 1 to d_sae = {d_sae}.")
    return list(widths)
