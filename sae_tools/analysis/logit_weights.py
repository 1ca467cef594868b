"""Logit weights: what a feature adds to the logits along the direct path, with the final norm's scale frozen.

    v_i = (1/σ)‾ · d_i P Γ W_U C

d_i what one unit of the feature adds to the residual stream, P and Γ the final norm's centring and weight, (1/σ)‾ the
mean over the corpus, C the centring over the vocabulary, which the softmax ignores (Bricken et al. 2023, 'Towards
Monosemanticity', who subtract the median instead, and approximate the norm by a diagonal).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.analysis.directions import residual_directions
from sae_tools.analysis.subject import Subject
from sae_tools.config_report import ReportConfig
from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm, unembed
from sae_tools.models.load import LanguageModel

BINS = 40
"""Even intervals of a feature's [least, largest] logit weight in its histogram."""
BLOCK_BYTES = 32 * 2**20
"""Bound on the logit weights that are held at once."""


@torch.no_grad()
def logit_weights(
    subject: Subject,
    model: LanguageModel,
    mean_inverse_scale: float | None,
    cfg: ReportConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Of every feature, per unit of activation (decoder row of norm 1 in its own space), on the CPU, n = cfg.logits:

    `logit_top_token` int32 [d_sae, n] and `logit_top_value` float32, the largest weights, largest first;
    `logit_bottom_token`, `logit_bottom_value`, the most negative first; `logit_histogram` int32 [d_sae, 40] over even
    intervals of `logit_range` float32 [d_sae, 2]; `logit_norm` float32 [d_sae], the weights' L2 norm over the
    vocabulary. Fewer than n where the vocabulary is smaller. Empty where no fixed map leads to the logits, or where
    mean_inverse_scale, the mean of 1/σ over the corpus, is not known. A soft cap on the logits is ignored.

    progress: called with the features done and all there are.
    """
    directions = residual_directions(subject, model, mean_inverse_scale)
    if directions is None or mean_inverse_scale is None:
        return {}
    try:
        norm = FinalNorm.of(model)
    except UserError:  # a norm that is no LayerNorm or RMSNorm: nothing linear
        return {}
    W_U = unembed(model)[0].float()
    mean = W_U.mean(1, dtype=torch.float64).float()
    parts: list[dict[str, Tensor]] = []
    done = 0
    for rows in directions.split(max(1, BLOCK_BYTES // (4 * W_U.shape[1]))):
        through = norm.centred(rows.to(W_U.device)) * norm.weight * mean_inverse_scale
        parts.append(_described(torch.mm(through, W_U) - (through @ mean).unsqueeze(1), min(cfg.logits, W_U.shape[1])))
        done += len(rows)
        progress(done, len(directions))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _described(v: Float[Tensor, "features vocabulary"], n: int) -> dict[str, Tensor]:
    top, bottom = v.topk(n, dim=1), v.topk(n, dim=1, largest=False)
    low, high = v.amin(1), v.amax(1)
    width = torch.where(high > low, high - low, torch.ones_like(low))
    interval = ((v - low.unsqueeze(1)) * (BINS / width).unsqueeze(1)).int().clamp(0, BINS - 1)
    interval += BINS * torch.arange(len(v), dtype=torch.int32, device=v.device).unsqueeze(1)
    histogram = torch.bincount(interval.flatten(), minlength=BINS * len(v)).view(len(v), BINS)
    described = {
        "logit_top_token": top.indices.int(),
        "logit_top_value": top.values,
        "logit_bottom_token": bottom.indices.int(),
        "logit_bottom_value": bottom.values,
        "logit_histogram": histogram.int(),
        "logit_range": torch.stack([low, high], dim=1),
        "logit_norm": v.norm(dim=1),
    }
    return {name: tensor.cpu() for name, tensor in described.items()}
