"""Counterparts of features: those that fire with them, here and in the other dictionaries of a report."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from sae_tools.analysis.cooccurrence import Correlations

COSINE_ROWS = 4096


def correlation_tensors(
    results: list[Correlations], directions: list[Float[Tensor, "d_sae d_model"] | None], i: int, matches: int
) -> dict[str, Tensor]:
    """The arrays of dictionary i."""
    own, others = results[i].own, results[i].others
    features = own.feature.shape[0]
    rest = [other for j, other in enumerate(directions) if j != i]
    cosines = [match_cosines(directions[i], rest[j], best.feature) for j, best in enumerate(others)]

    def stacked(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.stack(tensors, 1) if tensors else torch.empty(features, 0, matches, dtype=dtype)

    return {
        "correlated_feature": own.feature,
        "correlated_value": own.value,
        "match_feature": stacked([best.feature for best in others], torch.int32),
        "match_value": stacked([best.value for best in others], torch.float32),
        "match_cosine": stacked(cosines, torch.float32),
    }


def match_cosines(
    own: Float[Tensor, "d_sae d_model"] | None,
    other: Float[Tensor, "d_other d_model"] | None,
    match: Int32[Tensor, "d_sae count"],
) -> Float32[Tensor, "d_sae count"]:
    """Cosine between the residual directions of each feature and its matches; NaN where there is no such thing."""
    cosines = torch.full(match.shape, torch.nan)
    if own is None or other is None:
        return cosines
    for rows in torch.arange(len(own)).split(COSINE_ROWS):
        index = match[rows].long()
        found = torch.cosine_similarity(own[rows, None].float(), other[index.clamp(min=0)].float(), dim=-1, eps=1e-30)
        cosines[rows] = torch.where(index < 0, torch.nan, found)
    return cosines
