"""Edits equal the same edits made by plain Hugging Face hooks, through the view and through the bridge."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sae_tools.errors import UserError
from sae_tools.models import intervene
from sae_tools.models.intervene import (
    Prefix,
    add,
    capture_with_prefix,
    logits_with_edits,
    mean_ablate,
    pin,
    replace,
    run_and_capture,
    stream_with_edits,
    zero_ablate,
)
from sae_tools.models.load import LanguageModel
from sae_tools.models.plain import plain_view
from sae_tools.models.sites import Site, available_sites, resolve_site
from tests.models.conftest import Pair


@pytest.fixture(params=["view", "bridge"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that edits take; the bridge otherwise only serves models that the view cannot."""
    if request.param == "bridge":
        monkeypatch.setattr(intervene, "trusted_view", lambda model, hooks: None)
    return request.param


def bent(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.flip(-1) + 0.1


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 2e-5 * b.abs().max())


def test_replacing_at_any_site(pair: Pair, path: str):
    clean = pair.logits()
    for name in available_sites(pair.model):
        site = resolve_site(pair.model, name)
        if site.kind == "resid_mid":
            continue
        expected = pair.logits((site.kind, site.layer, bent))
        assert (expected - clean).abs().max() > 0.01, name
        assert close(logits_with_edits(pair.model, pair.tokens, [replace(site, bent)]), expected), name


def test_resid_mid_edits_the_stream_itself(pair: Pair, path: str):
    """By hand: the block's output is the edited stream plus what the MLP makes of it."""
    if pair.parallel:
        pytest.skip("no resid_mid in a parallel block")
    layer = 1
    norm = pair.place("resid_mid", layer)[0]
    mlp = pair.place("mlp_out", layer)[0]
    with torch.no_grad():
        mid = bent(pair.read("resid_mid", layer))
        post = mid + mlp(norm(mid))
    expected = pair.logits(("resid_post", layer, lambda _: post))
    site = resolve_site(pair.model, f"resid_mid@{layer}")
    assert close(logits_with_edits(pair.model, pair.tokens, [replace(site, bent)]), expected)
    # Not what TransformerLens's hook does, which leaves the stream that passes by the MLP as it was.
    only_the_mlp = pair.logits(("resid_mid", layer, bent))
    assert not close(only_the_mlp, expected)


def test_resid_mid_sees_what_was_edited_before_it_whatever_the_order_given(pair: Pair, path: str):
    if pair.parallel:
        pytest.skip("no resid_mid in a parallel block")
    pre, mid, attn = (resolve_site(pair.model, f"{kind}@1") for kind in ("resid_pre", "resid_mid", "attn_out"))
    vector = torch.randn(pair.model.d_model, generator=torch.Generator().manual_seed(0))
    set_mid = replace(mid, vector)
    edits = [set_mid, add(pre, 3 * vector), zero_ablate(attn)]
    alone = logits_with_edits(pair.model, pair.tokens, [set_mid])
    assert close(logits_with_edits(pair.model, pair.tokens, edits), alone)


def test_several_edits_at_once(pair: Pair, path: str):
    first, second = resolve_site(pair.model, "mlp_out@0"), resolve_site(pair.model, "mlp_acts@1")
    expected = pair.logits(("mlp_out", 0, bent), ("mlp_acts", 1, bent))
    edits = [replace(second, bent), replace(first, bent)]
    assert close(logits_with_edits(pair.model, pair.tokens, edits), expected)


def test_edits_at_one_site_apply_in_the_order_given(gpt2: LanguageModel, path: str):
    tokens, site = torch.arange(12)[None], resolve_site(gpt2, "mlp_out@1")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    zero_then_add = logits_with_edits(gpt2, tokens, [zero_ablate(site), add(site, vector)])
    assert close(zero_then_add, logits_with_edits(gpt2, tokens, [replace(site, vector)]))
    add_then_zero = logits_with_edits(gpt2, tokens, [add(site, vector), zero_ablate(site)])
    assert close(add_then_zero, logits_with_edits(gpt2, tokens, [zero_ablate(site)]))
    assert not close(zero_then_add, add_then_zero)


