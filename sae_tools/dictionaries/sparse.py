"""Gradients of sparse codes that touch active features only.

Of n rows and k active features in each, the gradients of encoder and decoder rows are sums of n k vectors. Autograd
would scatter the activations' gradient into a dense [n, d_sae] matrix and multiply, d_sae / k times the work. Here the
n k (row, feature) pairs are sorted by feature once, and both gradients are `embedding_bag` sums over each feature's own
rows: no tensor of size [n, k, d], no CSR tensors, deterministic on the CPU.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Support:
    """Which k features each row uses, and the same pairs sorted by feature (computed when first asked for)."""

    def __init__(self, indices: Int[Tensor, "rows k"], d_sae: int):
        self.indices = indices
        self.d_sae = d_sae

    @cached_property
    def _by_feature(self) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Int[Tensor, " d_sae"]]:
        """(the pairs' order by feature, the row of each in that order, where each feature's pairs begin)."""
        features, order = torch.sort(self.indices.flatten().int(), stable=True)
        starts = torch.searchsorted(features, torch.arange(self.d_sae, device=features.device, dtype=features.dtype))
        return order, torch.div(order, self.indices.shape[1], rounding_mode="floor"), starts

    def sum_by_feature(
        self, weights: Float[Tensor, "rows k"], vectors: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "d_sae d"]:
        """out[f] = Σ weights[b, j] vectors[b] over the pairs (b, j) whose feature is f."""
        order, rows, starts = self._by_feature
        return F.embedding_bag(rows, vectors, starts, per_sample_weights=weights.flatten()[order], mode="sum")

    def count(self, mask: Tensor) -> Int[Tensor, " d_sae"]:
        """For each feature the number of its pairs where mask [rows, k] holds."""
        zeros = torch.zeros(self.d_sae, dtype=torch.int64, device=mask.device)
        return zeros.scatter_add_(0, self.indices.flatten(), mask.flatten().long())


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, centred: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor, support: Any):
        out = values.relu()
        ctx.save_for_backward(out, centred, encoder)
        ctx.support = support
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        out, centred, encoder = ctx.saved_tensors
        g = torch.where(out > 0, grads[0], torch.zeros_like(out))
        g_bias = ctx.support.sum_by_feature(g, torch.ones_like(centred[:, :1])).squeeze(1)
        return None, None, ctx.support.sum_by_feature(g, centred), g_bias, -(g_bias @ encoder), None


class _DecoderGradient(torch.autograd.Function):
    """The identity on a reconstruction; sends its gradient to the decoder rows that made it."""

    @staticmethod
    def forward(ctx: Any, reconstruction: Tensor, W_dec: Tensor, values: Tensor, support: Any):
        ctx.save_for_backward(values)
        ctx.support = support
        return reconstruction.view_as(reconstruction)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (values,) = ctx.saved_tensors
        g = grads[0].contiguous()
        return g, ctx.support.sum_by_feature(values, g), None, None


def encode_at(
    values: Float[Tensor, "rows k"],
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    support: Support,
) -> Float[Tensor, "rows k"]:
    """ReLU of pre-activations known already, differentiable in encoder, b_enc and b_dec.

    values: the pre-activations at the support (or -inf for entries that stand for no feature), computed without
    autograd as <centred, encoder row> + b_enc. centred: x - b_dec, without autograd; x gets no gradient.
    """
    return _Encode.apply(values, centred, encoder, b_enc, b_dec, support)


def decode_at(
    values: Float[Tensor, "rows k"], W_dec: Float[Tensor, "d_sae d_out"], support: Support
) -> Float[Tensor, "rows d_out"]:
    """Σ_j values[:, j] W_dec[indices[:, j]], differentiable in values and W_dec."""
    out = F.embedding_bag(support.indices, W_dec.detach(), per_sample_weights=values, mode="sum")
    return _DecoderGradient.apply(out, W_dec, values.detach(), support)
