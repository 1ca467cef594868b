import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.analysis.behaviour import NextTokenLoss, log_softmax, recovered
from sae_tools.analysis.density import FiringCounts
from sae_tools.analysis.reconstruction import VarianceUnexplained
from sae_tools.analysis.table import ce_recovered


@given(seed=st.integers(0, 1000), rows=st.integers(2, 40), cut=st.integers(0, 40), shift=st.floats(-50, 50))
def test_variance_unexplained_is_the_definition_however_it_is_batched(seed: int, rows: int, cut: int, shift: float):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=random) + shift
    x_hat = x + 0.3 * torch.randn(rows, 5, generator=random)
    first, second = VarianceUnexplained(), VarianceUnexplained()
    first.update(x[:cut], x_hat[:cut])
    second.update(x[cut:], x_hat[cut:])
    first.merge(second)
    expected = (x - x_hat).double().pow(2).sum() / (x.double() - x.double().mean(0)).pow(2).sum()
    assert first.tokens == rows
    assert first.finish() == pytest.approx(expected.item(), rel=1e-6)


def test_the_mean_leaves_everything_unexplained_and_the_original_nothing():
    x = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) + 3
    mean, same = VarianceUnexplained(), VarianceUnexplained()
    mean.update(x, x.mean(0).expand_as(x))
    same.update(x, x)
    assert mean.finish() == pytest.approx(1, rel=1e-5)
    assert same.finish() == 0
    assert math.isnan(VarianceUnexplained().finish())


def test_classes_of_density():
    counts = FiringCounts(5)
    counts.update(torch.tensor([0, 1, 50, 400, 0]), 600)
    other = FiringCounts(5)
    other.update(torch.tensor([0, 0, 50, 400, 1]), 400)
    counts.merge(other)
    found = counts.finish(ultra_rare_below=0.002, dense_above=0.5)
    assert (found["dead"], found["ultra_rare"], found["dense"]) == (1, 2, 1)
    assert found["l0"] == pytest.approx((1 + 100 + 800 + 1) / 1000)
    assert found["dead_density_bound"] == pytest.approx(0.003)


def test_cross_entropy_and_divergence_against_torch():
    random = torch.Generator().manual_seed(1)
    logits, edited = torch.randn(2, 3, 6, 11, generator=random)
    tokens = torch.randint(0, 11, (3, 6), generator=random)
    counted = torch.rand(3, 6, generator=random) < 0.6
    sums = NextTokenLoss()
    for i in range(3):
        sums.update(
            log_softmax(edited[i : i + 1]), log_softmax(logits[i : i + 1]), tokens[i : i + 1], counted[i : i + 1]
        )
    ce, kl = sums.finish()
    mask = counted[:, :-1].flatten()
    expected_ce = torch.nn.functional.cross_entropy(edited[:, :-1].flatten(0, 1)[mask], tokens[:, 1:].flatten()[mask])
    p, q = (torch.distributions.Categorical(logits=z[:, :-1].flatten(0, 1)[mask]) for z in (logits, edited))
    assert ce == pytest.approx(expected_ce.item(), rel=1e-5)
    assert kl == pytest.approx(torch.distributions.kl_divergence(p, q).mean().item(), rel=1e-5)
    assert sums.tokens == int(mask.sum())


def test_recovered_is_one_for_the_original_and_zero_for_the_ablation():
    assert recovered(2.0, ablation=3.0, original=2.0) == 1
    assert recovered(3.0, ablation=3.0, original=2.0) == 0
    assert recovered(2.25, ablation=3.0, original=2.0) == 0.75
    assert math.isnan(recovered(2.0, ablation=2.0, original=2.0))


def test_what_an_ablation_that_helps_would_recover_is_not_shown():
    entry = {
        "ce_recovered": {"mean": 0.5, "zero": 1.2, "none": None},
        "ablation_cost": {"mean": 0.4, "zero": -0.2, "none": 0},
    }
    assert [ce_recovered(entry, name) for name in entry["ce_recovered"]] == ["0.5000", "–", "–"]
