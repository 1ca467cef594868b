"""Next-token cross-entropy of a Hugging Face language model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel


def precision(autocast: str, device: torch.device | str) -> AbstractContextManager[Any]:
    if autocast == "none":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, autocast))


def next_token_loss(
    model: PreTrainedModel, tokens: Int[Tensor, "batch length_plus_1"], autocast: str = "none"
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats per token, float32) of tokens[:, 1:] given what stands before them."""
    with precision(autocast, tokens.device):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel, tokens: Int[Tensor, "contexts length_plus_1"], *, batch: int, autocast: str = "none"
) -> float:
    """next_token_loss over many contexts, `batch` at a time; `tokens` may be on another device than the model."""
    training = model.training
    model.eval()
    total = 0.0
    for part in tokens.split(batch):
        total += next_token_loss(model, part.to(model.device), autocast).item() * len(part)
    model.train(training)
    return total / len(tokens)
