"""The fast view: shares weights, equals the bridge, stops early, and is not used where it would be wrong."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sae_tools.models.capture import capture, trusted_view
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.plain import FINAL_RESID, plain_view
from sae_tools.models.sites import available_sites, resolve_site
from tests.models.conftest import Pair
from tests.tiny_models import tiny_model


def calls(model: LanguageModel, hooks: list[str]) -> Counter[str]:
    """How often each module of the view begins to compute while the hooks are read."""
    view = plain_view(model)
    assert view is not None
    counted: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(lambda _m, _a, name=name: counted.update([name]))
        for name, module in view.model.named_modules()
    ]
    try:
        capture(model, torch.zeros(1, 4, dtype=torch.int64), hooks)
    finally:
        for handle in handles:
            handle.remove()
    return counted


def test_view_computes_the_models_logits_from_the_same_memory(pair: Pair):
    view = plain_view(pair.model)
    assert view is not None
    with torch.no_grad():
        assert (view.model(pair.tokens, use_cache=False).logits - pair.logits()).abs().max() < 1e-4
    shared = {p.data_ptr() for p in pair.model.bridge.parameters()}
    assert all(p.data_ptr() in shared for p in view.model.parameters())
    assert not any(p.requires_grad for p in view.model.parameters())


def test_every_short_named_site_is_read_through_the_view(pair: Pair):
    hooks = [resolve_site(pair.model, name).hook_name for name in available_sites(pair.model)]
    assert trusted_view(pair.model, [*hooks, FINAL_RESID]) is not None


def test_nothing_after_the_last_site_runs(pair: Pair):
    assert trusted_view(pair.model, ["blocks.1.mlp.hook_post", "blocks.0.hook_mlp_out"]) is not None
    counted = calls(pair.model, ["blocks.1.mlp.hook_post", "blocks.0.hook_mlp_out"])
    blocks = "transformer.h" if pair.model.architecture.startswith("GPT2") else None
    blocks = blocks or ("gpt_neox.layers" if "NeoX" in pair.model.architecture else "model.layers")
    assert counted[f"{blocks}.0"] == counted[f"{blocks}.1"] == 1
    assert not any(name.startswith(f"{blocks}.{layer}") for name in counted for layer in range(2, 9))
    final = {"lm_head", "embed_out", "transformer.ln_f", "gpt_neox.final_layer_norm", "model.norm"}
    assert not final & set(counted)


def test_the_scale_needs_every_layer_and_no_unembedding(gpt2: LanguageModel):
    trusted_view(gpt2, [FINAL_RESID])
    counted = calls(gpt2, [FINAL_RESID])
    assert counted["transformer.h.2"] == 1
    assert counted["transformer.ln_f"] <= 1 and counted["lm_head"] == 0


def test_the_bridge_stops_early_too(gpt2: LanguageModel):
    counted: Counter[int] = Counter()
    handles = [
        block.register_forward_pre_hook(lambda _m, _a, layer=layer: counted.update([layer]))
        for layer, block in enumerate(gpt2.bridge.blocks)
    ]
    try:
        capture(gpt2, torch.zeros(1, 4, dtype=torch.int64), ["blocks.1.hook_mlp_out"], use_view=False)
    finally:
        for handle in handles:
            handle.remove()
    assert counted == {0: 1, 1: 1}


def test_hooks_are_gone_after_a_capture(gpt2: LanguageModel):
    capture(gpt2, torch.zeros(1, 4, dtype=torch.int64), ["blocks.1.hook_mlp_out"])
    view = plain_view(gpt2)
    assert view is not None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in view.model.modules())


def test_a_view_that_computes_something_else_is_not_used():
    model = load_model(tiny_model("llama"))
    view = plain_view(model)
    assert view is not None
    tokens = torch.arange(8)[None]
    expected = capture(model, tokens, ["blocks.1.hook_mlp_out"], use_view=False)["blocks.1.hook_mlp_out"]
    norm = view.blocks[1].get_submodule("post_attention_layernorm")
    norm._parameters["weight"] = torch.nn.Parameter(2 * norm.weight, requires_grad=False)  # of the view alone
    assert trusted_view(model, ["blocks.1.hook_mlp_out"]) is None
    assert trusted_view(model, ["blocks.0.hook_mlp_out"]) is not None
    found = capture(model, tokens, ["blocks.1.hook_mlp_out"])["blocks.1.hook_mlp_out"]
    assert torch.equal(found, expected)


def test_hook_points_inside_attention_are_left_to_the_bridge(gpt2: LanguageModel):
    assert trusted_view(gpt2, ["blocks.1.attn.hook_pattern"]) is None
    assert trusted_view(gpt2, ["blocks.1.ln2.hook_normalized"]) is None
    found = capture(gpt2, torch.arange(8)[None], ["blocks.1.ln2.hook_normalized"])
    assert found["blocks.1.ln2.hook_normalized"].shape == (1, 8, 32)


def test_gemma_gets_a_view_without_fused_attention(gemma: LanguageModel):
    view = plain_view(gemma)
    assert view is not None and view.model.config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert trusted_view(gemma, ["blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"]) is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_has_a_view_as_well(dtype: str):
    model = load_model(tiny_model("llama"), dtype=dtype)
    assert trusted_view(model, ["blocks.1.hook_mlp_out"]) is not None
    found = capture(model, torch.arange(8)[None], ["blocks.1.hook_mlp_out"])
    assert found["blocks.1.hook_mlp_out"].dtype == getattr(torch, dtype)
