from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from sae_tools.models.load import LanguageModel
from sae_tools.models.parameters import memory_bytes, parameter_count
from sae_tools.models.size import flops_per_token
from tests.models.conftest import Pair


def test_parameters_are_counted_once(pair: Pair):
    assert parameter_count(pair.model.bridge) == pair.hf.num_parameters()
    assert memory_bytes(pair.model.bridge) >= 4 * pair.hf.num_parameters()


def test_flops_are_those_of_the_matrix_products(pair: Pair):
    """torch's own counter sees full (not causal) attention, which is twice what ours takes for it."""
    context = 20
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair.model.bridge(pair.tokens[:1])  # whose attention is plain matrix products; fused ones are not counted
    cfg = pair.model.bridge.cfg
    causal = 2 * cfg.n_heads * cfg.d_head * context * pair.model.n_layers
    assert counter.get_total_flops() == context * (flops_per_token(pair.model, context=context) + causal)


def test_flops_grow_with_the_last_layer(gpt2: LanguageModel):
    one, two, three = (flops_per_token(gpt2, layer) for layer in range(3))
    assert two == 2 * one and three == 3 * one
    assert flops_per_token(gpt2) == three + 2 * 32 * 264
