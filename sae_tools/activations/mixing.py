"""How well a shuffle mixes documents: same-document pairs within batches against a perfect shuffle."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


def same_document_share(document: Int[Tensor, " rows"]) -> float:
    """Share of the pairs of rows that come from one document, Σ n_d (n_d − 1) / (n (n − 1)); NaN for fewer than two
    rows. A batch drawn from these rows without replacement has the same share on average."""
    n = document.numel()
    if n < 2:
        return math.nan
    counts = torch.unique(document, return_counts=True)[1].double()
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


@dataclass(frozen=True)
class Mixing:
    batches: float
    """Share of same-document pairs within batches, averaged over batches."""
    perfect: float
    """The same if all rows of all batches had been shuffled together."""

    @property
    def ratio(self) -> float:
        """1 for a perfect shuffle; larger the worse documents are mixed. NaN where no document has two rows."""
        return self.batches / self.perfect if self.perfect > 0 else math.nan


def measure_mixing(documents_of_batches: Iterable[Int[Tensor, " rows"]]) -> Mixing:
    """Compares batches (the document of each of their rows) with a perfect shuffle of all of them. Batches of fewer
    than two rows are left out; ValueError if nothing is left."""
    batches = [documents for documents in documents_of_batches if documents.numel() >= 2]
    if not batches:
        raise ValueError("no batch of at least two rows")
    within = sum(same_document_share(documents) for documents in batches) / len(batches)
    return Mixing(within, same_document_share(torch.cat(batches)))
