"""The geometric median: the point with the least summed distance to all rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def mean_of_rows(x: Float[Tensor, "rows d"], chunk: int = 4096) -> Float[Tensor, " d"]:
    """In float64, without a copy of all of x in it."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(chunk):
        total += part.sum(0, dtype=torch.float64)
    return total / len(x)


@torch.no_grad()
def geometric_median(
    x: Float[Tensor, "rows d"], *, tolerance: float = 1e-6, max_iterations: int = 200, chunk: int = 4096
) -> Float[Tensor, " d"]:
    """Weiszfeld's iteration from the mean, with Vardi and Zhang's step where it meets a row (PNAS 97, 2000).

    Stops when a step is shorter than `tolerance` times the rows' mean distance; activations take some five iterations.
    Distances are computed in x's dtype, sums of them in float64. Returned in x's dtype.
    """
    point = mean_of_rows(x, chunk)
    for _ in range(max_iterations):
        weights, distances, coincident = torch.zeros(3, dtype=torch.float64, device=x.device)
        weighted = torch.zeros_like(point)
        for part in x.split(chunk):
            distance = torch.linalg.vector_norm(part - point.to(x.dtype), dim=-1)
            w = torch.where(distance == 0, 0, distance.reciprocal())
            weights += w.sum(dtype=torch.float64)
            weighted += w @ part
            distances += distance.sum(dtype=torch.float64)
            coincident += (distance == 0).sum()
        if weights == 0:  # all rows are the point
            break
        # A row at the point itself pulls with a force of at most 1 in any direction: it shortens the step.
        force = (weighted - weights * point).norm()
        step = torch.clamp(1 - coincident / force, min=0) if force > 0 else torch.zeros_like(force)
        new = point + step * (weighted / weights - point)
        moved = (new - point).norm()
        point = new
        if moved <= tolerance * distances / x.shape[0]:
            break
    return point.to(x.dtype)