def test_zero_and_mean_ablation(pair: Pair, path: str):
    site = resolve_site(pair.model, "mlp_out@1")
    u = pair.read("mlp_out", 1)
    mean = u.mean((0, 1))
    zeroed = logits_with_edits(pair.model, pair.tokens, [zero_ablate(site)])
    assert close(zeroed, pair.logits(("mlp_out", 1, torch.zeros_like)))
    averaged = logits_with_edits(pair.model, pair.tokens, [mean_ablate(site, mean)])
    assert close(averaged, pair.logits(("mlp_out", 1, lambda x: mean.expand_as(x))))
    whole = logits_with_edits(pair.model, pair.tokens, [replace(site, u)])
    assert close(whole, pair.logits())


def test_zero_hidden_activations_leave_the_output_bias(gpt2: LanguageModel, path: str):
    tokens = torch.arange(12)[None]
    zero = logits_with_edits(gpt2, tokens, [zero_ablate(resolve_site(gpt2, "mlp_acts@1"))])
    b_out = gpt2.bridge.blocks[1].mlp.b_out.detach()
    assert close(zero, logits_with_edits(gpt2, tokens, [replace(resolve_site(gpt2, "mlp_out@1"), b_out)]))


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_pin_sets_one_component_and_leaves_the_rest(gpt2: LanguageModel, path: str, scale: float):
    site, seen = resolve_site(gpt2, "resid_post@0"), []
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    unit = direction / direction.norm()
    values = torch.linspace(-2, 2, 24).view(2, 12)
    tokens = torch.arange(24).view(2, 12)
    for value in (1.5, values):
        edits = [
            replace(site, lambda x: seen.append(x) or x),
            pin(site, scale * direction, value),
            replace(site, lambda x: seen.append(x) or x),
        ]
        logits_with_edits(gpt2, tokens, edits)
        before, after = seen[-2:]
        assert torch.allclose(after @ unit, torch.as_tensor(value).expand(2, 12), atol=1e-5)
        rest = torch.eye(32) - torch.outer(unit, unit)
        assert torch.allclose(before @ rest, after @ rest, atol=1e-5)
    with pytest.raises(ValueError, match="must not be zero"):
        pin(site, torch.zeros(32), 1.0)


def test_where_limits_an_edit_to_some_tokens(pair: Pair, path: str):
    site = resolve_site(pair.model, "mlp_out@1")
    where = torch.zeros(pair.tokens.shape, dtype=torch.bool)
    where[:, 5:9] = True
    expected = pair.logits(("mlp_out", 1, lambda x: torch.where(where[..., None], 0.0, x)))
    found = logits_with_edits(pair.model, pair.tokens, [zero_ablate(site, where=where)])
    assert close(found, expected)
    assert close(found[:, :5], pair.logits()[:, :5])


def test_capture_gives_logits_and_activations_of_one_clean_run(pair: Pair, path: str):
    sites = [resolve_site(pair.model, name) for name in ("mlp_acts@1", "mlp_out@0")]
    clean = run_and_capture(pair.model, pair.tokens, sites)
    assert close(clean.logits, pair.logits())
    assert list(clean.activations) == ["mlp_acts@1", "mlp_out@0"]
    for site in sites:
        assert close(clean.activations[site.name], pair.read(site.kind, site.layer))


def test_the_stream_before_the_unembedding(pair: Pair, path: str):
    """As what `run_and_capture` reads there, with edits anywhere, the last site itself included."""
    final = resolve_site(pair.model, f"resid_post@{pair.model.n_layers - 1}")
    for name in ("mlp_out@1", final.name):
        site = resolve_site(pair.model, name)
        activations, prefix = capture_with_prefix(pair.model, pair.tokens, [site, final])
        clean = run_and_capture(pair.model, pair.tokens, [site, final])
        assert all(close(activations[key], value) for key, value in clean.activations.items())
        assert set(prefix.outputs) == set(clean.prefix.outputs)
        assert close(stream_with_edits(pair.model, pair.tokens, []), clean.activations[final.name])
        edited = stream_with_edits(pair.model, pair.tokens, [replace(site, bent)], prefix=prefix)
        module = pair.model.bridge.ln_final
        with torch.no_grad():
            logits = pair.model.bridge.unembed(module(edited))
        assert close(logits, logits_with_edits(pair.model, pair.tokens, [replace(site, bent)]))
    assert close(run_and_capture(pair.model, pair.tokens).logits, pair.logits()), "hooks are left behind"


