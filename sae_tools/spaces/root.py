"""The metric of the logits, pulled back to the residual stream, and its root.

An error e in an update u changes the centred logits, to first order with the final norm's scale frozen, by
(e / σ) M_c with M_c = P Γ W_U C: Γ the norm's weight, P = I - 11ᵀ/d where the norm centres (LayerNorm; P = I for
RMSNorm), C the centring over the vocabulary, which the softmax ignores. Its squared length is e G eᵀ / σ² with the
d x d Gram matrix G = M_c M_cᵀ = A Aᵀ, so in coordinates u A / σ the plain squared error is that of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm, unembed
from sae_tools.models.language_model import LanguageModel

RELATIVE_CUTOFF = 1e-12
"""Eigenvalues of G below this share of the largest count as zero (double precision leaves about 1e-15 d there)."""


@dataclass(frozen=True)
class Root:
    """A root of a metric: G = A Aᵀ, float64. Null directions are kept, as zero columns at the end."""

    matrix: Float[Tensor, "d d"]
    """A: eigenvectors by falling eigenvalue, each with its largest component positive, times sqrt(eigenvalue)."""
    inverse: Float[Tensor, "d d"]
    """A⁺, the Moore-Penrose inverse."""
    rank: int


def gram(
    W_U: Float[Tensor, "d vocabulary"], weight: Float[Tensor, " d"], centres: bool, *, chunk: int = 8192
) -> Float[Tensor, "d d"]:
    """G = P Γ W_U C W_Uᵀ Γ P in float64, the vocabulary taken `chunk` columns at a time.

    W_U: unembedding, any floating dtype. weight: the final norm's weight Γ (with Gemma's 1 + w already added).
    centres: whether the norm subtracts the mean over d (LayerNorm) or not (RMSNorm).
    """
    d, vocabulary = W_U.shape
    total = torch.zeros(d, dtype=torch.float64, device=W_U.device)
    for part in W_U.split(chunk, dim=1):
        total += part.double().sum(1)
    mean = (total / vocabulary).unsqueeze(1)
    G = torch.zeros(d, d, dtype=torch.float64, device=W_U.device)
    for part in W_U.split(chunk, dim=1):
        M = (part.double() - mean) * weight.double().unsqueeze(1)
        if centres:
            M = M - M.mean(0)
        G.addmm_(M, M.T)
    return G


def root_of(G: Float[Tensor, "d d"]) -> Root:
    """The root of a positive semi-definite matrix in the convention of this project (DESIGN, section 4).

    Any other root differs by a rotation: the loss is the same, and Adam's path is not, so the convention is fixed:
    eigenvectors by falling eigenvalue, the sign of each such that its largest component in absolute value is positive.

    Raises UserError if G is zero or not finite.
    """
    if not torch.isfinite(G).all():
        raise UserError("The metric of the logits is not finite: the unembedding holds NaN or infinite weights.")
    values, vectors = torch.linalg.eigh(G.double())
    values, vectors = values.flip(0), vectors.flip(1)
    if values[0] <= 0:
        raise UserError("The metric of the logits is zero: the model's unembedding gives every token the same logit.")
    largest = vectors.abs().argmax(0, keepdim=True)
    vectors = vectors * vectors.gather(0, largest).sign()
    keep = values > RELATIVE_CUTOFF * values[0]
    roots = torch.where(keep, values, torch.zeros_like(values)).sqrt()
    inverse_roots = torch.where(keep, roots.clamp_min(torch.finfo(torch.float64).tiny).reciprocal(), roots)
    return Root(vectors * roots, inverse_roots.unsqueeze(1) * vectors.T, int(keep.sum()))


def logit_root(model: LanguageModel) -> Root:
    """The root of the model's logit metric, from its final norm and unembedding (a soft cap on the logits is ignored).

    Costs one d x d x vocabulary product in float64, 1 to 2 s for GPT-2 small on two cores; pass the result on to
    `build_space` and `forward_chain` where several need it.
    """
    norm = FinalNorm.of(model)
    with torch.no_grad():
        return root_of(gram(unembed(model)[0].detach(), norm.weight.detach(), norm.centres))
