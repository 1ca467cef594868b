"""Which features are active: the encoder's product in micro-batches, and what is taken from it.

Nothing of size rows x d_sae outlives its micro-batch. Gradients are not recorded here: `autograd.py` knows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.sparse.kernels import kernels_for
from sae_tools.dictionaries.sparse.pairs import Pairs
from sae_tools.dictionaries.sparse.product import affine

Precision = Literal["float32", "bfloat16"]
"""Of the product that candidates for TopK are chosen from; what is chosen is always evaluated in the weights' dtype."""

MICRO_BATCH_ENTRIES = {"cpu": 2**26, "cuda": 2**29}
"""Pre-activations that exist at a time, by device: 256 MiB and 2 GiB in float32. Below some 500 rows the product of a
CPU gets slower; a GPU has the memory, and fewer launches then."""
MIN_MICRO_BATCH = 256
SAMPLED_ENTRIES, SAMPLED_ACTIVE = 2**17, 600
"""A threshold for the whole batch is estimated from at least this many pre-activations, and from so many that about
this many of them exceed it (a standard error of 4 %, where a quarter more than needed is asked for)."""
PROBED_ROWS = 32
"""Rows from which it is seen that a dictionary is dense before the whole product is made."""


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
        yield affine(part, encoder, b_enc)


