"""The logit metric and its root, against the definition with the vocabulary written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.errors import UserError
from sae_tools.spaces.root import gram, root_of


def logit_map(W_U: torch.Tensor, weight: torch.Tensor, centres: bool) -> torch.Tensor:
    """M_c = P Γ W_U C with every factor as a matrix."""
    d, V = W_U.shape
    P = torch.eye(d, dtype=torch.float64) - (1 / d if centres else 0)
    C = torch.eye(V, dtype=torch.float64) - 1 / V
    return P @ torch.diag(weight.double()) @ W_U.double() @ C


def example(d: int, V: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(d, V, generator=g) + 0.5, 1 + 0.3 * torch.randn(d, generator=g)


@given(d=st.integers(2, 24), V=st.integers(2, 60), centres=st.booleans(), chunk=st.integers(1, 70))
def test_gram_and_root_follow_the_definition(d: int, V: int, centres: bool, chunk: int) -> None:
    W_U, weight = example(d, V, seed=d * 100 + V)
    M_c = logit_map(W_U, weight, centres)
    G = gram(W_U, weight, centres, chunk=chunk)
    assert torch.allclose(G, M_c @ M_c.T, rtol=1e-10, atol=1e-10 * G.abs().max())
    root = root_of(G)
    assert root.rank == torch.linalg.matrix_rank(M_c) == min(d - centres, V - 1)
    A, A_plus = root.matrix, root.inverse
    assert torch.allclose(A @ A.T, G, rtol=1e-9, atol=1e-9 * G.abs().max())
    assert (A[:, root.rank :] == 0).all() and (A_plus[root.rank :] == 0).all()
    assert torch.allclose(A_plus, torch.linalg.pinv(A, rtol=1e-7), rtol=1e-5, atol=1e-6 * A_plus.abs().max())


@pytest.mark.parametrize("centres", [True, False])
def test_squared_error_is_that_of_the_centred_logits(centres: bool) -> None:
    W_U, weight = example(32, 500)
    root = root_of(gram(W_U, weight, centres))
    assert root.rank == 32 - centres  # LayerNorm cannot see the all-ones direction
    g = torch.Generator().manual_seed(1)
    e, sigma = torch.randn(100, 32, generator=g), 1 + torch.rand(100, 1, generator=g)
    in_logits = ((e.double() / sigma) @ logit_map(W_U, weight, centres)).pow(2).sum(-1)
    single = ((e / sigma) @ root.matrix.float()).pow(2).sum(-1)
    assert ((single - in_logits) / in_logits).abs().max() < 1e-5


@pytest.mark.parametrize("centres", [True, False])
def test_a_unit_row_is_a_unit_centred_logit_vector(centres: bool) -> None:
    W_U, weight = example(16, 90)
    root = root_of(gram(W_U, weight, centres))
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows[:, root.rank :] = 0
    rows = rows / rows.norm(dim=-1, keepdim=True)
    logits = (rows.float() @ root.inverse.float()) @ logit_map(W_U, weight, centres).float()
    assert (logits.norm(dim=-1) - 1).abs().max() < 1e-5
    assert logits.mean(-1).abs().max() < 1e-5


def test_convention_falling_eigenvalues_largest_component_positive() -> None:
    root = root_of(gram(*example(20, 70), True))
    norms = root.matrix.norm(dim=0)
    assert (norms[:-1] >= norms[1:]).all()
    columns = root.matrix[:, : root.rank]
    assert (columns.gather(0, columns.abs().argmax(0, keepdim=True)) > 0).all()


def test_any_other_root_gives_the_same_loss() -> None:
    G = gram(*example(20, 70), False)
    cholesky, ours = torch.linalg.cholesky(G), root_of(G).matrix
    e = torch.randn(64, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    a, b = (e @ cholesky).pow(2).sum(-1), (e @ ours).pow(2).sum(-1)
    assert ((a - b) / a).abs().max() < 1e-10


def test_low_precision_weights_are_read_in_double() -> None:
    W_U, weight = example(16, 64)
    half = W_U.half()
    assert torch.equal(gram(half, weight, True), gram(half.double(), weight.double(), True))


def test_useless_unembeddings_are_refused() -> None:
    with pytest.raises(UserError, match="same logit"):
        root_of(gram(torch.ones(4, 9), torch.ones(4), False))
    with pytest.raises(UserError, match="not finite"):
        root_of(gram(torch.full((4, 9), torch.nan), torch.ones(4), False))
