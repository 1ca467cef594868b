from __future__ import annotations

import pytest

from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import comes_before, resolve_site


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("mlp_out@1", "mlp_out@1"),
        ("blocks.1.hook_mlp_out", "mlp_out@1"),
        ("blocks.1.mlp.hook_out", "mlp_out@1"),
        ("blocks.2.mlp.hook_post", "mlp_acts@2"),
        ("blocks.2.mlp.out.hook_in", "mlp_acts@2"),
        ("blocks.0.hook_resid_post", "resid_post@0"),
        ("blocks.0.hook_out", "resid_post@0"),
        ("blocks.0.ln2.hook_in", "resid_mid@0"),
        ("blocks.1.mlp.hook_in", "mlp_in@1"),
    ],
)
def test_short_names_aliases_and_canonical_names_are_one_site(gpt2: LanguageModel, given: str, name: str):
    site = resolve_site(gpt2, given)
    assert site.name == name
    assert site == resolve_site(gpt2, name)
    assert site.width == (128 if name.startswith("mlp_acts") else 32)


def test_any_other_hook_point_of_vectors_is_a_site(gpt2: LanguageModel):
    site = resolve_site(gpt2, "blocks.1.ln2.hook_normalized")
    assert (site.kind, site.layer, site.width, site.name) == ("hook", 1, 32, "blocks.1.ln2.hook_normalized")


def test_gemma_tells_the_mlp_from_its_update(gemma: LanguageModel):
    assert resolve_site(gemma, "blocks.1.mlp.hook_out").kind == "hook"
    assert resolve_site(gemma, "mlp_out@1").hook_name == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp_out@3", r"3 layers, 0 to 2\) has no site 'mlp_out@3'; nearest: mlp_out@2"),
        ("mlp_out@-1", "nearest: mlp_out@0"),
        ("mlp_outs@1", "nearest: mlp_out@1"),
        ("nonsense@1", "nearest: resid_pre@1, attn_out@1, resid_mid@1, mlp_in@1, mlp_acts@1, mlp_out@1"),
        ("mlp_out", "nearest: mlp_out@"),
        ("blocks.1.hook_mlp_ou", "nearest: blocks.1.hook_mlp_out"),
        ("blocks.1.attn.hook_pattern", "is no site .* shape"),
        ("blocks.0.hook_mlp_in", "never fires"),
        ("hook_embed", "has no site"),
    ],
)
def test_no_such_site(gpt2: LanguageModel, name: str, message: str):
    with pytest.raises(UserError, match=message):
        resolve_site(gpt2, name)


def test_a_parallel_block_has_no_resid_mid(parallel: LanguageModel):
    with pytest.raises(UserError, match="no site 'resid_mid@1'; nearest: resid_pre@1, resid_post@1"):
        resolve_site(parallel, "resid_mid@1")
    with pytest.raises(UserError, match="no site 'blocks.1.hook_resid_mid'"):
        resolve_site(parallel, "blocks.1.hook_resid_mid")


def test_the_order_of_sites(gpt2: LanguageModel):
    hooks = ("blocks.1.ln2.hook_in", "blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_in", "blocks.1.mlp.in.hook_out")
    names = ["resid_pre@0", "mlp_out@0", "resid_pre@1", "attn_out@1", *hooks, "mlp_acts@1", "mlp_out@1", "resid_post@1"]
    sites = [resolve_site(gpt2, name) for name in names]
    for i, a in enumerate(sites):
        for j, b in enumerate(sites):
            assert comes_before(gpt2, a, b) == (i < j), (a.name, b.name)
