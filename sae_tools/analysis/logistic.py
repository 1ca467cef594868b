"""Logistic regression and how well it tells two classes apart. Small and deterministic; scipy does the work."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

RIDGE = 0.01
"""Of the weights on inputs of variance 1, against a loss that is a mean; the same for every probe."""
ITERATIONS = 300


class Probe(NamedTuple):
    """score = (x - centre) / spread · weights + bias; above 0: yes."""

    centre: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " d"]
    bias: float

    def __call__(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, " rows"]:
        scaled = self.weights / self.spread
        return x @ scaled.astype(x.dtype) + (self.bias - float(self.centre @ scaled))


def fit_probe(x: Float[np.ndarray, "rows d"], yes: Bool[np.ndarray, " rows"], ridge: float = RIDGE) -> Probe:
    """Minimises ½ (mean loss of the positives + that of the negatives) + ridge / 2 ‖w‖², inputs standardised.

    Both classes weigh the same, whatever their sizes. Convex; solved by L-BFGS. x: float32 suffices. Both classes must
    be there (ValueError).
    """
    if yes.all() or not yes.any():
        raise ValueError("a probe needs both classes")
    centre, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    spread[spread < 1e-12] = 1.0
    scaled = ((x - centre) / spread).astype(x.dtype)
    sign = np.where(yes, 1.0, -1.0)
    weight = np.where(yes, 0.5 / yes.sum(), 0.5 / (~yes).sum())

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, bias = parameters[:-1], parameters[-1]
        margin = sign * ((scaled @ w.astype(x.dtype)).astype(np.float64) + bias)
        loss = float(weight @ np.logaddexp(0, -margin)) + 0.5 * ridge * float(w @ w)
        slope = -weight * sign * expit(-margin)
        gradient = (slope.astype(x.dtype) @ scaled).astype(np.float64) + ridge * w
        return loss, np.append(gradient, slope.sum())

    found = minimize(
        objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "gtol": 1e-5}
    )
    return Probe(centre, spread, found.x[:-1], float(found.x[-1]))


class Separation(NamedTuple):
    balanced_accuracy: float
    """Mean of the shares of positives and of negatives that are told right; 0.5 by chance."""
    auc: float
    """Chance that a random positive scores above a random negative, ties counted half; 0.5 by chance."""


def separation(score: Float[np.ndarray, " rows"], yes: Bool[np.ndarray, " rows"]) -> Separation:
    """Both classes must be there (ValueError)."""
    positives, negatives = int(yes.sum()), int((~yes).sum())
    if not positives or not negatives:
        raise ValueError("both classes must be there")
    right = 0.5 * float((score[yes] > 0).mean() + (score[~yes] <= 0).mean())
    ranks = rankdata(score)[yes].sum()
    return Separation(right, float((ranks - positives * (positives + 1) / 2) / (positives * negatives)))
