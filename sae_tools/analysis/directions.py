"""Which way features write: their decoder rows in the unit in which activations are shown, back at the site and on to
the residual stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.analysis.subject import Subject
from sae_tools.dictionaries import Dictionary
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.models.mlp import mlp_output_map
from sae_tools.models.sites import Site
from sae_tools.spaces import Space

ResidualMap = Callable[[Float[Tensor, "rows d_site"]], Float[Tensor, "rows d_model"]]

ROUNDING = 1e-5
"""A decoder row whose norm is this close to 1 was kept there."""


@torch.no_grad()
def unit_norms(dictionary: Dictionary) -> Float[Tensor, " d_sae"]:
    """What activations are multiplied by to be in the unit "decoder row of norm 1": the rows' norms, float32.

    Exactly 1 where the norm is 1 within rounding, and for rows of zeros.
    """
    norms = dictionary.W_dec.norm(dim=-1).float()
    return torch.where((norms == 0) | ((norms - 1).abs() < ROUNDING), torch.ones_like(norms), norms)


@torch.no_grad()
def site_directions(subject: Subject) -> Float[Tensor, "d_sae d_site"]:
    """What one unit of each feature (decoder row of norm 1) adds at the written site where the space's σ is 1: float32,
    on the dictionary's device. At a token it is this times `sigma_at` of the written space."""
    dictionary, space = subject.dictionary, subject.written
    rows = dictionary.W_dec / unit_norms(dictionary).unsqueeze(1) * space.scale
    return rows.float() if space.inverse is None else rows.float() @ space.inverse.float()


def sigma_at(
    space: Space, scale: Float[Tensor, " rows"] | None, position: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """The σ by which `Space.lift` multiplies at each token: 1, the space's mean, or the token's own `scale`."""
    inverse = space.inverse_sigma_at(scale, position)
    factor = torch.ones(len(position), dtype=space.centre.dtype, device=position.device)
    return factor if inverse is None else factor / (inverse.squeeze(-1) if isinstance(inverse, Tensor) else inverse)


def residual_map(site: Site, model: LanguageModel) -> ResidualMap | None:
    """From directions at the site to what they add to the residual stream; None where there is no fixed map (what the
    MLP reads; hooks inside a module; a norm or experts between the hidden activations and the stream)."""
    if site.kind in ("hook", "mlp_in"):
        return None
    if site.kind != "mlp_acts":
        return lambda x: x
    try:
        W_out = mlp_output_map(model, site.layer)[0]
    except UserError:
        return None
    return lambda x: x @ W_out.to(x)


@torch.no_grad()
def residual_directions(
    subject: Subject, model: LanguageModel, mean_inverse_scale: float | None
) -> Float[Tensor, "d_sae d_model"] | None:
    """What one unit of each feature (decoder row of norm 1 in its own space) adds to the residual stream where its site
    writes, float32 on the CPU; None where no fixed map leads there.

    mean_inverse_scale: the mean of 1/σ over the tokens, σ the final norm's scale. A space with ln `token` is another
    map at every token, and gets this one for all (None: it has no directions); others do not use it.
    """
    to_residual, space = residual_map(subject.written_site, model), subject.written
    if to_residual is None or (space.ln == "token" and mean_inverse_scale is None):
        return None
    sigma = space.inverse_sigma if space.ln == "mean" else mean_inverse_scale
    rows = site_directions(subject)
    if space.ln != "none" and sigma is not None:
        rows = rows / sigma
    return to_residual(rows).cpu()
