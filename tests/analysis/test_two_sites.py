"""Figures of dictionaries that write elsewhere than they read: what is known in closed form, and plain Hugging Face."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_tools.analysis.fidelity import measure_fidelity
from sae_tools.analysis.geometry import geometry
from sae_tools.analysis.logit_weights import logit_weights
from sae_tools.analysis.subject import Subject, kept_positions, reconstruct
from sae_tools.config import FidelityConfig, RowsConfig
from sae_tools.dictionaries import TopKDictionary
from sae_tools.models.mlp import mlp_output_map
from sae_tools.rows import Contexts
from tests.analysis.subjects import WINDOW, tiny, tiny_corpus, tiny_subject, tiny_transcoder
from tests.tiny_models import tiny_model

ROWS = RowsConfig()


def batches() -> Iterator[Contexts]:
    return tiny_corpus(tiny(), contexts=6).batches(2)


def with_parameters(subject: Subject, **tensors: Tensor) -> Subject:
    """The same places, and the features of before, of which none fires, but for what is given."""
    d = subject.dictionary
    own = {"W_dec": torch.zeros_like(d.W_dec), "b_dec": torch.zeros_like(d.b_dec), **tensors}
    silent = TopKDictionary(
        d.encoder, d.b_enc - 1e6, own["W_dec"], own["b_dec"], k=4, subtract_b_dec=False, W_skip=own.get("W_skip")
    )
    return dataclasses.replace(subject, dictionary=silent)


def test_the_exact_map_as_skip_connection_recovers_everything() -> None:
    model = tiny()
    subject = tiny_transcoder(model, "mlp_acts@1", "mlp_out@1", "resid_update")
    read, written = subject.space.affine(), subject.written.affine()
    W_out, b_out = (t.double() for t in mlp_output_map(model, 1))
    # z -> h -> h W_out + b_out -> the written space
    W_skip = written[0].linear(read[1].linear(torch.eye(subject.space.dim)) @ W_out)
    b_dec = written[0](read[1].offset @ W_out + b_out)
    exact = with_parameters(subject, W_skip=W_skip.float(), b_dec=b_dec.float())
    found = measure_fidelity(model, [exact], batches, ROWS, FidelityConfig())["transcoder"]
    assert list(found["fvu"]) == ["resid_update", "logit_update"] and found["l0"] == 0
    assert max(*found["fvu"].values(), found["fvu_trained"]) < 1e-9
    assert found["ce_recovered"]["mean"] == pytest.approx(1, abs=1e-4) and found["kl"] == pytest.approx(0, abs=1e-6)
    assert (found["site"], found["writes"]) == ("mlp_acts@1", {"site": "mlp_out@1", "space": "resid_update"})


def test_one_that_outputs_nothing_equals_zero_ablation_of_what_it_writes() -> None:
    model = tiny()
    silent = with_parameters(tiny_transcoder(model, "mlp_in@1", "mlp_out@1", "resid_update"))
    found = measure_fidelity(model, [silent], batches, ROWS, FidelityConfig())["transcoder"]
    assert found["ablated_site"] == "mlp_out@1"
    assert found["ce"]["reconstruction"] == pytest.approx(found["ce"]["zero"], rel=1e-6)
    assert found["kl"] == pytest.approx(found["kl_ablated"]["zero"], rel=1e-5)


@torch.no_grad()
def test_against_hugging_face_with_plain_hooks() -> None:
    model = tiny()
    hf: Any = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).eval()
    subject = tiny_transcoder(model, "mlp_in@1", "mlp_out@1", "resid_update", centre="mean")
    found = measure_fidelity(model, [subject], batches, ROWS, FidelityConfig())["transcoder"]
    tokens = torch.cat([part.tokens for part in batches()])
    kept = kept_positions(tokens, ROWS, model.special_token_ids)
    mlp, seen = hf.transformer.h[1].mlp, []

    def splice(module, args, out):
        read, written, d = subject.space, subject.written, subject.dictionary
        z = (args[0][kept] - read.centre) / read.scale
        f = torch.zeros(len(z), d.d_sae)
        top = (z @ d.encoder.T + d.b_enc).topk(4)
        f.scatter_(1, top.indices, top.values.relu())
        x_hat = (f @ d.W_dec + d.b_dec + z @ d.W_skip) * written.scale + written.centre
        seen.append((out[kept], x_hat, f))
        new = out.clone()
        new[kept] = x_hat
        return new

    handle = mlp.register_forward_hook(splice)
    logits = hf(tokens).logits[:, :-1][kept[:, :-1]]
    handle.remove()
    y, y_hat, f = seen[0]
    ce = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][kept[:, :-1]])
    assert found["ce"]["reconstruction"] == pytest.approx(ce.item(), rel=1e-5)
    fvu = (y - y_hat).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert found["fvu"]["resid_update"] == pytest.approx(fvu.item(), rel=1e-4)
    assert found["reconstruction"]["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    assert found["l0"] == pytest.approx((f > 0).sum().item() / len(f))


def test_logit_weights_are_those_of_the_written_space() -> None:
    model = tiny()
    subject = tiny_transcoder(model, "mlp_acts@1", "mlp_out@2", "logit_update", rotation=1)
    alone = tiny_subject(model, "mlp_out@2", "logit_update", rotation=1)
    assert torch.equal(subject.dictionary.W_dec, alone.dictionary.W_dec)
    expected = logit_weights(alone, model, 0.3, WINDOW)
    found = logit_weights(subject, model, 0.3, WINDOW)
    assert all(torch.equal(found[key], expected[key]) for key in expected) and len(expected) == 7


def test_rows_of_two_spaces_have_no_projection() -> None:
    subject = tiny_transcoder(tiny(), "mlp_in@1", "mlp_out@1", "resid_update")
    found = geometry(subject.dictionary, WINDOW, two_sites=True)
    assert "projection" not in found and "cosine" not in found
    assert torch.allclose(found["encoder_norm"], subject.dictionary.encoder.norm(dim=1))


def test_what_is_written_must_be_given() -> None:
    subject = tiny_transcoder(tiny(), "mlp_in@1", "mlp_out@1", "resid_update")
    with pytest.raises(ValueError, match="'transcoder' writes at mlp_out@1"):
        reconstruct(subject, torch.zeros(2, 32), None, torch.ones(2, dtype=torch.int64))
