"""How a dictionary starts, the unit-norm decoder, and the geometric median."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.config import DictionaryConfig, ReLUConfig, TopKConfig
from sae_tools.dictionaries import (
    Dictionary,
    ReLUDictionary,
    TopKDictionary,
    build_dictionary,
    geometric_median,
    normalise_decoder_,
    remove_parallel_gradient_,
)
from sae_tools.errors import UserError

SAMPLE = torch.randn(500, 12, generator=torch.Generator().manual_seed(3)).exp() + torch.arange(12)


def build(seed: int = 0, project: Any = None, **settings: Any) -> Dictionary:
    settings = {"site": "mlp_out@1", "d_sae": 40, "architecture": TopKConfig(k=4), **settings}
    cfg = DictionaryConfig(**settings)
    return build_dictionary(cfg, 12, torch.Generator().manual_seed(seed), SAMPLE, project=project)


def test_initial_weights() -> None:
    tied, again, other = build(), build(), build(seed=1)
    assert torch.equal(tied.encoder, tied.W_dec) and tied.encoder.data_ptr() != tied.W_dec.data_ptr()
    assert torch.equal(tied.W_dec, again.W_dec) and not torch.equal(tied.W_dec, other.W_dec)
    assert (tied.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6 and (tied.b_enc == 0).all()
    free = build(encoder_init="kaiming", architecture=ReLUConfig())
    assert free.encoder.abs().max() <= 12**-0.5 and free.encoder.std().item() == pytest.approx(
        (12 * 3) ** -0.5, rel=0.1
    )
    assert (free.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6
    cosine = torch.cosine_similarity(free.encoder, free.W_dec)
    assert cosine.abs().mean() < 0.4  # independent
    assert free.W_enc.shape == (12, 40) and torch.equal(free.W_enc.T, free.encoder)
    assert all(p.dtype == torch.float32 for p in free.parameters())


def test_initial_bias() -> None:
    assert (build(b_dec_init="zero").b_dec == 0).all()
    assert torch.allclose(build(b_dec_init="mean").b_dec, SAMPLE.mean(0))
    assert torch.allclose(build(b_dec_init="geometric_median").b_dec, geometric_median(SAMPLE))
    assert not torch.allclose(geometric_median(SAMPLE), SAMPLE.mean(0), rtol=0.01)


def test_architecture_settings_arrive() -> None:
    topk = build(architecture=TopKConfig(k=7, aux_coefficient=0.5))
    assert isinstance(topk, TopKDictionary) and (topk.k, topk.aux_k, topk.aux_coefficient) == (7, 6, 0.5)
    small = build(d_sae=3, architecture=TopKConfig(k=2))
    assert isinstance(small, TopKDictionary) and small.aux_k == 3
    explicit = build(architecture=TopKConfig(k=7, aux_k=9))
    assert isinstance(explicit, TopKDictionary) and explicit.aux_k == 9
    relu = build(architecture=ReLUConfig(form="decoder-norm"))
    assert isinstance(relu, ReLUDictionary) and relu.form == "decoder-norm"


def test_directions_that_no_row_has_are_left_out() -> None:
    def project(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z[:, :9], torch.zeros_like(z[:, 9:])], dim=1)

    for init in ("tied", "kaiming"):
        dictionary = build(encoder_init=init, project=project)
        assert (dictionary.W_dec[:, 9:] == 0).all() and (dictionary.encoder[:, 9:] == 0).all()
        assert (dictionary.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(("key", "settings"), [("k", {"k": 41}), ("k", {"k": 0}), ("aux_k", {"k": 4, "aux_k": 41})])
def test_more_active_features_than_there_are_is_refused(key: str, settings: dict[str, int]) -> None:
    tensors = (torch.zeros(40, 12), torch.zeros(40), torch.zeros(40, 12), torch.zeros(12))
    with pytest.raises(UserError, match=rf"architecture\.{key} is {settings[key]}.*d_sae = 40"):
        TopKDictionary(*tensors, **settings)  # type: ignore[arg-type]


@given(d=st.integers(2, 30), d_sae=st.integers(1, 50), seed=st.integers(0, 99))
def test_unit_decoder_step(d: int, d_sae: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d, generator=g)
    dictionary = ReLUDictionary(torch.randn(d_sae, d, generator=g), torch.zeros(d_sae), W_dec, torch.zeros(d))
    normalise_decoder_(dictionary)
    assert (dictionary.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6
    assert torch.allclose(torch.cosine_similarity(dictionary.W_dec, W_dec), torch.ones(()))
    gradient = torch.randn(d_sae, d, generator=g)
    left = gradient.clone()
    remove_parallel_gradient_(left, dictionary.W_dec.detach())
    assert (left * dictionary.W_dec).sum(-1).abs().max() < 1e-6 * max(1.0, gradient.norm(dim=-1).max().item())
    along = (gradient * dictionary.W_dec).sum(-1, keepdim=True) * dictionary.W_dec
    assert torch.allclose(left + along, gradient, atol=1e-5)


def test_normalising_leaves_a_zero_row_finite() -> None:
    dictionary = ReLUDictionary(
        torch.zeros(2, 3), torch.zeros(2), torch.tensor([[0.0, 0, 0], [3, 0, 4]]), torch.zeros(3)
    )
    normalise_decoder_(dictionary)
    assert dictionary.W_dec.tolist() == [[0, 0, 0], [pytest.approx(0.6), 0, pytest.approx(0.8)]]


def test_geometric_median_where_it_is_known() -> None:
    g = torch.Generator().manual_seed(0)
    half = torch.randn(200, 5, generator=g)
    centre = torch.tensor([3.0, -1, 0, 5, 2])
    assert torch.allclose(geometric_median(torch.cat([centre + half, centre - half])), centre, atol=1e-4)
    # Fermat point of a triangle with angles below 120 degrees: the sides are seen at 120 degrees.
    triangle = torch.tensor([[0.0, 0], [4, 0], [1, 3]], dtype=torch.float64)
    directions = torch.nn.functional.normalize(triangle - geometric_median(triangle), dim=-1)
    assert directions.sum(0).norm() < 1e-5
    # An obtuse corner of more than 120 degrees is itself the median, and so is a row that most rows share.
    obtuse = torch.tensor([[0.0, 0], [5, 0.5], [-5, 0.5]], dtype=torch.float64)
    assert geometric_median(obtuse, max_iterations=5000).norm() < 1e-3
    shared = torch.cat([torch.ones(60, 4), torch.randn(40, 4, generator=g)])
    assert torch.allclose(geometric_median(shared), torch.ones(4), atol=1e-3)
    at_a_row = torch.tensor([[0.0, 0], [1, 1], [1, -2], [-2, 1]])  # the mean, a row, and the median are one point
    assert torch.equal(geometric_median(at_a_row), torch.zeros(2))
    assert torch.equal(geometric_median(torch.full((7, 3), 2.5)), torch.full((3,), 2.5))


def test_geometric_median_resists_outliers_and_beats_the_mean() -> None:
    x = SAMPLE.double().clone()
    x[:20] += 1e4
    median, mean = geometric_median(x, chunk=64), x.mean(0)
    assert (median - geometric_median(SAMPLE.double())).norm() < 1
    assert (x - median).norm(dim=-1).sum() < (x - mean).norm(dim=-1).sum()
    for direction in torch.eye(12, dtype=torch.float64):  # no small step improves it
        for sign in (-1e-3, 1e-3):
            assert (x - median - sign * direction).norm(dim=-1).sum() >= (x - median).norm(dim=-1).sum()
