"""A space from a job's settings, the model and a sample of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.config import SpaceConfig
from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel
from sae_tools.models.sites import Site
from sae_tools.rows import Rows
from sae_tools.seeds import generator
from sae_tools.spaces.root import Root, logit_root
from sae_tools.spaces.space import Space

SITES_OF = {
    "mlp_acts": ("mlp_acts",),
    "resid_update": ("mlp_out", "attn_out"),
    "logit_update": ("mlp_out", "attn_out"),
    "resid": ("resid_pre", "resid_mid", "resid_post", "mlp_in", "hook"),
}
"""The kinds of site that each space reads."""
CHUNK = 4096
"""Rows whose double-precision copies are held at once."""


def build_space(
    cfg: SpaceConfig,
    site: Site,
    model: LanguageModel,
    sample: Rows,
    *,
    root: Root | None = None,
    dtype: torch.dtype = torch.float32,
) -> Space:
    """The space that `cfg` asks for at `site`, on the sample's device.

    sample: rows with the site's activations, and for `logit_update` the final norm's scale. The centre, the scalar
    scale and the mean of 1/σ are estimated on its rows at positions >= 1; all estimates are made in float64.
    cfg.rotation is a seed of its own: jobs of several seeds share one rotation.
    root: the model's `logit_root`, where it is known already.

    - ln `mean`: 1/σ̄ is the plain mean of 1/σ_t over tokens: the least-squares constant for u/σ_t where ‖u‖ and σ_t are
      independent, and the same for every site of a model. Where the sample has rows at position 0, whose σ is often
      far from all others, they get a mean of their own.
    - `rescale`: the scalar makes E‖z‖² equal to `dim`, the number of coordinates (d_model for `logit_update`, null
      directions included), so that one L1 coefficient means the same in `resid_update` and `logit_update`.

    Raises UserError if the space does not read such a site, or if the sample is unusable (no rows at positions >= 1,
    not finite, all equal to the centre).
    """
    check_space(cfg, site)
    x = sample.activations[site.name]
    later = sample.position >= 1
    if not bool(later.any()):
        raise UserError(f"No rows at positions >= 1 to estimate the space of site '{site.name}' from.")
    matrix = inverse = None
    ln, inverse_sigma, first = "none", None, None
    rank = x.shape[1]
    factors: Float[Tensor, " rows"] | None = None
    if cfg.kind == "logit_update":
        root = logit_root(model) if root is None else root
        matrix, inverse, rank, ln = root.matrix.to(x.device), root.inverse.to(x.device), root.rank, cfg.ln
        if sample.scale is None:
            raise ValueError("the sample of a logit_update space needs the final norm's scale")
        factors = sample.scale.double().reciprocal()
        if ln == "mean":
            inverse_sigma = float(factors[later].mean())
            first = float(factors[~later].mean()) if bool((~later).any()) else None
            factors = torch.full_like(factors, inverse_sigma)
    moments = _moments(x, matrix, factors, later)
    if not all(bool(torch.isfinite(part).all()) for part in moments):
        raise UserError(f"The activations at site '{site.name}' hold NaN or infinite values.")
    centre = moments.mean if cfg.centre == "mean" else torch.zeros_like(moments.mean)
    scale = 1.0
    if cfg.rescale:
        squared = float(moments.squared_norm - (2 * moments.mean - centre) @ centre)  # E‖y - centre‖²
        if squared <= 1e-20 * float(moments.squared_norm) or squared == 0:
            raise UserError(f"The activations at site '{site.name}' do not vary, so the space has no scale.")
        scale = (squared / moments.mean.shape[0]) ** 0.5
    if cfg.rotation is not None:
        R = random_rotation(moments.mean.shape[0], cfg.rotation).to(x.device)
        matrix = R if matrix is None else matrix @ R
        inverse = R.T if inverse is None else R.T @ inverse
        centre = centre @ R
    return Space(
        kind=cfg.kind,
        site=site,
        dim=moments.mean.shape[0],
        rank=rank,
        ln=ln,  # type: ignore[arg-type]
        scale=scale,
        centre=centre,
        mean=moments.site_mean,
        matrix=matrix,
        inverse=inverse,
        inverse_sigma=inverse_sigma,
        inverse_sigma_first=first,
        settings=cfg.model_dump(),
    ).to(dtype=dtype)


def check_space(cfg: SpaceConfig, site: Site, where: str = "") -> None:
    """UserError if the space does not read such a site. where: the part of a dictionary's settings (`writes.`)."""
    if site.kind not in SITES_OF[cfg.kind]:
        kinds = " or ".join(SITES_OF[cfg.kind]).replace("or hook", "or any other hook")
        raise UserError(
            f"{where}space.kind '{cfg.kind}' reads {kinds}, but the dictionary's {where}site is '{site.name}'."
        )


def random_rotation(dim: int, seed: int) -> Float[Tensor, "dim dim"]:
    """A Haar-distributed orthogonal matrix in float64, the same for the same seed.

    QR of a Gaussian matrix, with the signs of R's diagonal moved into Q (Mezzadri 2007, arXiv math-ph/0609050), without
    which the distribution is not uniform.
    """
    gaussian = torch.randn(dim, dim, generator=generator(seed, "rotation"), dtype=torch.float64)
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()


class _Moments(NamedTuple):
    site_mean: Float[Tensor, " d_site"]
    mean: Float[Tensor, " dim"]
    squared_norm: Float[Tensor, ""]


def _moments(
    x: Float[Tensor, "rows d_site"],
    matrix: Float[Tensor, "d_site dim"] | None,
    factors: Float[Tensor, " rows"] | None,
    use: Tensor,
) -> _Moments:
    """Means over the rows in `use` of x, of y = (x M) * factor and of ‖y‖², in float64."""
    sums: list[Tensor] = []
    for start in range(0, x.shape[0], CHUNK):
        keep = use[start : start + CHUNK]
        y = part = x[start : start + CHUNK][keep].double()
        if matrix is not None:
            y = y @ matrix
        if factors is not None:
            y = y * factors[start : start + CHUNK][keep].unsqueeze(-1)
        new = [part.sum(0), y.sum(0), y.pow(2).sum()]
        sums = new if not sums else [a + b for a, b in zip(sums, new, strict=True)]
    return _Moments(*(total / use.sum() for total in sums))
