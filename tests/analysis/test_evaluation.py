"""The evaluation's pass against Hugging Face's own model with plain hooks, its controls, and its accumulators."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_tools.analysis.controls import at_site, measure_controls
from sae_tools.analysis.evaluation_pass import Evaluation, ablated_sites, evaluate
from sae_tools.analysis.evaluation_sums import position_bins
from sae_tools.analysis.fidelity import measure_fidelity, site_means
from sae_tools.analysis.splicing import donors
from sae_tools.analysis.subject import Subject
from sae_tools.config import FidelityConfig, RowsConfig
from sae_tools.config_eval import EvalConfig
from sae_tools.models.intervene import run_and_capture
from sae_tools.models.load import load_model
from sae_tools.models.plain import plain_view
from sae_tools.models.shuffle import shuffled_weights
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts
from sae_tools.seeds import generator
from tests.analysis.subjects import tiny, tiny_subject
from tests.tiny_models import BOS, tiny_model

ROWS = RowsConfig()
LENGTH, BATCH = 24, 2
SUBJECTS = [
    ("mlp_acts@1", "mlp_acts"),
    ("mlp_out@1", "resid_update"),
    ("mlp_out@2", "logit_update"),
    ("attn_out@0", "resid_update"),
    ("resid_mid@1", "resid"),
    ("resid_post@0", "resid"),
]


def some_tokens() -> Tensor:
    tokens = torch.randint(0, 256, (6, LENGTH), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = BOS
    tokens[2, 11] = BOS  # documents joined within a context
    return tokens


def batches() -> Iterator[Contexts]:
    return (Contexts(part, torch.zeros_like(part)) for part in some_tokens().split(BATCH))


def evaluated(kind: str, subjects: list[Subject], rows: RowsConfig = ROWS) -> dict[str, dict[str, Any]]:
    return evaluate(tiny(kind), subjects, batches, rows, length=LENGTH, seed=4, ultra_rare_below=0.02, dense_above=0.3)


def close(a: Any, b: Any, rel: float = 1e-9) -> None:
    """Equal trees of numbers, NaN being equal to itself."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            close(a[key], b[key], rel)
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            close(x, y, rel)
    else:
        assert a == (pytest.approx(b, rel=rel, abs=1e-12, nan_ok=True) if isinstance(b, float) else b)


# ------------------------------------------------------------------------------------------------- the figures


