"""Every figure of a reconstruction against its formula, and against SAELens's and dictionary_learning's code for it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.analysis.reconstruction import ReconstructionQuality


def pair(seed: int, rows: int, shift: float = 0.0, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=random) + shift
    return x, 0.9 * x + 0.3 * torch.randn(rows, 5, generator=random) + bias


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(4, 40),
    cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    shift=st.floats(-20, 20),
    bias=st.floats(-2, 2),
)
def test_every_figure_is_its_formula_however_it_is_batched(seed: int, rows: int, cuts, shift: float, bias: float):
    x, x_hat = pair(seed, rows, shift, bias)
    first, second = ReconstructionQuality(), ReconstructionQuality()
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    legacy = []
    for number, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        part, part_hat = x[start:stop], x_hat[start:stop]
        (first if number == 0 else second).update(part, part_hat)
        a, b = part.double(), part_hat.double()
        legacy.append((a - b).pow(2).sum(1) / (a - a.mean(0)).pow(2).sum(1))
    first.merge(second)
    found = first.finish()
    x, x_hat = x.double(), x_hat.double()
    error = x - x_hat
    fvu = error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    cosine = torch.nn.functional.cosine_similarity(x, x_hat).mean()
    expected = {
        "tokens": rows,
        "fvu": fvu.item(),
        "ev_centred": 1 - fvu.item(),
        "ev_legacy": 1 - torch.cat(legacy).mean().item(),
        "ev_legacy_batches": sum(a < b for a, b in zip(edges[:-1], edges[1:], strict=True)),
        "ev_constant_bias_blind": 1 - (error.var(0).sum() / x.var(0).sum()).item(),
        "mse": error.pow(2).sum(1).mean().item(),
        "relative_bias": (x_hat.pow(2).sum(1).mean() / (x * x_hat).sum(1).mean()).item(),
        "l2_ratio": (x_hat.norm(dim=1) / x.norm(dim=1)).mean().item(),
        "cosine": cosine.item(),
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # a batch of one token is its own mean, and what is divided by 0 there is no figure
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), key


def test_a_constant_error_is_seen_by_all_but_the_blind_one():
    x, _ = pair(0, 200)
    quality = ReconstructionQuality()
    quality.update(x, x + 2)
    found = quality.finish()
    assert found["ev_constant_bias_blind"] == pytest.approx(1)
    assert found["ev_centred"] < -2 and found["ev_legacy"] < -2


def test_shrinkage():
    x, _ = pair(1, 50)
    quality = ReconstructionQuality()
    quality.update(x, 0.5 * x)
    found = quality.finish()
    assert found["relative_bias"] == pytest.approx(0.5) and found["l2_ratio"] == pytest.approx(0.5)
    assert found["cosine"] == pytest.approx(1)


def test_nothing_to_measure_and_nothing_written():
    empty = ReconstructionQuality()
    empty.update(torch.zeros(0, 3), torch.zeros(0, 3))
    assert empty.finish()["tokens"] == 0 and math.isnan(empty.finish()["fvu"])
    x, _ = pair(2, 20)
    silent = ReconstructionQuality()
    silent.update(x, torch.zeros_like(x))
    found = silent.finish()
    assert (found["cosine"], found["l2_ratio"]) == (0, 0) and math.isnan(found["relative_bias"])


def test_against_saelens():
    evals = pytest.importorskip("sae_lens.evals", reason="SAELens is not installed")
    x, x_hat = pair(3, 300, shift=4)
    ours, theirs = ReconstructionQuality(), evals.ExplainedVarianceCalculator()
    for part, part_hat in zip(x.split(128), x_hat.split(128), strict=True):
        ours.update(part, part_hat)
        theirs.add_batch(sae_output=part_hat, hidden_acts=part)
    assert ours.finish()["ev_centred"] == pytest.approx(theirs.compute(), rel=1e-6)
