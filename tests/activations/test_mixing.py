from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.activations.mixing import measure_mixing, same_document_share


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_share_counts_pairs(documents: list[int]):
    pairs = list(itertools.combinations(documents, 2))
    expected = sum(a == b for a, b in pairs) / len(pairs)
    assert same_document_share(torch.tensor(documents)) == pytest.approx(expected)


def test_fewer_than_two_rows_have_no_pairs():
    assert math.isnan(same_document_share(torch.tensor([3])))
    assert math.isnan(same_document_share(torch.tensor([], dtype=torch.int64)))
    with pytest.raises(ValueError, match="two rows"):
        measure_mixing([torch.tensor([3])])


def test_mixing_of_sorted_and_of_shuffled_documents():
    documents = torch.arange(64).repeat_interleave(64)
    assert measure_mixing(documents.split(64)).ratio == pytest.approx(4095 / 63)
    shuffled = documents[torch.randperm(4096, generator=torch.Generator().manual_seed(0))]
    assert measure_mixing(shuffled.split(64)).ratio == pytest.approx(1, abs=0.1)
    assert measure_mixing(documents.view(64, 64).T.reshape(-1).split(64)).batches == 0


def test_a_single_batch_is_its_own_perfect_shuffle():
    mixed = measure_mixing([torch.tensor([0, 0, 1, 2])])
    assert mixed.batches == mixed.perfect == pytest.approx(1 / 6)
    assert math.isnan(measure_mixing([torch.arange(5)]).ratio)
