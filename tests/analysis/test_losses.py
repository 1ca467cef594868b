"""Losses by position against torch's own, however contexts are batched; donors of resample ablation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.analysis import losses as module
from sae_tools.analysis.losses import PositionLosses, token_losses
from sae_tools.analysis.splicing import ablations, donors
from sae_tools.models.sites import Site

LENGTH, VOCABULARY = 7, 11


@given(seed=st.integers(0, 1000), cut=st.integers(0, 5), span=st.tuples(st.integers(0, 6), st.integers(1, 7)))
def test_means_against_torch(seed: int, cut: int, span: tuple[int, int]):
    random = torch.Generator().manual_seed(seed)
    logits, edited = torch.randn(2, 5, LENGTH, VOCABULARY, generator=random)
    tokens = torch.randint(0, VOCABULARY, (5, LENGTH), generator=random)
    counted = torch.rand(5, LENGTH, generator=random) < 0.6
    original = logits.log_softmax(-1)
    parts = PositionLosses(LENGTH), PositionLosses(LENGTH)
    for sums, part in zip(parts, (slice(0, cut), slice(cut, None)), strict=True):
        if len(tokens[part]):
            sums.update(token_losses(edited[part], original[part], tokens[part]), counted[part])
    parts[0].merge(parts[1])
    first, stop = span
    found = parts[0].finish(first, stop)
    place = torch.arange(LENGTH)
    inside = counted & (place >= first) & (place < stop)
    predicts = (inside & (place < LENGTH - 1))[:, :-1]
    assert found.predictions == int(predicts.sum())
    if not found.predictions:
        assert math.isnan(found.ce) and math.isnan(found.kl)
        return
    ce = torch.nn.functional.cross_entropy(edited[:, :-1][predicts], tokens[:, 1:][predicts])
    p, q = (torch.distributions.Categorical(logits=z) for z in (logits, edited))
    kl = torch.distributions.kl_divergence(p, q)
    assert found.ce == pytest.approx(ce.item(), rel=1e-5)
    assert found.kl == pytest.approx(kl[:, :-1][predicts].mean().item(), rel=1e-4)
    assert found.kl_every_position == pytest.approx(kl[inside].mean().item(), rel=1e-4)


def test_chunks_change_nothing(monkeypatch):
    random = torch.Generator().manual_seed(0)
    logits, edited = torch.randn(2, 5, LENGTH, VOCABULARY, generator=random)
    tokens = torch.randint(0, VOCABULARY, (5, LENGTH), generator=random)
    whole = token_losses(edited, logits.log_softmax(-1), tokens)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    for a, b in zip(whole, token_losses(edited, logits.log_softmax(-1), tokens), strict=True):
        assert torch.equal(a, b)


def test_an_unedited_model_diverges_by_nothing_at_all():
    logits = 5 * torch.randn(3, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(2))
    tokens = torch.zeros(3, LENGTH, dtype=torch.int64)
    assert not token_losses(logits, logits.log_softmax(-1), tokens).divergence.any()


@given(tokens=st.integers(2, 50), seed=st.integers(0, 100))
def test_every_token_gives_once_and_never_to_itself(tokens: int, seed: int):
    found = donors(tokens, torch.Generator().manual_seed(seed))
    assert sorted(found.tolist()) == list(range(tokens))
    assert not (found == torch.arange(tokens)).any()


def test_a_lone_token_and_none():
    random = torch.Generator().manual_seed(0)
    assert donors(1, random).tolist() == [0] and donors(0, random).tolist() == []


def test_resampled_activations_are_those_of_the_chosen_tokens_and_only_there():
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    where = torch.tensor([[False, True, True, True], [False, True, False, True]])
    site = Site("mlp_out", 0, "blocks.0.hook_mlp_out", 3)
    edits = ablations(site, x, torch.full((3,), 7.0), where, torch.Generator().manual_seed(5))
    found = edits["resample"](x)
    assert torch.equal(found[~where], x[~where])
    before, after = x[where], found[where]
    assert sorted(map(tuple, after.tolist())) == sorted(map(tuple, before.tolist()))
    assert not (before == after).all(1).any()
    again = ablations(site, x, torch.full((3,), 7.0), where, torch.Generator().manual_seed(5))["resample"](x)
    assert torch.equal(found, again)
    assert (edits["mean"](x)[where] == 7).all() and not edits["zero"](x)[where].any()
