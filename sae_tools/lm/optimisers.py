"""Optimisers by name. A study that compares optimisers registers its own and names it in `training.optimizer`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sae_tools.config import LMTrainingConfig
from sae_tools.errors import UserError

Builder = Callable[[nn.Module, LMTrainingConfig], torch.optim.Optimizer]
OPTIMISERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """A decorator: the function below builds the optimiser called `name`.

    Each of its parameter groups follows the learning-rate schedule, times the group's `lr_scale` where it has one.
    """

    def add(builder: Builder) -> Builder:
        OPTIMISERS[name] = builder
        return builder

    return add


def build_optimiser(model: nn.Module, cfg: LMTrainingConfig) -> torch.optim.Optimizer:
    if cfg.optimizer not in OPTIMISERS:
        raise UserError(f"training.optimizer: expected one of {', '.join(OPTIMISERS)}, found {cfg.optimizer!r}.")
    return OPTIMISERS[cfg.optimizer](model, cfg)


def decayed(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay (matrices), and without (biases, norms, embeddings; a tied unembedding is one)."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices, others = [], []
    for parameter in model.parameters():
        (matrices if parameter.dim() >= 2 and id(parameter) not in embeddings else others).append(parameter)
    return matrices, others


@register("adamw")
def adamw(model: nn.Module, cfg: LMTrainingConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), fused."""
    matrices, others = decayed(model)
    groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
