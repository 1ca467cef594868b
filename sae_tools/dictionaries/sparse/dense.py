"""The objective on all features: the reference for the sparse path, and faster where much of a dictionary is active.

Rows come in micro-batches here too; their gradients are added up, so that nothing of size rows x d_sae outlives one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_tools.dictionaries.sparse.product import affine
from sae_tools.dictionaries.sparse.select import micro_batch_rows


class _WithGradients(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor):
        ctx.gradients = gradients
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        return None, None, *(grads[0] * gradient for gradient in ctx.gradients)


def dense_gradients(
    objective: Callable[[Tensor, slice], tuple[Float[Tensor, ""], dict[str, Tensor]]],
    x: Float[Tensor, "rows d_in"],
    encoder: nn.Parameter,
    b_enc: nn.Parameter,
    b_dec: nn.Parameter,
    others: list[nn.Parameter],
    *,
    subtract_b_dec: bool = True,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """(loss, terms) of `objective(z, which rows)`, added up over micro-batches; the loss is differentiable in encoder,
    b_enc, b_dec and `others` (what else the objective reads).

    z: pre-activations (x - b_dec) W_enc + b_enc of all features; x W_enc + b_enc without `subtract_b_dec`. terms:
    tensors to be added up, detached.
    """
    total, terms = x.new_zeros(()), {}
    gradients = [torch.zeros_like(p) for p in (encoder, b_enc, b_dec, *others)]
    rows = micro_batch_rows(len(encoder), x.device)
    for part in (slice(start, start + rows) for start in range(0, max(1, len(x)), rows)):
        with torch.no_grad():
            centred = x[part] - b_dec if subtract_b_dec else x[part]
            z = affine(centred, encoder, b_enc)
        z.requires_grad_()
        with torch.enable_grad():
            loss, parts = objective(z, part)
            wanted = [z, b_enc, b_dec, *others]
            g, *g_others = torch.autograd.grad(loss, wanted, materialize_grads=True)
        with torch.no_grad():
            per_feature = g.sum(0)
            gradients[0].addmm_(g.T, centred)
            gradients[1].add_(per_feature)
            if subtract_b_dec:
                gradients[2].sub_(per_feature @ encoder)
            for gradient, more in zip(gradients[1:], g_others, strict=True):
                gradient.add_(more)
            total += loss.detach()
            for name, value in parts.items():
                terms[name] = terms[name] + value if name in terms else value
    return _WithGradients.apply(total, gradients, encoder, b_enc, b_dec, *others), terms