def spare_candidates(k: int) -> int:
    """How many more than k are re-evaluated when candidates are chosen in bfloat16."""
    return max(8, k // 4)


class DeadCandidates:
    """Collects the up to `aux_k` largest pre-activations of each row among dead features, micro-batch by micro-batch.

    Where it costs nothing to ask which features are dead, only these are looked at. On accelerators shapes do not
    depend on the data: entries beyond the number of dead features have the value -inf.
    """

    def __init__(self, dead: Bool[Tensor, " d_sae"] | None, aux_k: int, kernels: ModuleType):
        self.dead, self.aux_k, self.kernels = dead, aux_k, kernels
        self.columns = None
        if dead is not None and dead.device.type == "cpu":
            self.columns = dead.nonzero().squeeze(1)
            self.dead = dead if len(self.columns) else None
        self.parts: list[tuple[Tensor, Tensor]] = []

    def see(self, pre: Float[Tensor, "micro d_sae"]) -> None:
        if self.dead is None:
            return
        if self.columns is None:
            self.parts.append(self.kernels.top_k(pre.masked_fill(~self.dead, -torch.inf), self.aux_k))
            return
        values, indices = self.kernels.top_k(pre.index_select(1, self.columns), min(self.aux_k, len(self.columns)))
        self.parts.append((values, self.columns[indices.long()].int()))

    def chosen(self, d_sae: int) -> Selection | None:
        """None where no feature is dead."""
        if not self.parts:
            return None
        values, indices = _joined(self.parts)
        return Selection(values.flatten(), Pairs.of_rows(indices, d_sae))


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
    chosen, candidates = [], DeadCandidates(dead, aux_k, kernels)
    for pre in micro_batches(centred, encoder, b_enc, "float32" if exact else "bfloat16"):
        chosen.append(kernels.top_k(pre, wanted))
        candidates.see(pre)
    values, indices = _joined(chosen)
    found = candidates.chosen(d_sae)
    if not exact:
        again = _evaluate(centred, encoder, b_enc, Pairs.of_rows(indices, d_sae)).view(indices.shape)
        values, place = kernels.top_k(again, k)
        indices = indices.gather(1, place.long())
        if found is not None:
            again = _evaluate(centred, encoder, b_enc, found.pairs)
            found = Selection(torch.where(torch.isneginf(found.values), -torch.inf, again), found.pairs)
    return Selection(values.flatten(), Pairs.of_rows(indices, d_sae)), found


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


def _evaluate(centred: Tensor, encoder: Tensor, b_enc: Tensor, pairs: Pairs) -> Float[Tensor, " pairs"]:
    return pairs.dots(centred, encoder) + b_enc.index_select(0, pairs.features)


@torch.no_grad()
def select_above(
    centred: Float[Tensor, "rows d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
    max_density: float,
) -> Selection | None:
    """All pre-activations above their feature's threshold; None where they are more than `max_density` of the first
    rows or of a micro-batch, and on accelerators, which would have to be asked how many there are."""
    if centred.device.type != "cpu":
        return None
    kernels, parts = kernels_for(centred), []
    probe = affine(centred[:PROBED_ROWS], encoder, b_enc)
    if int((probe > threshold).sum()) > max_density * probe.numel():
        return None
    for pre in micro_batches(centred, encoder, b_enc):
        found = kernels.above(pre, threshold, at_most=int(max_density * pre.numel()))
        if found is None:
            return None
        parts.append(found)
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
    *,
    dead: Bool[Tensor, " d_sae"] | None = None,
    aux_k: int = 0,
) -> tuple[Selection, Selection | None]:
    """(the `count` largest pre-activations of the whole batch, the up to `aux_k` largest of each row among dead
    features or None). The former is BatchTopK's selection (Bussmann et al. 2024, arXiv 2412.06410).

    On a CPU only positive ones, which are all that ReLU leaves, so there may be fewer. Elsewhere exactly `count`.
    """
    entries = len(centred) * len(encoder)
    count = min(count, entries)
    if centred.device.type != "cpu":
        return _largest_fixed(centred, encoder, b_enc, count, dead, aux_k)
    share = 1.25 * count / entries if entries else 1.0
    while True:
        candidates = DeadCandidates(dead, aux_k, kernels_for(centred))
        found, level = _above_share(centred, encoder, b_enc, share, candidates)
        if len(found.pairs) >= count:
            found = _keep_largest(found, count)
        elif level > 0:
            share *= 4
            continue
        return found, candidates.chosen(len(encoder))


def _above_share(
    centred: Tensor, encoder: Tensor, b_enc: Tensor, share: float, candidates: DeadCandidates
) -> tuple[Selection, float]:
    """The positive entries above a level that about `share` of all exceed, and that level; 0: all positive ones."""
    kernels, parts, level, threshold = kernels_for(centred), [], 0.0, None
    for pre in micro_batches(centred, encoder, b_enc):
        if threshold is None:
            level = 0.0 if share >= 0.5 else max(0.0, _level_of_sample(pre, share))
            threshold = b_enc.new_full((len(encoder),), level)
        parts.append(kernels.above(pre, threshold))
        candidates.see(pre)
    return _concatenated(parts, len(encoder)), level


def _level_of_sample(pre: Float[Tensor, "rows d_sae"], share: float) -> float:
    """A number that about `share` of the entries exceed, from some of them: of all rows, which may differ much in
    length, and of all features."""
    wanted = max(SAMPLED_ENTRIES, round(SAMPLED_ACTIVE / share))
    sample = pre.flatten()[:: max(1, pre.numel() // wanted) | 1]
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


def _largest_fixed(
    centred: Tensor, encoder: Tensor, b_enc: Tensor, count: int, dead: Tensor | None, aux_k: int
) -> tuple[Selection, Selection | None]:
    """The same in shapes that do not depend on the data."""
    d_sae, kernels, best, places, start = len(encoder), kernels_for(centred), [], [], 0
    candidates = DeadCandidates(dead, aux_k, kernels)
    for pre in micro_batches(centred, encoder, b_enc):
        values, found = kernels.largest_entries(pre, min(count, pre.numel()))
        best.append(values)
        places.append(found + start)
        start += pre.numel()
        candidates.see(pre)
    values, chosen = torch.cat(best).topk(count, sorted=False)
    flat, order = torch.cat(places)[chosen].sort()
    bounds = torch.arange(len(centred) + 1, device=flat.device) * d_sae
    offsets = torch.searchsorted(flat, bounds).int()
    pairs = Pairs((flat % d_sae).int(), offsets, d_sae)
    return Selection(values[order], pairs), candidates.chosen(d_sae)
