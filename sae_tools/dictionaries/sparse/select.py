"""Which features are active: the encoder's product in micro-batches, and what is taken from it.

Nothing of size rows x d_sae outlives its micro-batch. Gradients are not recorded here: `autograd.py` knows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.sparse.kernels import kernels_for
from sae_tools.dictionaries.sparse.pairs import Pairs

Precision = Literal["float32", "bfloat16"]
"""Of the product that candidates for TopK are chosen from; what is chosen is always evaluated in the weights' dtype."""

MICRO_BATCH_ENTRIES = {"cpu": 2**26, "cuda": 2**29}
"""Pre-activations that exist at a time, by device: 256 MiB and 2 GiB in float32. Below some 500 rows the product of a
CPU gets slower; a GPU has the memory, and fewer launches then."""
MIN_MICRO_BATCH = 256
SAMPLED_ENTRIES = 2**18
"""Pre-activations from which the threshold of a selection over the whole batch is estimated."""


class Selection(NamedTuple):
    values: Float[Tensor, " pairs"]
    """Pre-activations at the pairs, without a graph."""
    pairs: Pairs


def micro_batch_rows(d_sae: int, device: torch.device) -> int:
    entries = MICRO_BATCH_ENTRIES.get(device.type, MICRO_BATCH_ENTRIES["cpu"])
    return max(MIN_MICRO_BATCH, entries // d_sae)


def micro_batches(
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    precision: Precision = "float32",
) -> Iterator[Float[Tensor, "micro d_sae"]]:
    """Pre-activations of a few hundred rows or more at a time, in order."""
    if precision == "bfloat16":
        centred, encoder, b_enc = centred.bfloat16(), encoder.bfloat16(), b_enc.bfloat16()
    for part in centred.split(micro_batch_rows(len(encoder), centred.device)):
        yield torch.addmm(b_enc, part, encoder.T)


def spare_candidates(k: int) -> int:
    """How many more than k are re-evaluated when candidates are chosen in bfloat16."""
    return max(8, k // 4)


@torch.no_grad()
def select_top_k(
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    precision: Precision = "float32",
    dead: Bool[Tensor, " d_sae"] | None = None,
    aux_k: int = 0,
) -> tuple[Selection, Selection | None]:
    """(the k largest pre-activations of each row, the up to `aux_k` largest among dead features or None).

    precision: bfloat16 chooses k and some more by a product in bfloat16, evaluates these exactly, and keeps the k
    largest; dead features are then chosen by that product alone (and evaluated exactly).
    """
    d_sae, kernels = len(encoder), kernels_for(centred)
    exact = precision == "float32" or centred.dtype != torch.float32
    wanted = k if exact else min(d_sae, k + spare_candidates(k))
    columns = None if dead is None or centred.device.type != "cpu" else dead.nonzero().squeeze(1)
    if columns is not None and not len(columns):
        dead = None
    chosen, chosen_dead = [], []
    for pre in micro_batches(centred, encoder, b_enc, "float32" if exact else "bfloat16"):
        chosen.append(kernels.top_k(pre, wanted))
        if dead is not None:
            chosen_dead.append(_top_dead(pre, dead, columns, aux_k))
    values, indices = _joined(chosen)
    if not exact:
        candidates = Pairs.of_rows(indices, d_sae)
        again = _evaluate(centred, encoder, b_enc, candidates).view(indices.shape)
        values, place = kernels.top_k(again, k)
        indices = indices.gather(1, place.long())
    selection = Selection(values.flatten(), Pairs.of_rows(indices, d_sae))
    if dead is None:
        return selection, None
    values, indices = _joined(chosen_dead)
    pairs = Pairs.of_rows(indices, d_sae)
    if exact:
        return selection, Selection(values.flatten(), pairs)
    again = _evaluate(centred, encoder, b_enc, pairs)
    return selection, Selection(torch.where(torch.isneginf(values.flatten()), values.flatten().float(), again), pairs)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


def _evaluate(centred: Tensor, encoder: Tensor, b_enc: Tensor, pairs: Pairs) -> Float[Tensor, " pairs"]:
    return pairs.dots(centred, encoder) + b_enc.index_select(0, pairs.features)


def _top_dead(pre: Tensor, dead: Tensor, columns: Tensor | None, aux_k: int) -> tuple[Tensor, Tensor]:
    """Where it costs nothing to ask which features are dead (`columns`), only these are looked at. Elsewhere shapes do
    not depend on the data: entries beyond the number of dead features have the value -inf."""
    if columns is None:
        return kernels_for(pre).top_k(pre.masked_fill(~dead, -torch.inf), aux_k)
    values, indices = kernels_for(pre).top_k(pre.index_select(1, columns), min(aux_k, len(columns)))
    return values, columns[indices.long()].int()


@torch.no_grad()
def select_above(
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
    max_density: float,
) -> Selection | None:
    """All pre-activations above their feature's threshold; None where they are more than `max_density` of a
    micro-batch, and on accelerators, which would have to be asked how many there are."""
    if centred.device.type != "cpu":
        return None
    kernels, parts = kernels_for(centred), []
    for pre in micro_batches(centred, encoder, b_enc):
        if kernels.count_above(pre, threshold) > max_density * pre.numel():
            return None
        parts.append(kernels.above(pre, threshold))
    return _concatenated(parts, len(encoder))


def _concatenated(parts: list[tuple[Tensor, Tensor, Tensor]], d_sae: int) -> Selection:
    if len(parts) == 1:
        offsets, features, values = parts[0]
        return Selection(values, Pairs(features, offsets, d_sae))
    offsets, total = [parts[0][0][:1]], 0
    for part, _, _ in parts:
        offsets.append(part[1:] + total)
        total += int(part[-1])
    features, values = (torch.cat([part[i] for part in parts]) for i in (1, 2))
    return Selection(values, Pairs(features, torch.cat(offsets), d_sae))


@torch.no_grad()
def select_largest(
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    count: int,
) -> Selection:
    """The `count` largest pre-activations of the whole batch: BatchTopK's selection (Bussmann et al. 2024, arXiv
    2412.06410).

    On a CPU only positive ones, which are all that ReLU leaves, so there may be fewer. Elsewhere exactly `count`.
    """
    count = min(count, len(centred) * len(encoder))
    if centred.device.type != "cpu":
        return _largest_fixed(centred, encoder, b_enc, count)
    share = 1.25 * count / (len(centred) * len(encoder))
    while True:
        found = _above_share(centred, encoder, b_enc, share)
        if found is not None and len(found.pairs) >= count:
            return _keep_largest(found, count)
        if found is not None and share >= 1:  # no more are positive
            return found
        share = 1.0 if found is not None and share > 0.5 else min(1.0, 4 * share)


def _above_share(centred: Tensor, encoder: Tensor, b_enc: Tensor, share: float) -> Selection | None:
    """The positive entries above a threshold that about `share` of all exceed; with 1, all positive ones."""
    kernels, parts, threshold = kernels_for(centred), [], None
    for pre in micro_batches(centred, encoder, b_enc):
        if threshold is None:
            level = 0.0 if share >= 1 else max(0.0, _quantile_of_sample(pre, share))
            threshold = b_enc.new_full((len(encoder),), level)
        parts.append(kernels.above(pre, threshold))
    return _concatenated(parts, len(encoder))


def _quantile_of_sample(pre: Tensor, share: float) -> float:
    """A number that about `share` of the entries exceed, from some of the rows."""
    rows = max(1, min(len(pre), SAMPLED_ENTRIES // pre.shape[1]))
    sample = pre[:: max(1, len(pre) // rows)].flatten()
    place = min(len(sample), max(1, round(share * len(sample))))
    return float(sample.topk(place, sorted=False).values.min())


def _keep_largest(found: Selection, count: int) -> Selection:
    """Exactly `count` of the pairs; of equal ones the first."""
    values, pairs = found
    if len(values) == count:
        return found
    level = -torch.kthvalue(-values, count).values
    keep = values > level
    ties = (values == level).nonzero().squeeze(1)
    keep[ties[: count - int(keep.sum())]] = True
    kept = torch.nn.functional.pad(keep.cumsum(0), (1, 0)).int()
    return Selection(values[keep], Pairs(pairs.features[keep], kept[pairs.offsets.long()], pairs.d_sae))


def _largest_fixed(centred: Tensor, encoder: Tensor, b_enc: Tensor, count: int) -> Selection:
    """The same in shapes that do not depend on the data."""
    d_sae, kernels, best, places, start = len(encoder), kernels_for(centred), [], [], 0
    for pre in micro_batches(centred, encoder, b_enc):
        values, found = kernels.largest_entries(pre, min(count, pre.numel()))
        best.append(values)
        places.append(found + start)
        start += pre.numel()
    values, chosen = torch.cat(best).topk(count, sorted=False)
    flat, order = torch.cat(places)[chosen].sort()
    bounds = torch.arange(len(centred) + 1, device=flat.device) * d_sae
    offsets = torch.searchsorted(flat, bounds).int()
    return Selection(values[order], Pairs((flat % d_sae).int(), offsets, d_sae))
