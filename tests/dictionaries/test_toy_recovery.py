"""Planted sparse features are found again: twice as many of them as dimensions, by every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.config import DictionaryConfig, ReLUConfig, TopKConfig
from sae_tools.dictionaries import Dictionary, build_dictionary, normalise_decoder_, remove_parallel_gradient_
from sae_tools.seeds import generator

D, TRUE, ACTIVE, BATCH = 24, 48, 3, 512


def planted(n: int, features: Tensor, g: torch.Generator, shift: Tensor) -> Tensor:
    """Rows that are sums of about ACTIVE of the true features with positive coefficients, plus a constant."""
    on = torch.rand(n, TRUE, generator=g) < ACTIVE / TRUE
    return (on * (0.5 + torch.rand(n, TRUE, generator=g))) @ features + shift


def train(architecture: Any, l1: float, lr: float, steps: int) -> tuple[Dictionary, Tensor]:
    g = generator(0, "toy")
    features = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=-1)
    shift = torch.randn(D, generator=g)
    cfg = DictionaryConfig(site="mlp_out@0", architecture=architecture, d_sae=2 * TRUE)
    dictionary = build_dictionary(cfg, D, g, planted(4096, features, g, shift))
    optimiser = torch.optim.Adam(dictionary.parameters(), lr=lr, fused=True)
    silent = torch.zeros(cfg.d_sae)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * min(1.0, 5 * (1 - step / steps))
        out = dictionary.losses(planted(BATCH, features, g, shift), dead=silent > 20, l1=l1)
        silent = torch.where(out.fired > 0, 0, silent + 1)
        gradients = torch.autograd.grad(out.loss, list(dictionary.parameters()))
        for parameter, gradient in zip(dictionary.parameters(), gradients, strict=True):
            parameter.grad = gradient
        if dictionary.unit_decoder:
            assert dictionary.W_dec.grad is not None
            remove_parallel_gradient_(dictionary.W_dec.grad, dictionary.W_dec.detach())
        optimiser.step()
        if dictionary.unit_decoder:
            normalise_decoder_(dictionary)
            assert step % 100 or (dictionary.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6
    return dictionary, features


@pytest.mark.parametrize(
    ("architecture", "l1", "steps"),
    [
        (TopKConfig(k=ACTIVE, aux_k=8), 0.0, 400),
        (ReLUConfig(), 0.3, 1000),
        (ReLUConfig(form="decoder-norm"), 0.3, 1000),
    ],
    ids=["topk", "relu-unit-norm", "relu-decoder-norm"],
)
def test_true_features_are_recovered(architecture: Any, l1: float, steps: int) -> None:
    dictionary, features = train(architecture, l1, lr=5e-3, steps=steps)
    learnt = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=-1)
    best = (features @ learnt.T).max(-1).values  # MMCS is their mean
    assert (best > 0.9).float().mean() >= 0.9, best.sort().values
