"""What is decayed, and that a study can bring its own optimiser."""

from __future__ import annotations

import pytest
import torch

from sae_tools.config import LMArchitectureConfig, LMTrainingConfig
from sae_tools.errors import UserError
from sae_tools.lm.model import build_model
from sae_tools.lm.optimisers import OPTIMISERS, build_optimiser, register


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_matrices_are_decayed_and_nothing_else(kind: str, tied: bool):
    cfg = LMArchitectureConfig.model_validate(
        {"kind": kind, "n_layers": 1, "d_model": 16, "n_heads": 2, "context_length": 8, "tie_embeddings": tied}
    )
    model = build_model(cfg, vocabulary=50, bos_token_id=0, eos_token_id=0, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimiser(model, LMTrainingConfig(weight_decay=0.3)).param_groups
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(names)
    for name, value in decay.items():
        plain = name.endswith("bias") or any(part in name for part in ("ln_", "norm", "wte", "wpe", "embed_tokens"))
        assert value == (0.0 if plain else 0.3), name
    assert ("lm_head.weight" in decay) != tied


def test_registered_optimisers_are_found_and_others_named():
    @register("plain-sgd")
    def plain_sgd(model: torch.nn.Module, cfg: LMTrainingConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=cfg.lr)

    try:
        built = build_optimiser(torch.nn.Linear(2, 2), LMTrainingConfig(optimizer="plain-sgd", lr=0.5))
        assert isinstance(built, torch.optim.SGD) and built.param_groups[0]["lr"] == 0.5
    finally:
        del OPTIMISERS["plain-sgd"]
    with pytest.raises(UserError, match="expected one of adamw, found 'plain-sgd'"):
        build_optimiser(torch.nn.Linear(2, 2), LMTrainingConfig(optimizer="plain-sgd"))
