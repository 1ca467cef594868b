"""Fidelity against what must come out: controls whose answer is known, Hugging Face's own model with plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from sae_tools.activations.harvest import Harvester
from sae_tools.analysis.fidelity import measure_fidelity
from sae_tools.analysis.subject import Subject, kept_positions, reconstruct
from sae_tools.config import DictionaryConfig, FidelityConfig, RowsConfig, SpaceConfig, TopKConfig
from sae_tools.dictionaries import ReLUDictionary, TopKDictionary, build_dictionary
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import Site, resolve_site
from sae_tools.rows import Contexts, Rows
from sae_tools.spaces import Space, build_space
from tests.tiny_models import tiny_model

ROWS = RowsConfig()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def contexts() -> list[Contexts]:
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 256, (6, 24), generator=random)
    tokens[:, 0] = 256
    tokens[2, 11] = 256  # a document joined by BOS: no row there
    return [Contexts(part, torch.zeros_like(part)) for part in tokens.split(2)]


def batches(contexts: list[Contexts]) -> Callable[[], Iterator[Contexts]]:
    return lambda: iter(contexts)


def sample_of(model: LanguageModel, site: str, contexts: list[Contexts]) -> Rows:
    harvester = Harvester(model, [resolve_site(model, site)], ROWS, need_scale=True)
    return Rows.concatenate([harvester.harvest(part) for part in contexts])


def subject_of(model: LanguageModel, contexts: list[Contexts], site: str, kind: str, name: str = "it") -> Subject:
    sample = sample_of(model, site, contexts)
    place = resolve_site(model, site)
    space = build_space(SpaceConfig(kind=kind), place, model, sample)  # type: ignore[arg-type]
    cfg = DictionaryConfig(site=site, d_sae=2 * space.dim, architecture=TopKConfig(k=5))
    dictionary = build_dictionary(cfg, space.dim, torch.Generator().manual_seed(0), space.read(sample))
    return Subject(name, place, space, dictionary)


def perfect(subject: Subject) -> Subject:
    """The same place and space with a dictionary of ± every coordinate: k = d finds each vector exactly."""
    eye = torch.eye(subject.space.dim)
    both = torch.cat([eye, -eye])
    zeros = torch.zeros(2 * subject.space.dim), torch.zeros(subject.space.dim)
    dictionary = TopKDictionary(both, zeros[0], both.clone(), zeros[1], k=subject.space.dim)
    return Subject("perfect", subject.site, subject.space, dictionary)


def silent(subject: Subject) -> Subject:
    """Outputs nothing: no feature ever fires and there is no decoder bias."""
    d, m = subject.space.dim, subject.dictionary.d_sae
    dictionary = TopKDictionary(torch.zeros(m, d), -torch.ones(m), torch.zeros(m, d), torch.zeros(d), k=1)
    return Subject("silent", subject.site, subject.space, dictionary)


SPACES = [
    ("mlp_acts@1", "mlp_acts"),
    ("mlp_out@1", "resid_update"),
    ("mlp_out@2", "logit_update"),
    ("resid_post@0", "resid"),
]


@pytest.mark.parametrize(("site", "kind"), SPACES)
def test_a_perfect_dictionary_recovers_everything(model, contexts, site: str, kind: str):
    subject = perfect(subject_of(model, contexts, site, kind))
    found = measure_fidelity(model, [subject], batches(contexts), ROWS, FidelityConfig())["perfect"]
    assert all(fvu < 1e-9 for fvu in found["fvu"].values())
    assert found["ce_recovered"]["mean"] == pytest.approx(1, abs=1e-4)
    assert found["ce_recovered"]["zero"] == pytest.approx(1, abs=1e-4)
    assert found["kl"] == pytest.approx(0, abs=1e-6)


def test_a_silent_dictionary_equals_zero_ablation(model, contexts):
    subject = silent(subject_of(model, contexts, "mlp_out@1", "resid_update"))
    found = measure_fidelity(model, [subject], batches(contexts), ROWS, FidelityConfig())["silent"]
    assert found["ce"]["reconstruction"] == pytest.approx(found["ce"]["zero"], rel=1e-6)
    assert found["ce_recovered"]["zero"] == pytest.approx(0, abs=1e-5)
    assert found["kl"] == pytest.approx(found["kl_ablated"]["zero"], rel=1e-5)
    assert (found["l0"], found["dead"]) == (0, subject.dictionary.d_sae)


def test_forward_spaces_of_one_mlp(model, contexts):
    """A reconstruction of the activations is measured in all three spaces; what follows from linearity must hold."""
    acts = subject_of(model, contexts, "mlp_acts@1", "mlp_acts", "acts")
    update = subject_of(model, contexts, "mlp_out@1", "resid_update", "update")
    found = measure_fidelity(model, [acts, update], batches(contexts), ROWS, FidelityConfig())
    assert list(found["acts"]["fvu"]) == ["mlp_acts", "resid_update", "logit_update"]
    assert list(found["update"]["fvu"]) == ["resid_update", "logit_update"]
    assert found["acts"]["fvu_trained"] == pytest.approx(found["acts"]["fvu"]["mlp_acts"], rel=1e-4)
    assert found["acts"]["ce"]["mean"] == found["update"]["ce"]["mean"]  # the same MLP's output is ablated
    assert found["acts"]["ablated_site"] == "mlp_out@1"


def test_everything_against_hugging_face_with_plain_hooks(model, contexts):
    subject = subject_of(model, contexts, "mlp_out@1", "resid_update")
    found = measure_fidelity(model, [subject], batches(contexts), ROWS, FidelityConfig())["it"]

    hf = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).eval()
    tokens = torch.cat([part.tokens for part in contexts])
    kept = kept_positions(tokens, ROWS, model.special_token_ids)
    assert not kept[2, 11] and not kept[:, 0].any()
    mlp = hf.transformer.h[1].mlp
    seen: list[torch.Tensor] = []
    handle = mlp.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    with torch.no_grad():
        original = hf(tokens).logits
    handle.remove()
    u = seen[0][kept]
    z_hat = subject.dictionary(subject.space.forward(u))
    u_hat = subject.space.lift(z_hat)

    def losses(value: torch.Tensor) -> tuple[float, float]:
        def splice(m, a, out):
            new = out.clone()
            new[kept] = value
            return new

        handle = mlp.register_forward_hook(splice)
        with torch.no_grad():
            logits = hf(tokens).logits
        handle.remove()
        mask = kept[:, :-1]
        q, p = (z[:, :-1][mask].log_softmax(-1) for z in (logits, original))
        ce = -q.gather(-1, tokens[:, 1:][mask][:, None]).mean()
        return ce.item(), (p.exp() * (p - q)).sum(-1).mean().item()

    ce, kl = losses(u_hat)
    assert found["ce"]["reconstruction"] == pytest.approx(ce, rel=1e-5)
    assert found["kl"] == pytest.approx(kl, rel=1e-3)
    assert found["ce"]["zero"] == pytest.approx(losses(torch.zeros_like(u))[0], rel=1e-5)
    assert found["ce"]["mean"] == pytest.approx(losses(u.mean(0).expand_as(u))[0], rel=1e-5)
    assert found["ce"]["original"] == pytest.approx(losses(u)[0], rel=1e-5)
    fvu = (u - u_hat).pow(2).sum() / (u - u.mean(0)).pow(2).sum()
    assert found["fvu"]["resid_update"] == pytest.approx(fvu.item(), rel=1e-4)
    assert found["tokens"] == int(kept.sum())
    codes = subject.dictionary.encode(subject.space.forward(u))
    assert found["l0"] == pytest.approx((codes > 0).sum().item() / len(u))
    assert found["dead"] == int(((codes > 0).sum(0) == 0).sum())


def test_a_dictionary_may_be_on_another_device_than_the_model(monkeypatch):
    """A model handed over in memory stays where it is. Fake tensors compute nothing, but refuse to mix devices."""
    monkeypatch.setattr("torch._functorch.config.fake_tensor_allow_meta", True)
    with FakeTensorMode():
        site = Site("mlp_out", 0, "blocks.0.hook_mlp_out", 4)
        there = [torch.zeros(*shape, device="meta") for shape in ((6, 4), (6,), (6, 4), (4,), (4, 4))]
        *weights, A = there
        space = Space("logit_update", site, 4, 4, "token", 1.0, weights[-1], weights[-1], A, A)
        subject = Subject("it", site, space, ReLUDictionary(*weights))
        result = reconstruct(subject, torch.zeros(3, 4), torch.ones(3), torch.zeros(3, dtype=torch.int64))
        assert result.x_hat.device.type == "cpu"
        assert result.z_hat.device.type == result.fired.device.type == "meta"
