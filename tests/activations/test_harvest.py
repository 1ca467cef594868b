from __future__ import annotations

import pytest
import torch

from sae_tools.activations import harvest as harvest_module
from sae_tools.activations.harvest import Harvester, collect_rows
from sae_tools.config import RowsConfig
from sae_tools.errors import UserError
from sae_tools.models import capture as capture_module
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts
from tests.activations.fakes import FakeStream
from tests.tiny_models import BOS, EOS, KINDS, tiny_model

SITES = ("mlp_acts@0", "mlp_out@1", "resid_pre@1")


@pytest.fixture(params=[*KINDS, "stories260K"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "stories260K":
        return load_model(request.getfixturevalue("shared") / "models" / "stories260K")
    return load_model(tiny_model(request.param))


def contexts(model: LanguageModel, *, batch: int = 3, length: int = 16, seed: int = 0) -> Contexts:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 250, (batch, length), generator=generator)
    assert model.bos_token_id is not None
    tokens[:, 0] = model.bos_token_id
    tokens[1, 7] = model.bos_token_id
    return Contexts(tokens, torch.arange(batch * length).view(batch, length) // 5)


@pytest.mark.parametrize("way", ["view", "bridge"])
def test_rows_hold_what_run_with_cache_gives(model: LanguageModel, way: str, monkeypatch: pytest.MonkeyPatch):
    if way == "bridge":
        monkeypatch.setattr(capture_module, "trusted_view", lambda model, hooks: None)
    given = contexts(model)
    sites = [resolve_site(model, name) for name in SITES]
    rows = Harvester(model, sites, RowsConfig(), need_scale=True).harvest(given)
    names = [site.hook_name for site in sites] + ["ln_final.hook_scale"]
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(given.tokens, names_filter=names)
    kept = given.tokens != model.bos_token_id
    assert int(kept.sum()) == len(rows) == 3 * 16 - 4
    for site in sites:
        expected = cache[site.hook_name][kept]
        assert rows.activations[site.name].shape == (len(rows), site.width)
        assert torch.allclose(rows.activations[site.name], expected, atol=1e-5 * float(expected.abs().max()))
    assert rows.scale is not None and rows.scale.shape == (len(rows),)
    assert torch.allclose(rows.scale, cache["ln_final.hook_scale"][kept].squeeze(-1), rtol=1e-5)
    assert torch.equal(rows.tokens, given.tokens[kept])
    assert torch.equal(rows.document, given.document[kept])
    assert torch.equal(rows.position, torch.arange(16).expand(3, 16)[kept])


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        (RowsConfig(), [1, 2, 4, 6, 7]),
        (RowsConfig(skip_special=False), [1, 2, 3, 4, 5, 6, 7]),
        (RowsConfig(skip_positions=0), [1, 2, 4, 6, 7]),
        (RowsConfig(skip_positions=0, skip_special=False), [0, 1, 2, 3, 4, 5, 6, 7]),
        (RowsConfig(skip_positions=5), [6, 7]),
    ],
)
def test_which_tokens_become_rows(settings: RowsConfig, left: list[int]):
    model = load_model(tiny_model("gpt2"))
    tokens = torch.tensor([[BOS, 1, 2, BOS, 4, EOS, 6, 7]])
    harvester = Harvester(model, [resolve_site(model, "mlp_out@0")], settings)
    assert harvester.keep(tokens)[0].nonzero().flatten().tolist() == left
    assert harvester.harvest(Contexts(tokens, torch.zeros_like(tokens))).position.tolist() == left


def test_one_forward_pass_serves_all_sites(monkeypatch: pytest.MonkeyPatch):
    model = load_model(tiny_model("gpt2"))
    asked: list[list[str]] = []

    def counted(model: LanguageModel, tokens: torch.Tensor, hooks: list[str]) -> dict[str, torch.Tensor]:
        asked.append(hooks)
        return capture_module.capture(model, tokens, hooks)

    monkeypatch.setattr(harvest_module, "capture", counted)
    sites = [resolve_site(model, name) for name in (*SITES, "mlp_out@1", "blocks.1.hook_mlp_out")]
    rows = Harvester(model, sites, RowsConfig()).harvest(contexts(model))
    assert len(asked) == 1 and len(asked[0]) == len(rows.activations) == 3
    assert rows.scale is None


