"""How dictionaries start that reconstruct other vectors than they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_tools.config import DictionaryConfig, SpaceConfig, TopKConfig, WritesConfig
from sae_tools.dictionaries import build_dictionary, geometric_median
from sae_tools.dictionaries.initial import RIDGE, Target, linear_prediction

D_IN, D_OUT, ROWS = 12, 7, 3000
WRITES = WritesConfig(site="mlp_out@0", space=SpaceConfig())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(ROWS, D_IN, generator=generator(1)) @ torch.randn(D_IN, D_IN, generator=generator(2)) + 3
MAP = torch.randn(D_IN, D_OUT, generator=generator(3))


def settings(**changes) -> DictionaryConfig:
    return DictionaryConfig(site="mlp_in@0", writes=WRITES, d_sae=30, architecture=TopKConfig(k=4), **changes)


@pytest.mark.parametrize("rows", [60, ROWS])
def test_the_prediction_is_ridge_regression(rows: int) -> None:
    y = X @ MAP + X.square() @ MAP.flip(0) / 10 + 1
    used = min(rows, 8 * D_IN)
    x = X[:used].double().numpy()
    x = x - x.mean(0)
    penalty = np.sqrt(RIDGE * (x**2).sum(0).mean()) * np.eye(D_IN)
    target = (y[:used] - y[:used].mean(0)).double().numpy()
    expected = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([target, np.zeros((D_IN, D_OUT))]))[0]
    found = linear_prediction(X[:rows], y[:rows]).double().numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_rows_that_are_all_equal_predict_nothing() -> None:
    assert (linear_prediction(torch.ones(20, 3), torch.randn(20, 2)) == 0).all()


def test_tied_is_a_tied_sae_on_the_linear_prediction() -> None:
    y = X @ MAP
    cfg = settings(skip=True)
    dictionary = build_dictionary(cfg, D_IN, generator(), X, target=Target(D_OUT, y))
    assert dictionary.W_dec.norm(dim=1).allclose(torch.ones(30))
    assert not dictionary.subtract_b_dec and (dictionary.d_in, dictionary.d_out) == (D_IN, D_OUT)
    assert torch.allclose(dictionary.b_dec, geometric_median(y), atol=1e-5)
    centred = (X - geometric_median(X)) @ linear_prediction(X, y)
    with torch.no_grad():
        expected = centred @ dictionary.W_dec.T
        found = dictionary.pre_activations(X)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert dictionary.W_skip is not None and (dictionary.W_skip == 0).all()


def test_kaiming_is_independent() -> None:
    cfg = settings(encoder_init="kaiming", b_dec_init="zero")
    dictionary = build_dictionary(cfg, D_IN, generator(), X, target=Target(D_OUT, X @ MAP))
    assert dictionary.encoder.abs().max() <= D_IN**-0.5 and (dictionary.b_enc == 0).all()
    assert (dictionary.b_dec == 0).all() and dictionary.W_skip is None


def test_decoder_rows_are_in_the_written_space_and_encoder_rows_in_the_read_one() -> None:
    def without_last(v: torch.Tensor) -> torch.Tensor:
        return torch.cat([v[:, :-1], torch.zeros_like(v[:, -1:])], dim=1)

    for init in ("tied", "kaiming"):
        target = Target(D_OUT, without_last(X @ MAP), without_last)
        cfg = settings(encoder_init=init)
        dictionary = build_dictionary(cfg, D_IN, generator(), without_last(X), project=without_last, target=target)
        assert (dictionary.W_dec[:, -1] == 0).all() and dictionary.encoder[:, -1].abs().max() < 1e-6


def test_auxk_defaults_to_half_of_what_is_written() -> None:
    assert build_dictionary(settings(), D_IN, generator(), X, target=Target(D_OUT, X @ MAP)).aux_k == 3
