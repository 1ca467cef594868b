"""KL through the model: its gradient against autograd through everything, its value, resuming, bad numbers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.config import DictionaryConfig, KLConfig, RowsConfig, SpaceConfig, TrainingConfig, WritesConfig
from sae_tools.dictionaries import build_dictionary
from sae_tools.dictionaries.build import Target
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts, Rows
from sae_tools.spaces import build_space
from sae_tools.training.through_model import RunContexts, Splice, ThroughModel
from sae_tools.training.trainee import Trainee
from tests.tiny_models import BOS, EOS, tiny_model

LENGTH, B = 12, 48
KL = KLConfig(coefficient=0.7, contexts=3)


@functools.cache
def double_model(kind: str) -> LanguageModel:
    model = load_model(str(tiny_model(kind)))
    model.bridge.double()
    return model


def contexts() -> Contexts:
    """Random bytes, with special tokens among them."""
    tokens = torch.randint(0, 256, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = BOS
    tokens[1, 4], tokens[2, 7] = EOS, BOS
    return Contexts(tokens, torch.zeros_like(tokens))


def settings(architecture: dict[str, Any], site: str, kind: str, **space: Any) -> DictionaryConfig:
    return DictionaryConfig(
        site=site,
        space=SpaceConfig(kind=kind, **space),  # type: ignore[arg-type]
        architecture=architecture,  # type: ignore[arg-type]
        d_sae=40,
        b_dec_init="mean",
        encoder_init="kaiming",
    )


TOPK = {"kind": "topk", "k": 5, "aux_coefficient": 0}
BATCHTOPK = {"kind": "batchtopk", "k": 5, "aux_coefficient": 0}
RELU = {"kind": "relu", "l1": 0.2, "form": "decoder-norm"}
CASES = {
    "update": ("gpt2", settings(TOPK, "mlp_out@1", "resid_update")),
    "first layer": ("gpt2", settings(TOPK, "mlp_out@0", "resid_update", centre="mean")),
    "acts": ("llama", settings(TOPK, "mlp_acts@1", "mlp_acts")),
    "logits, mean": ("gpt2", settings(TOPK, "mlp_out@1", "logit_update")),
    "logits, token": ("gpt2", settings(TOPK, "mlp_out@2", "logit_update", ln="token", rotation=3)),
    "whole batch": ("neox-parallel", settings(BATCHTOPK, "attn_out@1", "resid_update")),
    "stream, ReLU": ("gpt2", settings(RELU, "resid_mid@1", "resid")),
    "two sites": (
        "gpt2",
        settings(TOPK, "mlp_in@1", "resid").model_copy(
            update={"writes": WritesConfig(site="mlp_out@1", space=SpaceConfig(kind="logit_update")), "skip": True}
        ),
    ),
}


def set_up(case: str) -> tuple[LanguageModel, Trainee, RunContexts, Rows]:
    """A trainee in float64, the contexts run through its model, and a step's rows, which they are the first of."""
    kind, cfg = CASES[case]
    model = double_model(kind)
    site = resolve_site(model, cfg.site)
    written = site if cfg.writes is None else resolve_site(model, cfg.writes.site)
    through = ThroughModel(model, [site, written], RowsConfig(), KL, None, need_scale=True, device=torch.device("cpu"))
    run = through.run(contexts())
    more = through.run(Contexts(contexts().tokens.flip(1), contexts().document))
    rows = Rows.concatenate([run.rows, more.rows[: B - len(run.rows)]])
    space = build_space(cfg.space, site, model, rows, dtype=torch.float64)
    z = space.read(rows)
    target_space, target = None, None
    if cfg.writes is not None:
        target_space = build_space(cfg.writes.space, written, model, rows, dtype=torch.float64)
        target = Target(target_space.dim, target_space.read(rows), target_space.project)
    random = torch.Generator().manual_seed(2)
    dictionary = build_dictionary(cfg, space.dim, random, z, project=space.project, target=target).double()
    training = TrainingConfig(batch_size=B, warmup_steps=0, kl=KL, selection="float32")
    return model, Trainee("it", site, cfg, training, space, dictionary, torch.ones(()), target_space), run, rows