@pytest.fixture(scope="module")
def against() -> tuple[dict[str, Any], dict[str, float], Subject, Tensor]:
    """(our entry, Hugging Face's losses, the dictionary, the MLP's outputs)."""
    model = tiny("gpt2")
    subject = tiny_subject(model, "mlp_out@1", "resid_update")
    hf = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).eval()
    tokens = some_tokens()
    rows = torch.ones_like(tokens, dtype=torch.bool)
    rows[:, 0] = rows[2, 11] = False
    mlp = hf.transformer.h[1].mlp
    seen: list[Tensor] = []
    handle = mlp.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        original = hf(tokens).logits
    handle.remove()
    (u,) = seen
    with torch.no_grad():
        z = subject.space.forward(u.flatten(0, 1))
        u_hat = subject.space.lift(subject.dictionary(z)).view_as(u)

    losses: dict[str, float] = {}

    def measure(name: str, value: Callable[[Tensor], Tensor] | Tensor) -> None:
        """The value replaces the output at rows or everywhere; losses at rows or everywhere."""
        for edited, where in (("rows", rows), ("all", torch.ones_like(rows))):
            new = value(where) if callable(value) else value
            handle = mlp.register_forward_hook(lambda m, a, out, w=where, n=new: torch.where(w[..., None], n, out))
            with torch.no_grad():
                logits = hf(tokens).logits
            handle.remove()
            p, q = (torch.distributions.Categorical(logits=x) for x in (original, logits))
            kl = torch.distributions.kl_divergence(p, q)
            ce = -q.logits[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
            for counted, mask in (("rows", rows), ("all", torch.ones_like(rows))):
                key = f"{name} {edited} {counted}"
                losses[f"ce {key}"] = ce[mask[:, :-1]].mean().item()
                losses[f"kl {key}"] = kl[:, :-1][mask[:, :-1]].mean().item()
                losses[f"every {key}"] = kl[mask].mean().item()

    def resampled(where: Tensor) -> Tensor:
        which = "all" if bool(where.all()) else "rows"
        out = u.clone()
        for batch in range(3):
            part = slice(batch * BATCH, (batch + 1) * BATCH)
            x, mine = u[part], where[part]
            order = donors(int(mine.sum()), generator(4, "resample", batch, "mlp_out@1", which))
            new = x.clone()
            new[mine] = x[mine][order]
            out[part] = new
        return out

    measure("original", u)
    measure("reconstruction", u_hat)
    measure("zero", torch.zeros_like(u))
    measure("mean", u[rows].mean(0).expand_as(u))
    measure("resample", resampled)
    return evaluated("gpt2", [subject])["sae"], losses, subject, u


def test_losses_are_those_of_hugging_face_with_plain_hooks(against):
    entry, losses, _, _ = against
    for edited in ("rows", "all"):
        for counted in ("rows", "all"):
            both = f"{edited} {counted}"
            mine = entry if both == "rows rows" else entry["with_bos"][f"edited_{edited}_counted_{counted}"]
            for name, ce in mine["ce"].items():
                assert ce == pytest.approx(losses[f"ce {name} {both}"], rel=1e-5), (name, both)
            assert mine["kl"] == pytest.approx(losses[f"kl reconstruction {both}"], rel=1e-3)
            assert mine["kl_every_position"] == pytest.approx(losses[f"every reconstruction {both}"], rel=1e-3)
            for name, kl in mine["kl_ablated"].items():
                assert kl == pytest.approx(losses[f"kl {name} {both}"], rel=1e-3), (name, both)
                cost = mine["ce"][name] - mine["ce"]["original"]
                assert mine["ablation_cost"][name] == pytest.approx(cost)
                saved = mine["ce"][name] - mine["ce"]["reconstruction"]
                assert mine["ce_recovered"][name] == pytest.approx(saved / cost)
                assert mine["kl_recovered"][name] == pytest.approx(1 - mine["kl"] / kl)


def test_tokens_and_reconstruction_with_and_without_bos(against):
    entry, _, subject, u = against
    rows = torch.ones(6, LENGTH, dtype=torch.bool)
    rows[:, 0] = rows[2, 11] = False
    with torch.no_grad():
        f = subject.dictionary.encode(subject.space.forward(u.flatten(0, 1)))
        error = (subject.space.lift(subject.dictionary.decode(f)).view_as(u) - u).pow(2).sum(-1)
    active = (f > 0).sum(1).view(6, LENGTH).double()
    with_bos = entry["with_bos"]
    assert (entry["tokens"], with_bos["tokens"], with_bos["not_rows"]["tokens"]) == (137, 144, 7)
    assert entry["l0"] == pytest.approx(active[rows].mean().item())
    assert with_bos["l0"] == pytest.approx(active.mean().item())
    assert with_bos["not_rows"]["l0"] == pytest.approx(active[~rows].mean().item())
    assert entry["reconstruction"]["site"]["mse"] == pytest.approx(error[rows].mean().item(), rel=1e-4)
    assert with_bos["reconstruction"]["mse"] == pytest.approx(error.mean().item(), rel=1e-4)
    relative = error[~rows].sum() / u[~rows].pow(2).sum()
    assert with_bos["not_rows"]["relative_error"] == pytest.approx(relative.item(), rel=1e-4)
    for one in entry["positions"]:
        inside = rows.clone()
        inside[:, : one["first"]] = inside[:, one["stop"] :] = False
        centred = u[inside] - u[inside].mean(0)
        assert one["tokens"] == int(inside.sum()) and one["l0"] == pytest.approx(active[inside].mean().item())
        assert one["fvu"] == pytest.approx((error[inside].sum() / centred.pow(2).sum()).item(), rel=1e-4)
    total = sum(one["predictions"] * one["ce_reconstruction"] for one in entry["positions"])
    assert total / entry["predictions"] == pytest.approx(entry["ce"]["reconstruction"])


def test_bins_of_positions_cover_a_context_once():
    assert position_bins(24) == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 24)]
    assert position_bins(1) == [(0, 1)]


