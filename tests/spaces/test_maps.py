"""Forward maps on small random models: what is measured is what the model's own modules compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_tools.config import SpaceConfig
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Rows
from sae_tools.spaces import build_space, forward_chain, logit_root, site_chain
from tests.tiny_models import KINDS, tiny_model


def harvest(model: LanguageModel, hooks: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        cache = model.bridge.run_with_cache(tokens, names_filter=[*hooks, "ln_final.hook_in"])[1]
    return {name: cache[name].flatten(0, 1) for name in [*hooks, "ln_final.hook_in"]}


def check_model(model: LanguageModel) -> None:
    layer = model.n_layers - 2
    acts, out = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"
    one, two = harvest(model, [acts, out]), harvest(model, [acts, out], seed=1)
    norm, root = FinalNorm.of(model), logit_root(model)
    assert root.rank == model.d_model - norm.centres
    chain = site_chain(resolve_site(model, f"mlp_acts@{layer}"), model, root=root)
    assert list(chain) == ["mlp_acts", "resid_update", "logit_update"]
    scale = norm.scale(one["ln_final.hook_in"]).squeeze(-1)
    # The hidden activations map to what the model's own output matrix made of them ...
    u = chain["resid_update"](one[acts], scale)
    assert (u - one[out]).norm() < 1e-5 * one[out].norm()
    # ... and two updates differ, in logit_update, by the length of the difference that they make to the centred logits
    # when one replaces the other in the final residual stream, through the model's modules with the scale frozen.
    other = two[out].roll(1, 0)  # of another position: at position 0 they are nearly the same
    r = one["ln_final.hook_in"]
    weight, bias = norm.weight, 0 if norm.bias is None else norm.bias
    with torch.no_grad():
        logits = [
            model.bridge.unembed((norm.centred(stream) / scale.unsqueeze(1) * weight + bias).to(model.dtype))
            for stream in (r, r - one[out] + other)
        ]
    change = (logits[1] - logits[0]).double()
    change = (change - change.mean(-1, keepdim=True)).norm(dim=-1)
    a = chain["logit_update"](one[acts].double(), scale)
    b = site_chain(resolve_site(model, f"mlp_out@{layer}"), model, root=root)["logit_update"](other.double(), scale)
    assert ((b - a).norm(dim=-1) - change).norm() < 1e-5 * change.norm()
    # A logit_update space of ln "token" is that measure up to its scalar.
    ids = torch.arange(len(scale))
    rows = Rows({f"mlp_out@{layer}": one[out]}, ids, ids % 24, ids, scale)
    space = build_space(
        SpaceConfig(kind="logit_update", ln="token"), resolve_site(model, f"mlp_out@{layer}"), model, rows
    )
    z = space.read(rows) * space.scale
    assert (z - a.float()).norm() < 1e-5 * a.norm()
    assert list(forward_chain(space, model, root=root)) == ["logit_update"]


@pytest.mark.parametrize("kind", KINDS)
def test_chain_equals_the_model(kind: str) -> None:
    check_model(load_model(str(tiny_model(kind))))


def test_chain_equals_a_real_model(shared: Path) -> None:
    check_model(load_model(str(shared / "models" / "stories260K")))


def test_activations_map_nowhere_through_a_norm() -> None:
    model = load_model(str(tiny_model("gemma2")))
    assert list(site_chain(resolve_site(model, "mlp_acts@1"), model)) == ["mlp_acts"]
    assert list(site_chain(resolve_site(model, "mlp_out@1"), model)) == ["resid_update", "logit_update"]


def test_streams_map_nowhere() -> None:
    model = load_model(str(tiny_model("gpt2")))
    assert list(site_chain(resolve_site(model, "resid_post@1"), model)) == ["resid"]