def test_a_prefix_repeated_serves_many_edits_of_one_context(pair: Pair, path: str):
    site = resolve_site(pair.model, "mlp_out@2")
    one = pair.tokens[:1]
    _, prefix = capture_with_prefix(pair.model, one, [site])
    length = one.shape[1] - 2
    copies = prefix.repeated(3, length)
    change = torch.randn(3, length, site.width, generator=torch.Generator().manual_seed(0))
    found = logits_with_edits(pair.model, copies.tokens, [add(site, change)], prefix=copies)
    for row in range(3):
        alone = logits_with_edits(pair.model, one[:, :length], [add(site, change[row : row + 1])])
        assert close(found[row : row + 1], alone)
    with pytest.raises(ValueError, match="one context"):
        Prefix(pair.tokens[:2]).repeated(2, 3)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_prefix_changes_nothing_but_the_time(pair: Pair, path: str, layer: int):
    clean = run_and_capture(pair.model, pair.tokens, [resolve_site(pair.model, f"mlp_out@{n}") for n in (1, layer)])
    for kind in ("resid_pre", "mlp_acts", "resid_post"):
        edits = [replace(resolve_site(pair.model, f"{kind}@{layer}"), bent)]
        without = logits_with_edits(pair.model, pair.tokens, edits)
        assert torch.equal(logits_with_edits(pair.model, pair.tokens, edits, prefix=clean.prefix), without)
        # and the view is whole again
        assert torch.equal(logits_with_edits(pair.model, pair.tokens, edits), without)


def test_a_prefix_spares_the_layers_before_the_edit(gpt2: LanguageModel):
    tokens, site = torch.arange(12)[None], resolve_site(gpt2, "mlp_out@2")
    clean = run_and_capture(gpt2, tokens, [site, resolve_site(gpt2, "mlp_out@0")])
    view = plain_view(gpt2)
    assert view is not None
    counted: Counter[int] = Counter()
    handles = [
        block.get_submodule("mlp").register_forward_pre_hook(lambda _m, _a, layer=layer: counted.update([layer]))
        for layer, block in enumerate(view.blocks)
    ]
    try:
        logits_with_edits(gpt2, tokens, [zero_ablate(site)], prefix=clean.prefix)
        assert counted == {2: 1}
        logits_with_edits(gpt2, tokens, [zero_ablate(resolve_site(gpt2, "mlp_out@0"))], prefix=clean.prefix)
        assert counted == {0: 1, 1: 1, 2: 2}
    finally:
        for handle in handles:
            handle.remove()


def test_a_prefix_of_other_tokens_is_refused(gpt2: LanguageModel):
    site = resolve_site(gpt2, "mlp_out@2")
    prefix = run_and_capture(gpt2, torch.arange(12)[None], [site]).prefix
    for other in (torch.arange(1, 13)[None], torch.arange(10)[None]):
        with pytest.raises(ValueError, match="other tokens"):
            logits_with_edits(gpt2, other, [zero_ablate(site)], prefix=prefix)
    assert isinstance(prefix, Prefix) and list(prefix.outputs) == [1]


def test_the_model_is_as_before_when_an_edit_fails(gpt2: LanguageModel, path: str):
    tokens, site = torch.arange(12)[None], resolve_site(gpt2, "mlp_out@1")
    clean = run_and_capture(gpt2, tokens, [site])
    with pytest.raises(RuntimeError):
        logits_with_edits(gpt2, tokens, [replace(site, torch.zeros(7))], prefix=clean.prefix)
    assert torch.equal(logits_with_edits(gpt2, tokens, []), clean.logits)


def test_a_site_that_the_model_does_not_have_is_refused(gpt2: LanguageModel, parallel: LanguageModel, path: str):
    tokens = torch.arange(12)[None]
    with pytest.raises(UserError, match="nearest: mlp_out@2"):
        logits_with_edits(gpt2, tokens, [zero_ablate(Site("mlp_out", 7, "blocks.7.hook_mlp_out", 32))])
    with pytest.raises(UserError, match="no site 'resid_mid@1'"):
        logits_with_edits(parallel, tokens, [zero_ablate(Site("resid_mid", 1, "blocks.1.hook_resid_mid", 32))])


def test_gradients_flow_through_an_edit(gpt2: LanguageModel, path: str):
    tokens, site = torch.arange(12)[None], resolve_site(gpt2, "mlp_out@1")
    vector = torch.zeros(32, requires_grad=True)
    logits_with_edits(gpt2, tokens, [add(site, vector)]).logsumexp(-1).mean().backward()
    assert vector.grad is not None and vector.grad.abs().sum() > 0
