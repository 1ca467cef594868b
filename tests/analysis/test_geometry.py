"""Geometry of features against the whole matrix of cosines, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_tools.analysis import geometry as module
from sae_tools.analysis.directions import unit_norms
from sae_tools.analysis.geometry import geometry
from sae_tools.config_report import ReportConfig
from sae_tools.dictionaries import ReLUDictionary, TopKDictionary

CFG = ReportConfig(neighbours=4)


def dictionary(d_sae: int, dim: int = 12) -> ReLUDictionary:
    g = torch.Generator().manual_seed(d_sae)
    W_dec = torch.randn(d_sae, dim, generator=g) * (0.2 + torch.rand(d_sae, 1, generator=g))
    if d_sae > 6:
        W_dec[5] = 0
        W_dec[6] = -2 * W_dec[0]
    encoder = torch.randn(d_sae, dim, generator=g)
    return ReLUDictionary(
        encoder, torch.randn(d_sae, generator=g), W_dec, torch.randn(dim, generator=g), form="decoder-norm"
    )


@pytest.mark.parametrize("blocks", [(1024, 8192), (7, 5), (3, 50), (40, 1)], ids=str)
@pytest.mark.parametrize("d_sae", [1, 2, 4, 43])
def test_as_in_the_whole_matrix(d_sae: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", blocks[0])
    monkeypatch.setattr(module, "COLUMNS", blocks[1])
    it, seen = dictionary(d_sae), []
    got = {name: tensor.numpy() for name, tensor in geometry(it, CFG, lambda *p: seen.append(p)).items()}
    assert seen[-1] == (d_sae, d_sae)
    D, E, b = (t.detach().double().numpy() for t in (it.W_dec, it.encoder, it.b_enc))
    norms = np.linalg.norm(D, axis=1)
    unit = np.where(norms > 0, norms, 1)
    np.testing.assert_allclose(got["decoder_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(got["encoder_norm"], np.linalg.norm(E, axis=1) * unit, rtol=1e-5)
    np.testing.assert_allclose(got["b_enc"], b * unit, rtol=1e-5)
    dots = np.array([E[i] @ D[i] for i in range(d_sae)])
    np.testing.assert_allclose(got["projection"], dots, atol=1e-5)
    np.testing.assert_allclose(got["cosine"], dots / np.linalg.norm(E, axis=1) / unit, atol=1e-5)
    cosines = (D / unit[:, None]) @ (D / unit[:, None]).T
    for i in range(d_sae):
        others = [j for j in range(d_sae) if j != i and norms[j] > 0 and norms[i] > 0]
        ranked = sorted(others, key=lambda j: -cosines[i, j])
        near = ranked[: CFG.neighbours] + [-1] * (CFG.neighbours - len(ranked))
        assert got["nearest_feature"][i].tolist() == near
        expected = [cosines[i, j] if j >= 0 else 0 for j in near]
        np.testing.assert_allclose(got["nearest_cosine"][i], expected, atol=1e-5)
        assert got["antipode_feature"][i] == (ranked[-1] if ranked else -1)
        np.testing.assert_allclose(got["antipode_cosine"][i], cosines[i, ranked[-1]] if ranked else 0, atol=1e-5)
    if d_sae == 43:
        assert got["antipode_feature"][0] == 6 and got["antipode_cosine"][0] == pytest.approx(-1)
        assert got["nearest_feature"][5].tolist() == [-1] * 4
    assert (got["nearest_feature"].dtype, got["antipode_feature"].dtype) == (np.int32, np.int32)
    assert all(value.dtype == np.float32 for name, value in got.items() if "feature" not in name)


def test_the_unit_of_activations() -> None:
    it = dictionary(10)
    norms = unit_norms(it)
    expected = it.W_dec.norm(dim=1)
    expected[5] = 1
    assert torch.equal(norms, expected)
    kept = TopKDictionary(
        it.encoder, it.b_enc, torch.nn.functional.normalize(it.W_dec, dim=1) * (1 + 3e-7), it.b_dec, k=2
    )
    assert torch.equal(unit_norms(kept), torch.ones(10))
