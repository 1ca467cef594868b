"""What the model's last residual stream says about the next token: losses from the stream, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm, unembed
from sae_tools.models.intervene import run_and_capture
from sae_tools.models.load import LanguageModel
from sae_tools.models.plain import agree, check_tokens
from sae_tools.models.sites import resolve_site

LOGIT_BYTES = 16 * 2**20
"""Bound on the logits that are held at once."""


@dataclass(frozen=True)
class Prediction:
    """The final norm and the unembedding, float32 whatever precision the model runs in."""

    norm: FinalNorm
    W_U: Float[Tensor, "d vocabulary"]
    """`unembed`'s, in the model's dtype: not to be written to."""
    bias: Float[Tensor, " vocabulary"]
    """The norm's bias through the unembedding, and the unembedding's own."""
    cap: float | None
    """Soft cap on the logits."""

    @staticmethod
    @torch.no_grad()
    def of(model: LanguageModel) -> Prediction:
        """Raises UserError for a model whose final norm is neither LayerNorm nor RMSNorm, and for one that makes its
        logits in another way: what comes out here is compared with its own on a few tokens."""
        norm = FinalNorm.of(model)
        W_U, b_U, cap = unembed(model)
        bias = b_U.float() if norm.bias is None else b_U.float() + norm.bias @ W_U.float()
        prediction = Prediction(norm, W_U, bias, cap)
        prediction._compare_with(model)
        return prediction

    def _compare_with(self, model: LanguageModel) -> None:
        final = resolve_site(model, f"resid_post@{model.n_layers - 1}")
        clean = run_and_capture(model, check_tokens(model), [final])
        ours = self._logits(clean.activations[final.name].flatten(0, 1), self.W_U.float())
        if not agree(clean.logits.flatten(0, 1), ours):
            raise UserError(f"The logits of {model.name} are not its final norm's output through its unembedding.")

    def _logits(
        self, resid: Float[Tensor, "rows d"], W_U: Float[Tensor, "d vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """W_U: float32."""
        logits = torch.addmm(self.bias, self.norm.normalise(resid) * self.norm.weight, W_U)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @torch.no_grad()
    def losses(self, resid: Float[Tensor, "rows d"], target: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """-log p(target) in nats, from the last layer's resid_post at the token before."""
        out = []
        chunk = max(1, LOGIT_BYTES // (4 * self.W_U.shape[1]))
        W_U = self.W_U.float()
        for rows, wanted in zip(resid.split(chunk), target.split(chunk), strict=True):
            logits = self._logits(rows, W_U)
            out.append(torch.logsumexp(logits, 1) - logits.gather(1, wanted.long().unsqueeze(1)).squeeze(1))
        return torch.cat(out) if out else resid.new_zeros(0, dtype=torch.float32)
