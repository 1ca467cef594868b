"""JumpReLU: each feature fires above a threshold of its own, which is learned (Rajamanoharan et al. 2024, arXiv
2407.14435)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_tools.dictionaries.base import Coefficient, Dictionary, Objective, Selected
from sae_tools.dictionaries.relu import DENSE_ABOVE
from sae_tools.dictionaries.sparse import Support, select_above, squared_norm
from sae_tools.errors import UserError


class JumpReLUDictionary(Dictionary):
    """f = z where z > θ, else 0; z = (x - b_dec) W_enc + b_enc, one θ >= 0 for each feature.

    Loss: ‖x - x̂‖² summed over dimensions + l1 · penalty, both averaged over rows. Penalty: `step` is L0, `quadratic`
    2 (L0 - target_l0)² / target_l0 (SAELens's form of the target in Rajamanoharan et al.), L0 of the row.

    Neither f nor L0 is differentiable in θ; its gradient is the paper's estimator: where |z - θ| < ε/2, -θ/ε times the
    gradient of f and -1/ε times that of the L0, elsewhere 0. z gets the gradient of f where the feature fires, none
    from the penalty. So beside active features only those within ε/2 below their threshold have to be looked at.

    θ itself is the parameter, not its logarithm as in the paper: Adam moves a parameter by about the learning rate a
    step, which on a logarithm is a factor, and thresholds that start small would hardly move. A step that takes one
    below 0 leaves it at 0.
    """

    def __init__(
        self,
        encoder: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        threshold: Float[Tensor, " d_sae"],
        *,
        bandwidth: float = 0.05,
        penalty: Literal["step", "quadratic"] = "step",
        target_l0: float | None = None,
        unit_decoder: bool = True,
        subtract_b_dec: bool = True,
        W_skip: Tensor | None = None,
    ):
        """bandwidth: ε. unit_decoder: as in training; an SAE of others may have any decoder.

        Raises UserError where the penalty is quadratic and target_l0 is not above 0 and at most d_sae.
        """
        super().__init__(encoder, b_enc, W_dec, b_dec, subtract_b_dec=subtract_b_dec, W_skip=W_skip)
        if penalty == "quadratic" and not 0 < (target_l0 or 0) <= self.d_sae:
            raise UserError(f"architecture.target_l0 is {target_l0}, but must be above 0 and at most {self.d_sae}.")
        self.threshold = nn.Parameter(threshold)
        self.bandwidth = bandwidth
        self.penalty: Literal["step", "quadratic"] = penalty
        self.target_l0 = target_l0
        self.unit_decoder = unit_decoder

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        pre = self.pre_activations(x)
        return torch.where(pre > self.threshold, pre, 0.0).relu()

    def select(self, centred: Float[Tensor, "rows d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Selected | None:
        nearest = self.threshold.detach() - self.bandwidth / 2
        active = select_above(centred, self.encoder, self.b_enc, nearest, DENSE_ABOVE)
        return None if active is None else Selected(active, None)

    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        f, fires = _JumpReLU.apply(z, on.per_feature(self.threshold), self.bandwidth)
        error = y - on.decode(f, self.W_dec)
        penalty = self._penalty(fires, on)
        return Objective(f, error, squared_norm(error) + l1 * penalty, {"l0_penalty": penalty.detach()})

    def _penalty(self, fires: Tensor, on: Support) -> Float[Tensor, ""]:
        if self.target_l0 is None or self.penalty == "step":
            return fires.sum()
        l0 = on.decode(fires, torch.ones_like(self.threshold).unsqueeze(1))  # its sum over each row's features
        return 2 / self.target_l0 * (l0 - self.target_l0).pow(2).sum()

    @torch.no_grad()
    def after_step_(self, terms: dict[str, Float[Tensor, ""]], frozen: Float[Tensor, ""]) -> None:
        self.threshold.clamp_(min=0)  # which they are before a step that is not taken, too

    def row_penalties(self, f: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " rows"]:
        l0 = (f > 0).sum(-1).to(f)
        if self.target_l0 is None or self.penalty == "step":
            return l0
        return 2 / self.target_l0 * (l0 - self.target_l0).pow(2)


class _JumpReLU(torch.autograd.Function):
    """(z where z > θ, 1 where z > θ), with the estimator's gradients; θ broadcasts against z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float):
        fires = z > threshold
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(fires, z, 0.0), fires.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        z, threshold = ctx.saved_tensors
        g_f, g_fires = grads
        near = (z - threshold).abs_() < ctx.bandwidth / 2
        g_z = torch.where(z > threshold, g_f, 0.0)
        g_threshold = torch.where(near, torch.addcmul(g_fires, g_f, threshold), 0.0).div_(-ctx.bandwidth)
        return g_z, g_threshold if threshold.shape == z.shape else g_threshold.sum(0), None