def kl_by_hooks(model: LanguageModel, trainee: Trainee, run: RunContexts, z_hat: Tensor) -> Tensor:
    """Mean KL of the predictions with x̂ put in by the bridge's own hooks, differentiable in z_hat."""
    tokens, n = contexts().tokens, len(run.rows)
    kept = ~torch.isin(tokens, torch.tensor([BOS, EOS, 258]))
    kept[:, 0] = False
    site = trainee.written.site
    x = run.rows.activations[site.name]
    x_hat = trainee.written.lift(z_hat[:n], run.rows.scale, run.rows.position, x)

    def put(activation: Tensor, hook: Any) -> Tensor:
        return activation.masked_scatter(kept.unsqueeze(-1), x_hat)

    hook = site.hook_name
    if site.kind == "resid_mid":  # TransformerLens's hook there does not change what passes by the MLP
        change = x_hat - x
        hook = hook.replace("resid_mid", "attn_out")

        def put(activation: Tensor, hook: Any) -> Tensor:
            return activation + torch.zeros_like(activation).masked_scatter(kept.unsqueeze(-1), change)

    with torch.no_grad():
        clean = model.bridge(tokens).log_softmax(-1)
    edited = model.bridge.run_with_hooks(tokens, fwd_hooks=[(hook, put)]).log_softmax(-1)
    return (clean.exp() * (clean - edited)).sum(-1)[kept].mean()


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_autograds_through_the_whole_model(case: str):
    model, trainee, run, rows = set_up(case)
    dictionary, x = trainee.dictionary, trainee.rows_in_space(rows)
    target = trainee.targets(rows)
    proposal = trainee.propose(x, 0, run, target)

    z = dictionary.pre_activations(x)
    if trainee.cfg.architecture.kind == "relu":
        f = z.relu()
    else:  # which features fire is constant
        chosen = z.topk(5, dim=-1) if trainee.cfg.architecture.kind == "topk" else z.flatten().topk(5 * len(x))
        f = torch.where(z >= chosen.values.min(-1, keepdim=True).values, z, 0.0).relu()
    z_hat = f @ dictionary.W_dec + dictionary.b_dec
    if dictionary.W_skip is not None:
        z_hat = z_hat + x @ dictionary.W_skip
    squared = ((x if target is None else target) - z_hat).pow(2).sum(-1)
    kl = kl_by_hooks(model, trainee, run, z_hat)
    weight = 0.7 * squared[: len(run.rows)].mean().detach() / (kl.detach() + 1e-8)
    penalty = (f * dictionary.W_dec.norm(dim=-1)).sum() / len(x) if trainee.cfg.architecture.kind == "relu" else 0.0
    expected = torch.autograd.grad(squared.mean() + weight * kl + 1.7 * 0.2 * penalty, [*dictionary.parameters()])
    alone = trainee.propose(x, 0, None, target)
    for name, mine, theirs, without in zip(
        dict(dictionary.named_parameters()), proposal.gradients, expected, alone.gradients, strict=True
    ):
        if name == "W_dec" and dictionary.unit_decoder:
            theirs = theirs - (theirs * dictionary.W_dec).sum(1, keepdim=True) * dictionary.W_dec
        if CASES[case][0] == "gpt2":
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
        else:  # these models' norms and rotations compute in float32 whatever they are given
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())
        assert not torch.allclose(mine, without, rtol=1e-3)
    torch.testing.assert_close(proposal.terms["kl"], kl.detach(), rtol=1e-4, atol=0)
    assert float(kl.detach()) > 1e-3


def test_parts_of_the_contexts_make_the_same_whole(monkeypatch):
    _, trainee, run, rows = set_up("update")
    x = trainee.rows_in_space(rows)
    whole = trainee.propose(x, 0, run)
    monkeypatch.setattr("sae_tools.training.through_model.contexts_per_batch", lambda *_: 2)
    model = run.model
    through = ThroughModel(
        model,
        [trainee.site],
        RowsConfig(),
        KL,
        None,
        need_scale=False,
        device=torch.device("cpu"),
    )
    parted = through.run(contexts())
    assert (len(run.parts), len(parted.parts)) == (1, 2)
    again = trainee.propose(x, 0, parted)
    torch.testing.assert_close(again.gradients, whole.gradients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again.terms["kl"], whole.terms["kl"], rtol=1e-9, atol=0)


def test_a_perfect_reconstruction_costs_nothing_and_pulls_nowhere():
    _, trainee, run, _ = set_up("logits, token")
    z = trainee.rows_in_space(run.rows)
    splice = Splice(run, trainee.site, trainee.space, z)
    assert splice.gradient(z).abs().max() < 1e-9 and abs(float(splice.kl)) < 1e-12