@pytest.mark.parametrize(("site", "kind"), SUBJECTS)
def test_what_training_prints_at_its_end_is_the_same(site: str, kind: str):
    model = tiny("gpt2")
    subject = tiny_subject(model, site, kind)
    cfg = FidelityConfig(tokens=10_000, ultra_rare_below=0.02, dense_above=0.3)
    before = measure_fidelity(model, [subject], batches, ROWS, cfg)["sae"]
    found = evaluated("gpt2", [subject])["sae"]
    for key, value in before.items():
        mine = found["reconstruction"]["site"] if key == "reconstruction" else found[key]
        close({k: mine[k] for k in value} if isinstance(value, dict) else mine, value, rel=1e-5)


def test_parts_of_a_corpus_merge():
    model = tiny("gpt2")
    subjects = [
        tiny_subject(model, "mlp_acts@1", "mlp_acts", "a"),
        tiny_subject(model, "mlp_out@1", "resid_update", "b"),
    ]
    means = site_means(model, ablated_sites(model, subjects), batches(), ROWS, 10_000)
    whole, first, second = (Evaluation.start(model, subjects, ROWS, LENGTH, means, seed=0) for _ in range(3))
    second.batches = 1  # what resampling draws goes by the batch's number
    for number, contexts in enumerate(batches()):
        whole.update(contexts)
        (first if number == 0 else second).update(contexts)
    first.merge(second)
    close(first.finish(0.02, 0.3), whole.finish(0.02, 0.3))


def test_without_anything_left_out_both_choices_are_one():
    subject = tiny_subject(tiny("gpt2"), "mlp_out@1", "resid_update")
    entry = evaluated("gpt2", [subject], RowsConfig(skip_positions=0, skip_special=False))["sae"]
    for name in ("edited_rows_counted_all", "edited_all_counted_rows", "edited_all_counted_all"):
        assert entry["with_bos"][name]["ce"] == entry["ce"]
    assert entry["with_bos"]["not_rows"]["tokens"] == 0 and math.isnan(entry["with_bos"]["not_rows"]["l0"])


# ------------------------------------------------------------------------------------------------- controls


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["mlp_acts@1", "mlp_out@2", "attn_out@1", "resid_mid@1", "resid_post@0"])
def test_the_identity_recovers_exactly_everything(kind: str, site: str):
    model = tiny(kind)
    entry = evaluated(kind, [at_site(model, "identity", resolve_site(model, site))])[f"identity {site}"]
    for behaviour in (entry, entry["with_bos"]["edited_all_counted_all"]):
        assert set(behaviour["ce_recovered"].values()) == {1.0} and set(behaviour["kl_recovered"].values()) == {1.0}
        assert behaviour["kl"] == 0 and behaviour["ce"]["reconstruction"] == behaviour["ce"]["original"]
    assert set(entry["fvu"].values()) == {0.0}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["mlp_out@2", "attn_out@1", "resid_mid@1", "resid_post@0"])
def test_nothing_is_exactly_zero_ablation(kind: str, site: str):
    model = tiny(kind)
    entry = evaluated(kind, [at_site(model, "silent", resolve_site(model, site))])[f"silent {site}"]
    for behaviour in (entry, entry["with_bos"]["edited_all_counted_all"]):
        assert behaviour["ce"]["reconstruction"] == behaviour["ce"]["zero"]
        assert behaviour["ce_recovered"]["zero"] == 0 and behaviour["kl"] == behaviour["kl_ablated"]["zero"]
    assert entry["l0"] == 0 and entry["reconstruction"]["site"]["l2_ratio"] == 0


