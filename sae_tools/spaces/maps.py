"""Maps between spaces. Only forward ones exist: W_out has no inverse, so an update does not tell the activations.

Dictionaries in different spaces are compared by lifting their reconstructions to the site and mapping those forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel
from sae_tools.models.mlp import mlp_output_map
from sae_tools.models.sites import Site
from sae_tools.spaces.root import Root, logit_root
from sae_tools.spaces.space import Space

Measure = Callable[[Float[Tensor, "rows d_site"], Float[Tensor, " rows"]], Float[Tensor, "rows d"]]
"""(the site's activations, the final norm's scale at each token) -> the vectors in a measuring space."""


def site_chain(site: Site, model: LanguageModel, *, root: Root | None = None) -> dict[str, Measure]:
    """The spaces in which what is written at `site` can be measured, in forward order.

    `mlp_acts`: the hidden activations h; `resid_update`: u = h W_out + b_out; `logit_update`: u A / σ with the scale at
    the very token, whatever space the dictionary was trained in, so that squared lengths are those of the centred
    logits along the direct path (final norm frozen). A `resid_*` site has only `resid`, and where no single matrix
    leads to the residual stream (Gemma-2, mixtures of experts) `mlp_acts` has only itself.
    root: the model's `logit_root`, where it is known already.
    """
    if site.kind not in ("mlp_acts", "mlp_out", "attn_out"):
        return {"resid": lambda x, scale: x}
    chain: dict[str, Measure] = {}

    def update(x: Tensor) -> Tensor:
        return x

    if site.kind == "mlp_acts":
        chain["mlp_acts"] = lambda x, scale: x
        try:
            W_out, b_out = mlp_output_map(model, site.layer)
        except UserError:
            return chain

        def update(x: Tensor) -> Tensor:
            return x @ W_out.to(x) + b_out.to(x)

    A = (logit_root(model) if root is None else root).matrix.to(torch.float32)
    chain["resid_update"] = lambda x, scale: update(x)
    chain["logit_update"] = lambda x, scale: (update(x) @ A.to(x)) / scale.to(x).unsqueeze(-1)
    return chain


def forward_chain(space: Space, model: LanguageModel, *, root: Root | None = None) -> dict[str, Measure]:
    """`site_chain` of the space's site from the space itself on: what a dictionary in `space` is measured in.

    Every map takes vectors in the site's coordinates (reconstructions lifted, with the original's invisible part) and
    the token's scale. A `logit_update` dictionary is not asked for `resid_update`, parts of which it never saw.
    """
    chain = site_chain(space.site, model, root=root)
    names = list(chain)
    return {name: chain[name] for name in names[names.index(space.kind) :]}
