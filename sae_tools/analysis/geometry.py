"""How features lie to each other and how their encoder lies to their decoder: from the parameters alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.analysis.directions import unit_norms
from sae_tools.config_report import ReportConfig
from sae_tools.dictionaries import Dictionary

ROWS, COLUMNS = 1024, 8192
"""Features whose cosines with how many others are held at once (32 MiB)."""


@torch.no_grad()
def geometry(
    dictionary: Dictionary,
    cfg: ReportConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    two_sites: bool = False,
) -> dict[str, Tensor]:
    """Of every feature, in the dictionary's own space, on the CPU, float32 [d_sae] where not said otherwise:

    `encoder_norm` and `b_enc`, in the unit in which its decoder row has norm 1; `decoder_norm`, of the row as it is;
    `projection`, encoder · decoder (the same in every unit), and `cosine` of the two; the features nearest by cosine of
    decoder rows, nearest first, `nearest_feature` int32 [d_sae, cfg.neighbours] and `nearest_cosine`, padded with -1
    and 0; `antipode_feature` int32, the one with the least cosine, and `antipode_cosine`. Features with a decoder row
    of zeros have no neighbours (-1 and 0) and are nobody's.

    two_sites: the encoder's rows are in another space than the decoder's: there is neither projection nor cosine.
    progress: called with the features done and all there are. No more than a block of cosines is held at once.
    """
    encoder, W_dec, unit = dictionary.encoder.float(), dictionary.W_dec.float(), unit_norms(dictionary)
    encoder_norm, decoder_norm = encoder.norm(dim=1), W_dec.norm(dim=1)
    described = {
        "encoder_norm": encoder_norm * unit,
        "decoder_norm": decoder_norm,
        "b_enc": dictionary.b_enc.float() * unit,
        **_neighbours(torch.nn.functional.normalize(W_dec, dim=1), decoder_norm > 0, cfg.neighbours, progress),
    }
    if not two_sites:
        projection, both = (encoder * W_dec).sum(1), encoder_norm * decoder_norm
        cosine = torch.where(both > 0, projection / both.clamp_min(torch.finfo(both.dtype).tiny), 0.0)
        described |= {"projection": projection, "cosine": cosine}
    return {name: tensor.detach().cpu() for name, tensor in described.items()}


def _neighbours(
    D: Float[Tensor, "d_sae dim"], real: Tensor, n: int, progress: Callable[[int, int], None]
) -> dict[str, Tensor]:
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    total = len(D)
    for start in range(0, total, ROWS):
        rows = torch.arange(start, min(start + ROWS, total), device=D.device)
        best = (D.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int32, device=D.device))
        least, antipode = D.new_full((len(rows),), torch.inf), torch.full_like(rows, -1, dtype=torch.int32)
        for first in range(0, total, COLUMNS):
            columns = torch.arange(first, min(first + COLUMNS, total), device=D.device)
            cosine = D[rows] @ D[columns].T
            hidden = (rows.unsqueeze(1) == columns) | ~real[columns] | ~real[rows].unsqueeze(1)
            cosine.masked_fill_(hidden, -torch.inf)
            best = _merged_top(best, cosine, first, n)
            cosine.masked_fill_(hidden, torch.inf)
            low, where = cosine.min(1)
            antipode = torch.where(low < least, (where + first).int(), antipode)
            least = torch.minimum(low, least)
        missing = n - best[0].shape[1]
        value = torch.nn.functional.pad(best[0], (0, missing), value=-torch.inf)
        feature = torch.nn.functional.pad(best[1], (0, missing), value=-1)
        none = value == -torch.inf
        parts.append(
            (
                feature.masked_fill(none, -1),
                value.masked_fill(none, 0.0).clamp(-1, 1),
                antipode,
                least.masked_fill(least == torch.inf, 0.0).clamp(-1, 1),
            )
        )
        progress(len(rows) + start, total)
    names = ("nearest_feature", "nearest_cosine", "antipode_feature", "antipode_cosine")
    return dict(zip(names, (torch.cat(tensors) for tensors in zip(*parts, strict=True)), strict=True))


def _merged_top(
    best: tuple[Float[Tensor, "rows kept"], Int[Tensor, "rows kept"]],
    cosine: Float[Tensor, "rows columns"],
    first: int,
    n: int,
) -> tuple[Float[Tensor, "rows kept_now"], Int[Tensor, "rows kept_now"]]:
    """The n largest of those kept so far and of these columns, which start at feature `first`."""
    new = cosine.topk(min(n, cosine.shape[1]), dim=1)
    values = torch.cat([best[0], new.values], dim=1)
    features = torch.cat([best[1], (new.indices + first).int()], dim=1)
    kept = values.topk(min(n, values.shape[1]), dim=1)
    return kept.values, features.gather(1, kept.indices)
