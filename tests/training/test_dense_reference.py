"""The training step against TopK written out in plain PyTorch, over many steps on real rows. The same at length, with
what rounding alone does: scripts/checks/dense_reference.py."""

from __future__ import annotations

import pytest

from scripts.checks.dense_reference import losses, real_rows, verdict


@pytest.fixture(scope="module")
def found() -> dict[str, list[float]]:
    x, trainee = real_rows(d_sae=512, k=16, batch=256, site="mlp_out@3", rows=4096)
    return losses(x, trainee, steps=100, batch=256)


@pytest.mark.parametrize("precision", ["sparse", "bfloat16"])
def test_losses_follow_the_dense_reference(found: dict[str, list[float]], precision: str) -> None:
    assert found["dense"][-1] < 0.7 * found["dense"][0]  # something was learned
    for ours, reference in zip(found[precision], found["dense"], strict=True):
        assert ours == pytest.approx(reference, rel=1e-4)
    assert verdict(found)[precision]["of_means"] < 1e-5
