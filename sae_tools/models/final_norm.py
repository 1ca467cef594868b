"""The final norm and the unembedding as plain tensors: from the last residual stream to the logits.

    logits = cap( (((r − mean r) / σ · w + b) W_U + b_U) / c ),   σ = sqrt(mean (r − mean r)² + eps)

with LayerNorm; RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467) does not subtract the mean and has no bias, and
cap(z) = C · tanh(z / C) where the model has a soft cap. c is 1 but in Granite (`logits_scaling`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel, refuse_processed
from sae_tools.models.unwrap import unwrapped


@dataclass(frozen=True)
class FinalNorm:
    """Computes in float32 (or finer), as the models do, whatever precision they run in."""

    weight: Float[Tensor, " d"]
    """What the normalised stream is multiplied by: 1 + w for Gemma, whose stored w is an offset."""
    bias: Float[Tensor, " d"] | None
    """None for RMSNorm."""
    centres: bool
    """True for LayerNorm, which subtracts the mean over the channels; False for RMSNorm."""
    eps: float
    """Added under the root."""

    @staticmethod
    def of(model: LanguageModel) -> FinalNorm:
        """Read off the model and compared with its own module on random input; UserError for a norm of another kind."""
        refuse_processed(model.bridge)
        module = unwrapped(model.bridge.ln_final)
        weight = getattr(module, "weight", None)
        eps = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), None)
        if weight is None or eps is None:
            raise UserError(
                f"The final norm of {model.name} ({type(module).__name__}) is neither LayerNorm nor RMSNorm."
            )
        offset = 1.0 if getattr(model.bridge.cfg, "rmsnorm_uses_offset", False) else 0.0
        bias = getattr(module, "bias", None)
        norm = FinalNorm(
            weight.detach().float() + offset,
            None if bias is None else bias.detach().float(),
            isinstance(module, torch.nn.LayerNorm),
            float(eps),
        )
        norm._compare_with(module, model)
        return norm

    def _compare_with(self, module: torch.nn.Module, model: LanguageModel) -> None:
        generator = torch.Generator().manual_seed(0)
        resid = (3 * torch.randn(4, model.d_model, generator=generator) + 0.5).to(model.device, model.dtype)
        with torch.no_grad():
            theirs = module(resid).float()
        tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
        ours, atol = self.apply(resid).float(), tolerance * float(theirs.abs().max())
        if not torch.allclose(ours, theirs, rtol=tolerance, atol=atol):
            raise UserError(
                f"The final norm of {model.name} ({type(module).__name__}) is neither LayerNorm nor RMSNorm."
            )

    def centred(self, resid: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The residual stream in float32 without its mean over the channels (RMSNorm: with it)."""
        resid = resid if resid.dtype == torch.float64 else resid.float()
        return resid - resid.mean(-1, keepdim=True) if self.centres else resid

    def scale(self, resid: Float[Tensor, "... d"]) -> Float[Tensor, "... 1"]:
        """σ, what the centred stream is divided by; equals TransformerLens's `ln_final.hook_scale`."""
        return (self.centred(resid).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def normalise(self, resid: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Centred and divided by the scale; before weight and bias (`ln_final.hook_normalized`)."""
        centred = self.centred(resid)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def apply(self, resid: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The whole norm, weight and bias included."""
        out = self.normalise(resid) * self.weight.to(resid.device)
        return out if self.bias is None else out + self.bias.to(resid.device)


def unembed(model: LanguageModel) -> tuple[Float[Tensor, "d V"], Float[Tensor, " V"], float | None]:
    """(W_U, b_U, soft cap): the map from the final norm's output to the logits.

    W_U is a view of the model's own weight (transposed, not contiguous, shared with the embedding in tied models): do
    not write to it. b_U is zeros where the model has none. Both are divided by what the model divides its logits by.
    The cap is None in most models (Gemma-2: 30).
    """
    refuse_processed(model.bridge)
    cap = getattr(model.bridge.cfg, "output_logits_soft_cap", None)
    W_U, b_U = model.bridge.W_U.detach(), model.bridge.b_U.detach()
    scaling = getattr(getattr(model.bridge.original_model, "config", None), "logits_scaling", None)
    if scaling is not None and scaling != 1:
        W_U, b_U = W_U / scaling, b_U / scaling
    return W_U, b_U, float(cap) if cap is not None and cap > 0 else None


def logits_from_resid(model: LanguageModel, resid: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
    """Logits from the last layer's `resid_post`, through our own final norm and unembedding, in float32."""
    W_U, b_U, cap = unembed(model)
    logits = FinalNorm.of(model).apply(resid) @ W_U.float() + b_U.float()
    return logits if cap is None else cap * torch.tanh(logits / cap)
