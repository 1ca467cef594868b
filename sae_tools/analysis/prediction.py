"""What the model's last residual stream says about the next token: losses from the stream, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.models.final_norm import FinalNorm, unembed
from sae_tools.models.load import LanguageModel

LOGIT_BYTES = 16 * 2**20
"""Bound on the logits that are held at once."""


@dataclass(frozen=True)
class Prediction:
    """The final norm and the unembedding, float32 whatever precision the model runs in."""

    norm: FinalNorm
    W_U: Float[Tensor, "d vocabulary"]
    """The model's own weight, in its dtype: not to be written to."""
    bias: Float[Tensor, " vocabulary"]
    """The norm's bias through the unembedding, and the unembedding's own."""
    cap: float | None
    """Soft cap on the logits."""

    @staticmethod
    @torch.no_grad()
    def of(model: LanguageModel) -> Prediction:
        """Raises UserError for a model whose final norm is neither LayerNorm nor RMSNorm."""
        norm = FinalNorm.of(model)
        W_U, b_U, cap = unembed(model)
        bias = b_U.float() if norm.bias is None else b_U.float() + norm.bias @ W_U.float()
        return Prediction(norm, W_U, bias, cap)

    @torch.no_grad()
    def losses(self, resid: Float[Tensor, "rows d"], target: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """-log p(target) in nats, from the last layer's resid_post at the token before."""
        out = []
        chunk = max(1, LOGIT_BYTES // (4 * self.W_U.shape[1]))
        W_U = self.W_U.float()
        for rows, wanted in zip(resid.split(chunk), target.split(chunk), strict=True):
            logits = torch.addmm(self.bias, self.norm.normalise(rows) * self.norm.weight, W_U)
            if self.cap is not None:
                logits = self.cap * torch.tanh(logits / self.cap)
            out.append(torch.logsumexp(logits, 1) - logits.gather(1, wanted.long().unsqueeze(1)).squeeze(1))
        return torch.cat(out) if out else resid.new_zeros(0, dtype=torch.float32)
