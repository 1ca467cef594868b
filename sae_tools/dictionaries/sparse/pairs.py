"""Active pairs of a row and a feature, and the sums and products over them."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.dictionaries.sparse.kernels import kernels_for
from sae_tools.dictionaries.sparse.torch_kernels import ByFeature, row_of_pairs


class Pairs:
    """Which features each row uses: any number for each, grouped by row.

    Of n pairs, decoding and every gradient is a sum of n vectors, where dense codes would cost rows x d_sae of them. No
    method makes a tensor of size [pairs, d].
    """

    def __init__(self, features: Int[Tensor, " pairs"], offsets: Int[Tensor, " bounds"], d_sae: int):
        """features: int32, none twice in a row. offsets: int32, where each row's features begin, and their number."""
        self.features = features
        self.offsets = offsets
        self.d_sae = d_sae

    @staticmethod
    def of_rows(indices: Int[Tensor, "rows k"], d_sae: int) -> Pairs:
        """The same number of features in every row."""
        rows, k = indices.shape
        offsets = k * torch.arange(rows + 1, dtype=torch.int32, device=indices.device)
        return Pairs(indices.flatten().int(), offsets, d_sae)

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def by_feature(self) -> ByFeature:
        fast = kernels_for(torch.empty(0, dtype=torch.float32, device=self.features.device))
        return fast.by_feature(self.offsets, self.features, self.d_sae)

    def split_rows(self, widths: list[int]) -> Pairs:
        """The same pairs in rows · len(widths) rows: of each row first its features before widths[0], then those from
        there to widths[1], … so that a sum by row is one for each of these groups.

        Features must ascend within a row, as they do where `select_largest` or `select_above` chose them.
        """
        rows = row_of_pairs(self.offsets, len(self))
        place = rows * self.d_sae + self.features
        firsts = torch.tensor([0, *widths[:-1]], device=place.device)
        bounds = self.d_sae * torch.arange(self.rows, device=place.device).unsqueeze(1) + firsts
        offsets = torch.searchsorted(place, bounds.flatten()).int()
        return Pairs(self.features, torch.cat([offsets, self.offsets[-1:]]), self.d_sae)

    def dots(self, a: Float[Tensor, "rows d"], b: Float[Tensor, "d_sae d"]) -> Float[Tensor, " pairs"]:
        """<a of the pair's row, b of its feature>."""
        return kernels_for(a).dots(self.offsets, self.features, a, b)

    def sum_by_row(
        self, weights: Float[Tensor, " pairs"], vectors: Float[Tensor, "d_sae d"]
    ) -> Float[Tensor, "rows d"]:
        """Σ weight · vector of its feature, over the pairs of each row: decoding."""
        return kernels_for(vectors).sum_by_row(self.offsets, self.features, weights, vectors)

    def sum_by_feature(
        self, weights: Float[Tensor, " pairs"], vectors: Float[Tensor, "rows d"]
    ) -> Float[Tensor, "d_sae d"]:
        """Σ weight · vector of its row, over the pairs of each feature: the gradient of encoder or decoder rows."""
        return kernels_for(vectors).sum_by_feature(self.by_feature, weights, vectors)

    def total(self, weights: Float[Tensor, " pairs"]) -> Float[Tensor, " d_sae"]:
        """Σ weight over the pairs of each feature."""
        if weights.device.type != "cpu":  # adding in whatever order would not give the same bits again
            return self.sum_by_feature(weights, weights.new_ones(self.rows, 1)).squeeze(1)
        return weights.new_zeros(self.d_sae).index_add_(0, self.features, weights)

    def count(self, mask: Bool[Tensor, " pairs"]) -> Int[Tensor, " d_sae"]:
        """For each feature the number of its pairs where `mask` holds, int64."""
        zeros = torch.zeros(self.d_sae, dtype=torch.int64, device=mask.device)
        return zeros.index_add_(0, self.features, mask.long())
