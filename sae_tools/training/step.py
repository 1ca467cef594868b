"""The training step as a pure function: (parameters, rows) -> (loss, gradients, counts).

The loop around it owns optimisers, devices and (later) ranks. Gradients are returned, not accumulated, so that they can
be reduced, checked and clipped before anything is changed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.dictionaries import Coefficient, Dictionary, Pull, remove_parallel_gradient_


class Step(NamedTuple):
    """What one batch says about one dictionary."""

    loss: Float[Tensor, ""]
    """The objective, averaged over rows."""
    gradients: tuple[Tensor, ...]
    """Of the loss, one for each of `dictionary.parameters()`, in that order. Where decoder rows are kept at norm 1,
    without the part along them."""
    norm: Float[Tensor, ""]
    """Of all gradients together."""
    fired: Int[Tensor, " d_sae"]
    """On how many of the rows each feature was > 0, int64."""
    terms: dict[str, Float[Tensor, ""]]
    """Parts of the loss and what goes with them: `squared_error` (summed over dimensions, mean over rows), `l0`, …"""


def training_step(
    dictionary: Dictionary,
    x: Float[Tensor, "rows d_in"],
    *,
    target: Float[Tensor, "rows d_out"] | None = None,
    dead: Bool[Tensor, " d_sae"] | None = None,
    l1: Coefficient = 0.0,
    pull: Pull | None = None,
) -> Step:
    """Loss, gradients and firing counts of `dictionary` on the rows `x` (in the dictionary's space).

    target: what is to be reconstructed, in the space that a two-site dictionary writes; None: x.
    dead: features that count as dead (for AuxK), or None to leave the auxiliary loss out.
    l1: the coefficient of the sparsity penalty at this step.
    pull: the gradient of a loss that is measured elsewhere, not part of the value.
    Reads the parameters and changes nothing.
    """
    out = dictionary.losses(x, target=target, dead=dead, l1=l1, pull=pull)
    named = dict(dictionary.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(out.loss, list(named.values())), strict=True))
    others, norms = list(gradients.values()), []
    if dictionary.unit_decoder:
        norms = [remove_parallel_gradient_(gradients["W_dec"], dictionary.W_dec)]
        others = [gradient for name, gradient in gradients.items() if name != "W_dec"]
    norm = torch.linalg.vector_norm(torch.stack([*norms, *torch._foreach_norm(others)]))
    terms = {name: term.detach() for name, term in out.terms.items()}
    return Step(out.loss.detach(), tuple(gradients.values()), norm, out.fired, terms)


def clip_divisor(norm: Float[Tensor, ""], max_norm: float) -> Float[Tensor, ""]:
    """What gradients of that norm are divided by to bring it down to `max_norm`, at least 1."""
    return (norm / max_norm).clamp(min=1.0)
