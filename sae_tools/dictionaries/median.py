"""The geometric median: the point with the least summed distance to all rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def geometric_median(
    x: Float[Tensor, "rows d"], *, tolerance: float = 1e-7, max_iterations: int = 200, chunk: int = 4096
) -> Float[Tensor, " d"]:
    """Weiszfeld's iteration from the mean, in float64, with Vardi and Zhang's step where it meets a row (PNAS 2000).

    Stops when a step is shorter than `tolerance` times the rows' mean distance. Returned in x's dtype.
    """
    point = x.mean(0, dtype=torch.float64)
    for _ in range(max_iterations):
        weights = torch.zeros((), dtype=torch.float64, device=x.device)
        weighted = torch.zeros_like(point)
        pull = torch.zeros_like(point)
        distances = torch.zeros_like(weights)
        coincident = torch.zeros_like(weights)
        for part in x.split(chunk):
            difference = part.double() - point
            distance = difference.norm(dim=-1)
            here = distance == 0
            w = torch.where(here, 0.0, distance.clamp_min(torch.finfo(torch.float64).tiny).reciprocal())
            weights += w.sum()
            weighted += w @ part.double()
            pull += w @ difference
            distances += distance.sum()
            coincident += here.sum()
        if weights == 0:  # all rows are the point
            break
        # A row at the point itself pulls with a force of at most 1 in any direction: it shortens the step.
        force = pull.norm()
        step = torch.clamp(1 - coincident / force, min=0.0) if force > 0 else torch.zeros_like(force)
        new = point + step * (weighted / weights - point)
        moved = (new - point).norm()
        point = new
        if moved <= tolerance * distances / x.shape[0]:
            break
    return point.to(x.dtype)