def test_rows_share_nothing_with_each_other():
    model = load_model(tiny_model("gpt2"))
    sites = [resolve_site(model, "resid_post@0"), resolve_site(model, "resid_pre@1")]
    given = contexts(model)
    rows = Harvester(model, sites, RowsConfig(skip_positions=0, skip_special=False)).harvest(given)
    a, b = rows.activations["resid_post@0"], rows.activations["resid_pre@1"]
    assert torch.equal(a, b)
    a.zero_()
    assert b.abs().sum() > 0
    assert not a.requires_grad and not a.is_inference()


def test_cost_ends_with_the_last_site():
    model = load_model(tiny_model("gpt2"))

    def cost(site: str, need_scale: bool = False) -> tuple[int, int]:
        harvester = Harvester(model, [resolve_site(model, site)], RowsConfig(), need_scale)
        return harvester.last_layer, harvester.flops_per_token(context=32)

    (first, early), (second, late), (third, scale) = cost("mlp_out@0"), cost("mlp_out@1"), cost("mlp_out@0", True)
    assert (first, second, third) == (0, 1, 2)
    assert late == 2 * early and scale == 3 * early


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_give_float32_rows(dtype: str):
    model = load_model(tiny_model("llama"), dtype=dtype)
    exact = load_model(tiny_model("llama"))
    given = contexts(model)
    sites = [resolve_site(model, "mlp_out@1")]
    rows = Harvester(model, sites, RowsConfig(), need_scale=True).harvest(given)
    reference = Harvester(exact, sites, RowsConfig(), need_scale=True).harvest(given)
    assert rows.activations["mlp_out@1"].dtype == torch.float32 and rows.scale is not None
    assert rows.scale.dtype == torch.float32
    assert torch.equal(rows.activations["mlp_out@1"].to(model.dtype).float(), rows.activations["mlp_out@1"])
    error = (rows.activations["mlp_out@1"] - reference.activations["mlp_out@1"]).norm()
    assert error < 0.05 * reference.activations["mlp_out@1"].norm()
    assert torch.allclose(rows.scale, reference.scale, rtol=0.05)


def test_no_rows_at_all_are_still_rows():
    model = load_model(tiny_model("gpt2"))
    tokens = torch.full((2, 5), BOS)
    harvester = Harvester(model, [resolve_site(model, "mlp_acts@1")], RowsConfig(), need_scale=True)
    rows = harvester.harvest(Contexts(tokens, tokens))
    assert len(rows) == 0 and rows.activations["mlp_acts@1"].shape == (0, 128)
    assert rows.scale is not None and rows.scale.shape == (0,)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 65, dtype=torch.int64), "data.context_length is 65, but .* at most 64"),
        (torch.full((1, 8), 264), r"Token id 264 is outside the vocabulary .* \(0 to 263\)"),
        (torch.full((1, 8), -1), "Token id -1 is outside"),
        (torch.zeros(1, 1, dtype=torch.int64), "rows.skip_positions is 1, which leaves no rows"),
    ],
)
def test_contexts_that_do_not_fit_the_model(tokens: torch.Tensor, message: str):
    model = load_model(tiny_model("gpt2"))
    harvester = Harvester(model, [resolve_site(model, "mlp_out@0")], RowsConfig())
    with pytest.raises(UserError, match=message):
        harvester.harvest(Contexts(tokens, torch.zeros_like(tokens)))


def test_collecting_rows_for_estimates():
    model = load_model(tiny_model("gpt2"))
    harvester = Harvester(model, [resolve_site(model, "mlp_out@0")], RowsConfig())
    some = collect_rows(FakeStream(), harvester, 50)
    assert len(some) == 50
    more = collect_rows(FakeStream(), harvester, 70)
    assert torch.equal(more.tokens[:50], some.tokens)
    assert len(collect_rows(FakeStream(count=2), harvester, 1000)) == 2 * 3 * 7
    with pytest.raises(UserError, match="gives no rows"):
        collect_rows(FakeStream(count=0), harvester, 10)