def test_controls_of_dictionaries_at_several_sites():
    model = load_model(tiny_model("gpt2"))
    subjects = [tiny_subject(model, "mlp_acts@1", "mlp_acts", "a"), tiny_subject(model, "resid_post@0", "resid", "b")]
    before = {name: parameter.clone() for name, parameter in model.bridge.named_parameters()}
    counted: list[int] = []
    cfg = EvalConfig(seed=4)
    found = measure_controls(model, subjects, batches, ROWS, cfg, length=LENGTH, progress=counted.append)
    assert list(found) == ["a", "b"]
    assert found["a"]["identity"]["site"] == "mlp_acts@1" and found["a"]["silent"]["site"] == "mlp_out@1"
    for controls in found.values():
        assert controls["identity"]["as_known"] and controls["silent"]["as_known"]
        assert controls["identity"]["tokens"] == controls["shuffled_weights"]["tokens"] == 137
    assert counted == sorted(counted) and counted[-1] == 2 * 137
    for name, parameter in model.bridge.named_parameters():
        assert torch.equal(parameter, before[name]), name
    plain = evaluated("gpt2", [subjects[0]])["a"]
    assert found["a"]["shuffled_weights"]["ce"]["original"] != pytest.approx(plain["ce"]["original"], rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "neox-parallel", "llama-tied"])
def test_shuffled_weights_are_the_same_numbers_elsewhere_and_come_back(kind: str):
    """Against a Hugging Face model of its own into which the shuffled matrices are put."""
    model = load_model(tiny_model(kind))
    tokens = some_tokens()
    with torch.no_grad():
        clean = model.bridge(tokens, return_type="logits")
    hf = AutoModelForCausalLM.from_pretrained(tiny_model(kind)).eval()
    own = dict(hf.named_parameters())
    with pytest.raises(RuntimeError, match="inside"), shuffled_weights(model, 7):
        view = plain_view(model)
        assert view is not None
        changed = dict(view.model.named_parameters())
        moved = 0
        for name, parameter in own.items():
            new = changed[name]
            if parameter.dim() == 1:
                assert torch.equal(new, parameter), name
                continue
            assert torch.equal(new.flatten().sort().values, parameter.flatten().sort().values), name
            moved += not torch.equal(new, parameter)
            parameter.data.copy_(new)
        assert moved == sum(parameter.dim() > 1 for parameter in own.values())
        with torch.no_grad():
            expected = hf(tokens).logits
        assert torch.allclose(run_and_capture(model, tokens).logits, expected, atol=1e-4)
        raise RuntimeError("inside")
    with torch.no_grad():
        assert torch.equal(model.bridge(tokens, return_type="logits"), clean)


def test_two_sites_are_spliced_where_they_write():
    """A dictionary that reads the hidden activations and writes the update: what it writes is compared and spliced."""
    model = tiny("gpt2")
    acts, update = tiny_subject(model, "mlp_acts@1", "mlp_acts"), tiny_subject(model, "mlp_out@1", "resid_update")
    reading, writing = acts.dictionary, update.dictionary

    class Across(torch.nn.Module):
        d_sae, b_dec = reading.d_sae, writing.b_dec

        def encode(self, x):
            return reading.encode(x)

        def decode(self, f, x=None):
            return writing.decode(f)

    across: Any = Across()
    subject = dataclasses.replace(acts, dictionary=across, target_space=update.space)
    entry = evaluated("gpt2", [subject])["sae"]
    assert entry["site"] == "mlp_acts@1" and entry["writes"] == {"site": "mlp_out@1", "space": "resid_update"}
    assert list(entry["fvu"]) == ["resid_update", "logit_update"] and entry["ablated_site"] == "mlp_out@1"
    at_update = evaluated("gpt2", [update])["sae"]
    assert entry["ce"]["mean"] == at_update["ce"]["mean"] and entry["ce"]["resample"] == at_update["ce"]["resample"]
