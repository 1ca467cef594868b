from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

from tests.shapes import checked


@jaxtyped(typechecker=checked)
def f(
    x: Float[Tensor, "rows d"], w: Float[Tensor, " d"] | None = None, n: int | None = None, bad: bool = False
) -> tuple[Int[Tensor, " rows"], tuple[Float[Tensor, " d"], ...]]:
    d = x.shape[1] + (1 if bad else 0)
    return torch.zeros(len(x), dtype=torch.int64), (torch.zeros(d),)


def test_what_fits_passes():
    f(torch.zeros(2, 3))
    f(torch.zeros(2, 3), torch.zeros(3), n=3)
    f(torch.zeros(5, 1), None, None)


@pytest.mark.parametrize(
    ("x", "w", "bad"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), None, False),
        (torch.zeros(2), None, False),
        (torch.zeros(2, 3), torch.zeros(2), False),
        (torch.zeros(2, 3), torch.zeros(3), True),
    ],
)
def test_what_does_not_fit_is_an_error(x, w, bad):
    with pytest.raises(TypeCheckError):
        f(x, w, bad=bad)


def test_the_package_is_checked():
    from sae_tools.tracking.density import DensityCounter

    with pytest.raises(TypeCheckError):
        DensityCounter(3).update(torch.zeros(3, 1, dtype=torch.int64), 1)
