"""The steps of a sparse autoencoder on active pairs, differentiable in the parameters.

Autograd would scatter the gradient of the chosen activations into a dense [rows, d_sae] matrix and multiply with it;
these functions say what the gradients are as sums over pairs. Inputs get none.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.dictionaries.sparse.pairs import Pairs


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, centred: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor | None, pairs: Pairs
    ):
        ctx.save_for_backward(centred, encoder)
        ctx.pairs = pairs
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        centred, encoder = ctx.saved_tensors
        g = grads[0].contiguous()
        g_bias = ctx.pairs.total(g)
        g_b_dec = -(g_bias @ encoder) if ctx.needs_input_grad[4] else None
        return None, None, ctx.pairs.sum_by_feature(g, centred), g_bias, g_b_dec, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, W_dec: Tensor, pairs: Pairs):
        ctx.save_for_backward(f, W_dec)
        ctx.pairs = pairs
        return pairs.sum_by_row(f.detach(), W_dec.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        f, W_dec = ctx.saved_tensors
        g = grads[0].contiguous()
        g_f = ctx.pairs.dots(g, W_dec) if ctx.needs_input_grad[0] else None
        g_W_dec = ctx.pairs.sum_by_feature(f, g) if ctx.needs_input_grad[1] else None
        return g_f, g_W_dec, None


class _PerFeature(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, pairs: Pairs):
        ctx.pairs = pairs
        return numbers.index_select(0, pairs.features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        return ctx.pairs.total(grads[0].contiguous()), None


class _SquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, error: Tensor):
        ctx.save_for_backward(error)
        return torch.linalg.vector_norm(error).square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (error,) = ctx.saved_tensors
        return error * (2 * grads[0])


def squared_norm(error: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
    """Σ e², read once forwards and once backwards, where `e.pow(2).sum()` makes three copies."""
    return _SquaredNorm.apply(error)


def preactivations_at(
    values: Float[Tensor, " pairs"],
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"] | None,
    pairs: Pairs,
) -> Float[Tensor, " pairs"]:
    """Pre-activations known already, as a differentiable function of encoder, b_enc and b_dec.

    values: <centred row, encoder row> + b_enc at the pairs. centred: x - b_dec; x itself where b_dec is None.
    """
    return _PreActivations.apply(values, centred, encoder, b_enc, b_dec, pairs)


def decode_at(
    f: Float[Tensor, " pairs"], W_dec: Float[Tensor, "d_sae d_out"], pairs: Pairs
) -> Float[Tensor, "rows d_out"]:
    """Σ f · decoder row over each row's pairs, differentiable in f and W_dec."""
    return _Decode.apply(f, W_dec, pairs)


def per_feature(numbers: Float[Tensor, " d_sae"], pairs: Pairs) -> Float[Tensor, " pairs"]:
    """Each pair's feature's number, differentiable."""
    return _PerFeature.apply(numbers, pairs)
