"""What every room builds on, for every architecture: sites hold what they say, sums and maps are exact."""

from __future__ import annotations

import pytest
import torch

from sae_tools.errors import UserError
from sae_tools.models.capture import capture
from sae_tools.models.final_norm import FinalNorm, logits_from_resid, unembed
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.mlp import mlp_output_map
from sae_tools.models.sites import available_sites, resolve_site
from tests.models.conftest import Pair
from tests.tiny_models import tiny_model


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= relative * b.abs().max())


@pytest.mark.parametrize("use_view", [True, False], ids=["view", "bridge"])
def test_every_site_holds_what_hugging_face_computes_there(pair: Pair, use_view: bool):
    names = available_sites(pair.model)
    sites = [resolve_site(pair.model, name) for name in names]
    found = capture(pair.model, pair.tokens, [site.hook_name for site in sites], use_view=use_view)
    for site in sites:
        expected = pair.read(site.kind, site.layer)
        assert close(found[site.hook_name], expected), site.name
        assert expected.shape[-1] == site.width
    kinds = {site.kind for site in sites}
    assert kinds >= {"mlp_acts", "mlp_out", "attn_out", "resid_pre", "resid_post"}
    assert ("resid_mid" in kinds) is not pair.parallel
    assert len(names) == len(kinds) * pair.model.n_layers


def test_mlp_output_is_affine_in_the_hidden_activations(pair: Pair):
    for layer in range(pair.model.n_layers):
        W_out, b_out = mlp_output_map(pair.model, layer)
        h, u = pair.read("mlp_acts", layer), pair.read("mlp_out", layer)
        assert close(h @ W_out + b_out, u)
        assert W_out.shape == (h.shape[-1], u.shape[-1]) and b_out.shape == u.shape[-1:]


def test_residual_sums(pair: Pair):
    for layer in range(pair.model.n_layers):
        hooks = {name.split("@")[0]: name for name in available_sites(pair.model) if name.endswith(f"@{layer}")}
        sites = {kind: resolve_site(pair.model, name).hook_name for kind, name in hooks.items()}
        found = capture(pair.model, pair.tokens, list(sites.values()))
        value = {kind: found[hook] for kind, hook in sites.items()}
        assert close(value["resid_pre"] + value["attn_out"] + value["mlp_out"], value["resid_post"])
        if "resid_mid" in value:
            assert close(value["resid_pre"] + value["attn_out"], value["resid_mid"])


def test_logits_from_the_last_residual_stream(pair: Pair):
    logits = logits_from_resid(pair.model, pair.read("resid_post", pair.model.n_layers - 1))
    assert (logits - pair.logits()).abs().max() < 1e-4


def test_final_norm_agrees_with_transformer_lens(pair: Pair):
    norm = FinalNorm.of(pair.model)
    hooks = ["ln_final.hook_in", "ln_final.hook_scale", "ln_final.hook_normalized", "ln_final.hook_out"]
    with torch.no_grad():
        _, cache = pair.model.bridge.run_with_cache(pair.tokens, names_filter=hooks)
    resid = cache["ln_final.hook_in"]
    assert norm.scale(resid).shape == (*resid.shape[:-1], 1)
    assert close(norm.scale(resid), cache["ln_final.hook_scale"])
    assert close(norm.normalise(resid), cache["ln_final.hook_normalized"])
    assert close(norm.apply(resid), cache["ln_final.hook_out"])
    assert norm.centres is ("Llama" not in pair.model.architecture)
    assert (norm.bias is None) is not norm.centres


def test_unembedding_shares_the_models_weight(pair: Pair):
    W_U, b_U, cap = unembed(pair.model)
    assert W_U.shape == (pair.model.d_model, pair.model.d_vocab) and b_U.shape == (pair.model.d_vocab,)
    assert cap is None
    assert W_U.data_ptr() == pair.model.bridge.W_U.data_ptr()


def test_gemma_offset_and_soft_cap_are_respected(gemma: LanguageModel):
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits, cache = gemma.bridge.run_with_cache(tokens, names_filter=["blocks.2.hook_resid_post"])
    assert (logits_from_resid(gemma, cache["blocks.2.hook_resid_post"]) - logits).abs().max() < 1e-4
    assert unembed(gemma)[2] == 30.0


def test_granite_divides_its_logits():
    granite = load_model(tiny_model("granite"))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits, cache = granite.bridge.run_with_cache(tokens, names_filter=["blocks.2.hook_resid_post"])
    assert (logits_from_resid(granite, cache["blocks.2.hook_resid_post"]) - logits).abs().max() < 1e-4
    W_U = unembed(granite)[0]
    assert torch.equal(W_U, granite.bridge.W_U / 4)


def test_gemma_has_no_affine_map_to_its_update(gemma: LanguageModel):
    with pytest.raises(UserError, match="a norm follows the MLP of layer 1"):
        mlp_output_map(gemma, 1)


@pytest.mark.parametrize("layer", [-1, 3])
def test_no_mlp_in_a_layer_that_is_not_there(gpt2: LanguageModel, layer: int):
    with pytest.raises(UserError, match=f"layers 0 to 2, but layer {layer}"):
        mlp_output_map(gpt2, layer)
