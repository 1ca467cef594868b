"""A space: an affine map from a site's activations, with the token's context, and the way back.

    z = ((x M) / σ - centre) / scale

M is the identity, a root of the logit metric (`root.py`), or either of them followed by a rotation; σ is 1, one mean
of the final norm's scale, or that scale at each token.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.models.sites import Site
from sae_tools.rows import Rows


@dataclass(frozen=True)
class Affine:
    """x -> factor · x matrix + offset, in float64."""

    matrix: Float[Tensor, "a b"] | None
    """None: the identity."""
    factor: float
    offset: Float[Tensor, " b"]

    def __call__(self, x: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows b"]:
        return self.linear(x) + self.offset

    def linear(self, x: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows b"]:
        """What becomes of directions."""
        x = x.double() * self.factor
        return x if self.matrix is None else x @ self.matrix

    def pull_back(self, w: Float[Tensor, "*rows b"]) -> Float[Tensor, "*rows a"]:
        """The functionals on the source that `w` are on the image: <x, pull_back(w)> = <linear(x), w>."""
        w = w.double() * self.factor
        return w if self.matrix is None else w @ self.matrix.T


@dataclass(frozen=True)
class Space:
    """The coordinates of one dictionary. All tensors share one dtype and device; see `to`."""

    kind: str
    """`mlp_acts`, `resid_update`, `logit_update` or `resid`."""
    site: Site
    dim: int
    """Width of z. For `logit_update` it is d_model: null directions are kept as zeros."""
    rank: int
    """Number of directions that the space can see: dim, or less for `logit_update` (d - 1 with LayerNorm)."""
    ln: Literal["none", "mean", "token"]
    """Which σ divides: none, one mean (position 0 apart), or the token's own."""
    scale: float
    """The scalar by which everything is divided last; 1 where the space is not rescaled."""
    centre: Float[Tensor, " dim"]
    """Subtracted after M and σ, in the space's coordinates; zeros for none."""
    mean: Float[Tensor, " d_site"]
    """Mean of the site's activations over the sample; its part that M cannot see stands in for the missing original
    in `lift`."""
    matrix: Float[Tensor, "d_site dim"] | None = None
    """M; None: the identity."""
    inverse: Float[Tensor, "dim d_site"] | None = None
    """M⁺."""
    inverse_sigma: float | None = None
    """ln `mean`: the mean of 1/σ over the sample's tokens at positions >= 1."""
    inverse_sigma_first: float | None = None
    """The same at position 0; None where the sample had no such rows (then `inverse_sigma` serves there too)."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The SpaceConfig it was built from, for reports and exports."""

    def forward(
        self,
        x: Float[Tensor, "rows d_site"],
        scale: Float[Tensor, " rows"] | None = None,
        position: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows dim"]:
        """The site's activations in this space.

        scale: the final norm's scale at each token; needed with ln `token`, else ignored.
        position: place in the context; with ln `mean`, rows at position 0 have an estimate of their own. None: no row
        is at position 0.
        """
        y = x.to(self.centre.dtype)
        if self.matrix is not None:
            y = y @ self.matrix
        factor = self.inverse_sigma_at(scale, position)
        if factor is not None:
            y = y * factor
        return (y - self.centre).div_(self.scale)

    def read(self, rows: Rows) -> Float[Tensor, "rows dim"]:
        """`forward` of whole rows."""
        return self.forward(rows.activations[self.site.name], rows.scale, rows.position)

    def lift(
        self,
        z: Float[Tensor, "rows dim"],
        scale: Float[Tensor, " rows"] | None = None,
        position: Int[Tensor, " rows"] | None = None,
        x: Float[Tensor, "rows d_site"] | None = None,
    ) -> Float[Tensor, "rows d_site"]:
        """Back to the site: x̂ = σ (z scale + centre) M⁺ plus the part that M cannot see.

        That part is x's own where the original `x` is given (so that lift(forward(x), x=x) = x), else the sample's
        mean of it. `scale` and `position` as in `forward`.
        """
        y = z * self.scale + self.centre
        factor = self.inverse_sigma_at(scale, position)
        if factor is not None:
            y = y / factor
        if self.matrix is None or self.inverse is None:
            return y
        if x is None:
            return y @ self.inverse + self.null_mean
        x = x.to(y.dtype)
        return x + (y - x @ self.matrix) @ self.inverse

    def project(self, z: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Vectors of the space without what no activation can have there (null directions of M)."""
        if self.matrix is None or self.inverse is None or self.rank == self.dim:
            return z
        dtype = z.dtype
        return (z.double() @ self.inverse.double() @ self.matrix.double()).to(dtype)

    @property
    def null_mean(self) -> Float[Tensor, " d_site"]:
        """Mean over the sample of the part of x that M cannot see."""
        if self.matrix is None or self.inverse is None:
            return torch.zeros_like(self.mean)
        return self.mean - self.mean @ self.matrix @ self.inverse

    @property
    def foldable(self) -> bool:
        """Whether the map is the same at every token (of position >= 1), so that it can be folded into weights."""
        return self.ln != "token"

    def affine(self) -> tuple[Affine, Affine]:
        """(forward, lift) as fixed maps, at positions >= 1: what exports fold into the weights.

        Raises ValueError for ln `token`, which is no single map.
        """
        if not self.foldable:
            raise ValueError("a space with ln 'token' is a different map at every token")
        factor = 1.0 if self.inverse_sigma is None else self.inverse_sigma
        centre = self.centre.double()
        if self.matrix is None or self.inverse is None:
            return Affine(None, 1 / self.scale, -centre / self.scale), Affine(None, self.scale, centre)
        matrix, inverse, mean = self.matrix.double(), self.inverse.double(), self.mean.double()
        null_mean = mean - mean @ matrix @ inverse
        return (
            Affine(matrix, factor / self.scale, -centre / self.scale),
            Affine(inverse, self.scale / factor, centre @ inverse / factor + null_mean),
        )

    def inverse_sigma_at(
        self, scale: Float[Tensor, " rows"] | None, position: Int[Tensor, " rows"] | None
    ) -> Float[Tensor, "rows 1"] | float | None:
        """What the activations are multiplied by after M at each token, `scale` and `position` as in `forward`; one
        number where it is the same everywhere, None for 1."""
        if self.ln == "none":
            return None
        if self.ln == "token":
            if scale is None:
                raise ValueError("a space with ln 'token' needs the final norm's scale at each token")
            return scale.to(self.centre.dtype).reciprocal().unsqueeze(-1)
        assert self.inverse_sigma is not None
        if position is None or self.inverse_sigma_first is None:
            return self.inverse_sigma
        rest = torch.full((), self.inverse_sigma, dtype=self.centre.dtype, device=self.centre.device)
        return torch.where(position == 0, self.inverse_sigma_first, rest).unsqueeze(-1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Space:
        tensors = {name: tensor.to(device=device, dtype=dtype) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        named = {"centre": self.centre, "mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-able rest), from which `from_state` makes the same space again."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        return tensors, self.describe()

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, JSON-able."""
        return {
            "kind": self.kind,
            "site": dataclasses.asdict(self.site),
            "dim": self.dim,
            "rank": self.rank,
            "ln": self.ln,
            "scale": self.scale,
            "inverse_sigma": self.inverse_sigma,
            "inverse_sigma_first": self.inverse_sigma_first,
            "settings": self.settings,
        }

    @staticmethod
    def from_state(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Space:
        """The inverse of `state`. Raises UserError where something is missing or does not fit together."""
        try:
            fields: dict[str, Any] = {**meta, "site": Site(**meta["site"]), **tensors}
            space = Space(**fields)
            d_site, dim = space.mean.shape[0], int(space.dim)
            fits = (
                space.centre.shape == (dim,)
                and (space.matrix is None) == (space.inverse is None)
                and (d_site == dim if space.matrix is None else space.matrix.shape == (d_site, dim))
                and (space.inverse is None or space.inverse.shape == (dim, d_site))
                and space.ln in ("none", "mean", "token")
                and math.isfinite(space.scale)
                and space.scale > 0
                and (space.inverse_sigma is not None) == (space.ln == "mean")
            )
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise UserError(f"The saved space is damaged or from another program: {error}.") from None
        if not fits:
            raise UserError("The saved space is damaged or from another program: its parts do not fit together.")
        return space
