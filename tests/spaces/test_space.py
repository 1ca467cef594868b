"""Spaces built from rows: forward, lift, folding, controls, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.config import SpaceConfig
from sae_tools.errors import UserError
from sae_tools.models.sites import Site
from sae_tools.rows import Rows
from sae_tools.spaces import Root, Space, build_space, gram, root_of
from sae_tools.spaces.build import random_rotation

D = 12
SITES = {
    "mlp_acts": Site("mlp_acts", 1, "blocks.1.mlp.hook_post", D),
    "resid_update": Site("mlp_out", 1, "blocks.1.hook_mlp_out", D),
    "logit_update": Site("mlp_out", 1, "blocks.1.hook_mlp_out", D),
    "resid": Site("resid_post", 1, "blocks.1.hook_resid_post", D),
}


def a_root(d: int = D, centres: bool = True) -> Root:
    g = torch.Generator().manual_seed(0)
    return root_of(gram(torch.randn(d, 50, generator=g), 1 + 0.2 * torch.randn(d, generator=g), centres))


def rows_at(site: Site, n: int = 300, seed: int = 0, d: int = D) -> Rows:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g) * torch.linspace(0.5, 3, d) + torch.linspace(-1, 2, d)
    position = torch.arange(n) % 10
    scale = 1 + torch.rand(n, generator=g) + 5 * (position == 0)  # position 0 has a scale of its own
    ids = torch.zeros(n, dtype=torch.int64)
    return Rows({site.name: x}, ids, position, ids, scale)


def space_of(kind: str, *, dtype: torch.dtype = torch.float64, rows: Rows | None = None, **settings: Any) -> Space:
    site = SITES[kind]
    cfg = SpaceConfig(kind=kind, **settings)  # type: ignore[arg-type]
    sample = rows_at(site) if rows is None else rows
    return build_space(cfg, site, None, sample, root=a_root(), dtype=dtype)  # type: ignore[arg-type]


EVERY = [
    (kind, {"ln": ln, "centre": centre, "rotation": rotation, "rescale": rescale})
    for kind in SITES
    for ln in (("mean", "token") if kind == "logit_update" else ("mean",))
    for centre in ("none", "mean")
    for rotation in (None, 3)
    for rescale in (True, False)
]


@pytest.mark.parametrize(("kind", "settings"), EVERY)
def test_lift_inverts_forward(kind: str, settings: dict[str, Any]) -> None:
    rows = rows_at(SITES[kind], seed=1)
    x = rows.activations[SITES[kind].name]
    space = space_of(kind, dtype=torch.float32, **settings)
    z = space.read(rows)
    assert z.dtype == torch.float32 and z.shape == (len(rows), space.dim)
    whole = space.lift(z, rows.scale, rows.position, x=x)
    assert (whole - x).norm() < 1e-5 * x.norm()
    # Without the original, what M cannot see is the mean; what it can see is there.
    seen = space.lift(z, rows.scale, rows.position)
    again = space.forward(seen, rows.scale, rows.position)
    assert (again - z).norm() < 1e-5 * z.norm()
    if space.matrix is not None and space.inverse is not None:
        unseen = (seen - seen @ space.matrix @ space.inverse).double()
        assert (unseen - space.null_mean.double()).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "settings"), EVERY)
def test_centre_and_scale_and_affine(kind: str, settings: dict[str, Any]) -> None:
    rows = rows_at(SITES[kind])
    space = space_of(kind, **settings)
    later = rows.position >= 1
    z = space.read(rows)[later]
    if settings["centre"] == "mean":
        assert z.mean(0).abs().max() < 1e-10
    else:
        assert (space.centre == 0).all()
    if settings["rescale"]:
        assert z.pow(2).sum(-1).mean().item() == pytest.approx(space.dim, rel=1e-9)
    else:
        assert space.scale == 1
    if space.ln == "token":
        with pytest.raises(ValueError, match="token"):
            space.affine()
        with pytest.raises(ValueError, match="scale"):
            space.forward(rows.activations[space.site.name])
        return
    forward, lift = space.affine()
    x = rows.activations[space.site.name].double()[later]
    assert torch.allclose(forward(x), z, rtol=1e-9, atol=1e-9)
    assert torch.allclose(lift(z), space.lift(z), rtol=1e-9, atol=1e-9)
    w = torch.randn(5, space.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(x @ forward.pull_back(w).T, forward.linear(x) @ w.T, rtol=1e-9, atol=1e-9)


def test_logit_update_divides_by_the_scale_it_should() -> None:
    rows = rows_at(SITES["logit_update"])
    assert rows.scale is not None
    x, A = rows.activations["mlp_out@1"].double(), a_root().matrix
    token = space_of("logit_update", ln="token", rescale=False)
    assert torch.allclose(token.read(rows), x @ A / rows.scale.double().unsqueeze(1))
    mean = space_of("logit_update", ln="mean", rescale=False)
    first = rows.position == 0
    expected = x @ A
    expected[~first] *= (1 / rows.scale[~first].double()).mean()
    expected[first] *= (1 / rows.scale[first].double()).mean()
    assert torch.allclose(mean.read(rows), expected)
    assert not torch.allclose(mean.forward(x)[first], expected[first])  # without positions: none is taken for the first
    assert torch.allclose(mean.forward(x)[~first], expected[~first])
    assert (token.read(rows)[:, token.rank :] == 0).all() and token.rank == D - 1  # null columns: exact zeros


def test_a_sample_without_position_0_uses_one_scale_everywhere() -> None:
    rows = rows_at(SITES["logit_update"])
    space = space_of("logit_update", rows=rows[rows.position >= 1])
    assert space.inverse_sigma_first is None
    assert torch.equal(space.read(rows), space.forward(rows.activations["mlp_out@1"]))


@pytest.mark.parametrize("kind", list(SITES))
def test_rotation_changes_the_basis_and_nothing_else(kind: str) -> None:
    rows = rows_at(SITES[kind])
    plain, turned, other = (space_of(kind, rotation=seed, centre="mean") for seed in (None, 5, 6))
    a, b = plain.read(rows), turned.read(rows)
    assert not torch.allclose(a, b) and not torch.allclose(b, other.read(rows))
    assert torch.allclose(a @ a.T, b @ b.T)
    assert torch.equal(b, space_of(kind, rotation=5, centre="mean").read(rows))
    assert turned.scale == pytest.approx(plain.scale) and turned.rank == plain.rank


@given(dim=st.integers(1, 40), seed=st.integers(0, 1000))
def test_rotations_are_orthogonal(dim: int, seed: int) -> None:
    R = random_rotation(dim, seed)
    assert torch.allclose(R @ R.T, torch.eye(dim, dtype=torch.float64), atol=1e-12)


def test_rotations_are_haar_distributed() -> None:
    """For Haar in dimension 3 every entry is uniform on [-1, 1], the diagonal too (plain QR gives it a fixed sign)."""
    entries = torch.stack([random_rotation(3, seed) for seed in range(2000)])
    for i, j in [(0, 0), (2, 2), (1, 2)]:
        histogram = torch.histc(entries[:, i, j].float(), bins=10, min=-1, max=1)
        chi2 = ((histogram - 200) ** 2 / 200).sum()
        assert chi2 < 27.9  # 9 degrees of freedom, p = 0.001


def test_projection_removes_exactly_the_null_directions() -> None:
    W = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    for rotation in (None, 4):
        space = space_of("logit_update", rotation=rotation, dtype=torch.float32)
        projected = space.project(W)
        assert torch.allclose(space.project(projected), projected, atol=1e-6)
        z = space.read(rows_at(space.site))
        assert torch.allclose(z @ projected.T, z @ W.T, atol=1e-4)
        assert torch.linalg.matrix_rank(projected, rtol=1e-4) == D - 1
    assert (space_of("logit_update", dtype=torch.float32).project(W)[:, -1] == 0).all()
    plain = space_of("resid_update", rotation=2, dtype=torch.float32)
    assert plain.project(W) is W


@pytest.mark.parametrize(("kind", "settings"), EVERY)
def test_state_survives_json(kind: str, settings: dict[str, Any]) -> None:
    space = space_of(kind, dtype=torch.float32, **settings)
    tensors, meta = space.state()
    again = Space.from_state(tensors, json.loads(json.dumps(meta)))
    rows = rows_at(SITES[kind], seed=2)
    assert torch.equal(again.read(rows), space.read(rows))
    assert again.state()[1] == meta
    with pytest.raises(UserError, match="saved space"):
        Space.from_state({"centre": tensors["centre"]}, meta)
    with pytest.raises(UserError, match="saved space"):
        Space.from_state({**tensors, "centre": torch.zeros(D + 1)}, meta)
    with pytest.raises(UserError, match="saved space"):
        Space.from_state(tensors, {k: v for k, v in meta.items() if k != "site"})


def test_half_precision_rows_are_computed_in_single() -> None:
    space = space_of("logit_update", dtype=torch.float32)
    x = rows_at(space.site).activations[space.site.name].bfloat16()
    assert space.forward(x).dtype == torch.float32
    assert torch.equal(space.forward(x), space.forward(x.float()))


def test_what_cannot_work_is_refused_in_a_sentence() -> None:
    rows = rows_at(SITES["mlp_acts"])
    with pytest.raises(UserError, match="reads mlp_out or attn_out.*'mlp_acts@1'"):
        build_space(SpaceConfig(kind="resid_update"), SITES["mlp_acts"], None, rows)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="positions >= 1"):
        space_of("mlp_acts", rows=rows[rows.position == 0])
    x = rows.activations["mlp_acts@1"].clone()
    x[7, 3] = torch.inf
    with pytest.raises(UserError, match="NaN or infinite"):
        space_of("mlp_acts", rows=Rows({"mlp_acts@1": x}, rows.tokens, rows.position, rows.document, None))
    constant = Rows({"mlp_acts@1": torch.full_like(x, 3.3)}, rows.tokens, rows.position, rows.document, None)
    with pytest.raises(UserError, match="do not vary"):
        space_of("mlp_acts", rows=constant, centre="mean")
    space_of("mlp_acts", rows=constant)  # without a centre it has a scale
