"""Logit weights against the model's own logits, against a dense computation, and against what is known of a space."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from sae_tools.analysis import logit_weights as module
from sae_tools.analysis.directions import residual_directions
from sae_tools.analysis.logit_weights import logit_weights
from sae_tools.models.final_norm import FinalNorm, unembed
from sae_tools.models.sites import Site
from sae_tools.spaces import logit_root
from tests.analysis.subjects import WINDOW, tiny, tiny_subject

CASES = [
    ("gpt2", "mlp_acts@2", "mlp_acts", {}),
    ("gpt2", "mlp_out@2", "logit_update", {"relu": True}),
    ("llama", "mlp_acts@2", "mlp_acts", {"relu": True}),
    ("llama-tied", "mlp_out@2", "resid_update", {"rotation": 1}),
    ("neox-parallel", "resid_post@2", "resid", {"centre": "mean"}),
    ("neox-parallel", "attn_out@2", "logit_update", {}),
]
MEAN = 0.3
"""Of 1/σ."""


@pytest.mark.parametrize(("kind", "site", "space", "settings"), CASES, ids=str)
@torch.no_grad()
def test_they_are_what_the_model_adds_to_its_logits(kind: str, site: str, space: str, settings: dict[str, Any]) -> None:
    """With the scale frozen the logits are linear: σ' (l' - bias) - σ (l - bias) is what was added."""
    model = tiny(kind)
    subject = tiny_subject(model, site, space, **settings)
    tokens = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))
    norm, (W_U, b_U, _) = FinalNorm.of(model), unembed(model)
    bias = b_U if norm.bias is None else norm.bias @ W_U + b_U
    found = logit_weights(subject, model, MEAN, WINDOW)

    def run(change: torch.Tensor) -> torch.Tensor:
        seen = {}
        hooks: Any = [
            (subject.site.hook_name, lambda x, hook: x + change),
            ("ln_final.hook_in", lambda x, hook: seen.update(resid=x)),
        ]
        logits = model.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
        return (norm.scale(seen["resid"]).double() * (logits.double() - bias))[0, 5]

    nothing = run(torch.zeros(subject.site.width))
    dictionary, lift = subject.dictionary, subject.space.lift
    for i in range(0, dictionary.d_sae, 4):
        unit = dictionary.W_dec[i : i + 1] / dictionary.W_dec[i].norm()
        added = run((lift(unit) - lift(torch.zeros_like(unit)))[0]) - nothing
        v = MEAN * (added - added.mean())
        top, bottom = v.sort(descending=True), v.sort()
        assert torch.allclose(found["logit_top_value"][i].double(), top.values[:6], atol=2e-5)
        assert torch.allclose(found["logit_bottom_value"][i].double(), bottom.values[:6], atol=2e-5)
        assert torch.allclose(v[found["logit_top_token"][i].long()], top.values[:6], atol=2e-5)
        assert torch.allclose(v[found["logit_bottom_token"][i].long()], bottom.values[:6], atol=2e-5)
        assert float(found["logit_norm"][i]) == pytest.approx(float(v.norm()), rel=1e-4)
        assert float(v.norm()) > 0.01


@pytest.mark.parametrize("block_bytes", [1, 4 * 264 * 7, 2**25])
def test_a_dense_computation(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    model = tiny("gpt2")
    subject = tiny_subject(model, "mlp_acts@1", "mlp_acts", relu=True)
    seen: list[tuple[int, int]] = []
    found = {
        name: tensor.numpy()
        for name, tensor in logit_weights(subject, model, MEAN, WINDOW, lambda *p: seen.append(p)).items()
    }
    assert seen[-1] == (20, 20)
    D = subject.dictionary.W_dec.double().numpy()
    W_out = model.bridge.blocks[1].mlp.W_out.double().numpy()
    W_U, weight = model.bridge.W_U.double().numpy(), FinalNorm.of(model).weight.double().numpy()
    d = D / np.linalg.norm(D, axis=1, keepdims=True) * subject.space.scale @ W_out
    v = MEAN * ((d - d.mean(1, keepdims=True)) * weight) @ W_U
    v -= v.mean(1, keepdims=True)
    np.testing.assert_allclose(found["logit_norm"], np.linalg.norm(v, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found["logit_range"], np.stack([v.min(1), v.max(1)], 1), atol=1e-5)
    for i in range(20):
        np.testing.assert_array_equal(found["logit_top_token"][i], np.argsort(-v[i], kind="stable")[:6])
        np.testing.assert_array_equal(found["logit_bottom_token"][i], np.argsort(v[i], kind="stable")[:6])
        expected = np.histogram(v[i], bins=40)[0]
        assert found["logit_histogram"][i].sum() == 264
        assert np.abs(found["logit_histogram"][i] - expected).sum() <= 4  # float32 at an interval's end
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        "logit_top_token": (np.int32, (20, 6)),
        "logit_top_value": (np.float32, (20, 6)),
        "logit_bottom_token": (np.int32, (20, 6)),
        "logit_bottom_value": (np.float32, (20, 6)),
        "logit_histogram": (np.int32, (20, 40)),
        "logit_range": (np.float32, (20, 2)),
        "logit_norm": (np.float32, (20,)),
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("ln", ["mean", "token"])
def test_a_unit_of_logit_update_is_a_unit_of_logits(kind: str, ln: str) -> None:
    """science.md 1C: with unit decoder rows each feature's centred logit vector has norm 1."""
    model = tiny(kind)
    subject = tiny_subject(model, "mlp_out@2", "logit_update", ln=ln, rescale=False)
    root = logit_root(model)
    assert subject.space.scale == 1 and subject.space.rank == root.rank
    sigma = subject.space.inverse_sigma if ln == "mean" else MEAN
    norms = logit_weights(subject, model, sigma, WINDOW)["logit_norm"]
    assert (norms - 1).abs().max() < 1e-4


def test_a_row_of_zeros_has_no_weights() -> None:
    subject = tiny_subject(tiny("gpt2"), "mlp_out@2", "resid_update")
    with torch.no_grad():
        subject.dictionary.W_dec[3] = 0
    found = logit_weights(subject, tiny("gpt2"), MEAN, WINDOW)
    assert found["logit_norm"][3] == 0 and found["logit_histogram"][3].sum() == 264
    assert all(torch.isfinite(tensor).all() for tensor in found.values())


def test_where_no_fixed_map_leads_to_the_logits() -> None:
    gemma = tiny("gemma2")  # a norm follows its MLP
    subject = tiny_subject(gemma, "mlp_acts@2", "mlp_acts")
    assert residual_directions(subject, gemma, MEAN) is None and logit_weights(subject, gemma, MEAN, WINDOW) == {}
    model = tiny("gpt2")
    subject = tiny_subject(model, "mlp_out@2", "logit_update", ln="token")
    assert residual_directions(subject, model, None) is None
    subject = tiny_subject(model, "mlp_out@2", "resid_update")
    assert residual_directions(subject, model, None) is not None and logit_weights(subject, model, None, WINDOW) == {}
    elsewhere = dataclasses.replace(subject, site=Site("hook", 2, "blocks.2.attn.hook_q", 32))
    assert residual_directions(elsewhere, model, MEAN) is None
