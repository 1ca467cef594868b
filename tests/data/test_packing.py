"""Packing against a plain loop, and nothing lost between calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.data.packing import Packer

BOS = 0


def packed_by_hand(documents: list[list[int]], length: int, bos: str) -> list[list[tuple[int, int]]]:
    """Token by token: contexts of (token, document)."""
    contexts, context = [], []
    for number, document in enumerate(documents):
        if not document:
            continue
        own = document[0] == BOS
        flow = [(t, number) for t in (document if own or bos == "none" else [BOS, *document])]
        for i, pair in enumerate(flow):
            if bos == "context" and not context and i > 0:
                context.append((BOS, number))
            context.append(pair)
            if len(context) == length:
                contexts.append(context)
                context = []
    return contexts


corpora = st.lists(st.lists(st.integers(1, 9), max_size=12), max_size=12)


@given(documents=corpora, length=st.integers(2, 7), bos=st.sampled_from(["context", "document", "none"]))
def test_equals_a_plain_loop_however_documents_are_divided_among_calls(documents, length, bos):
    expected = packed_by_hand(documents, length, bos)
    for size in (1, 3, 100):
        packer = Packer(length, bos, BOS)
        found = []
        for start in range(0, len(documents), size):
            part = [(start + i, np.array(d, np.int32)) for i, d in enumerate(documents[start : start + size])]
            tokens, numbers = packer.pack(part)
            assert tokens.shape == numbers.shape == (len(tokens), length) and tokens.dtype == np.int32
            found += [list(zip(t.tolist(), n.tolist(), strict=True)) for t, n in zip(tokens, numbers, strict=True)]
        assert found == expected
        # A BOS that would open the next context is not yet drawn, so at most a context's worth is left.
        assert len(packer.tokens) < length


@given(documents=corpora, cut=st.integers(0, 12), bos=st.sampled_from(["context", "document", "none"]))
def test_state_continues(documents, cut, bos):
    numbered = [(i, np.array(d, np.int32)) for i, d in enumerate(documents)]
    whole = Packer(5, bos, BOS)
    whole.pack(numbered[:cut])
    other = Packer(5, bos, BOS)
    other.load_state_dict(whole.state_dict())
    for a, b in zip(whole.pack(numbered[cut:]), other.pack(numbered[cut:]), strict=True):
        assert np.array_equal(a, b)


def test_documents_that_bring_their_own_bos_get_no_second_one():
    tokens, _ = Packer(6, "document", BOS).pack([(0, np.array([BOS, 3, 4])), (1, np.array([5, 6]))])
    assert tokens.tolist() == [[BOS, 3, 4, BOS, 5, 6]]


def test_every_context_starts_with_one_bos():
    tokens, documents = Packer(4, "context", BOS).pack([(7, np.arange(1, 7)), (8, np.array([9, 9]))])
    assert tokens.tolist() == [[BOS, 1, 2, 3], [BOS, 4, 5, 6], [BOS, 9, 9]][:2]
    assert documents.tolist() == [[7] * 4, [7] * 4]


def test_bos_is_needed_where_it_is_asked_for():
    with pytest.raises(ValueError, match="BOS"):
        Packer(4, "context", None)
    assert Packer(3, "none", None).pack([(0, np.array([1, 2, 3]))])[0].tolist() == [[1, 2, 3]]
