"""Rows stay whole, whatever is taken of them and wherever they go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.rows import Rows


def some_rows(n: int, scale: bool) -> Rows:
    number = torch.arange(n)
    activations = {"mlp_out@1": number[:, None] * torch.ones(3), "mlp_acts@0": number[:, None] + torch.zeros(2)}
    return Rows(activations, number, number + 1, number + 2, number + 0.5 if scale else None)


def numbers(rows: Rows) -> list[int]:
    """Of the rows, the same from every field."""
    found = rows.tokens.tolist()
    assert rows.position.tolist() == [n + 1 for n in found] and rows.document.tolist() == [n + 2 for n in found]
    assert rows.activations["mlp_out@1"].tolist() == [[n] * 3 for n in found]
    assert rows.activations["mlp_acts@0"].tolist() == [[n] * 2 for n in found]
    assert rows.scale is None or rows.scale.tolist() == [n + 0.5 for n in found]
    return found


@given(n=st.integers(1, 20), data=st.data(), scale=st.booleans())
def test_what_is_taken(n: int, data: st.DataObject, scale: bool):
    rows = some_rows(n, scale)
    index = data.draw(st.lists(st.integers(0, n - 1), max_size=30))
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    first, last = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    assert numbers(rows[torch.tensor(index, dtype=torch.int64)]) == index
    assert numbers(rows[torch.tensor(mask)]) == [i for i in range(n) if mask[i]]
    assert numbers(rows[first:last]) == list(range(first, last))
    assert (rows[first:last].scale is None) is not scale


def test_on_the_way_to_a_gpu_nobody_waits(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: (asked.append(("pinned", x.shape)), x)[1])
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, **how: (asked.append((device, x.shape, how)), x)[1])
    shapes = [(5, 3), (5, 2), (5,), (5,), (5,), (5,)]
    for device in ("cuda:0", torch.device("cuda", 0)):
        asked.clear()
        assert numbers(some_rows(5, scale=True).to(device)) == list(range(5))
        assert asked[::2] == [("pinned", shape) for shape in shapes]
        assert asked[1::2] == [(device, shape, {"non_blocking": True}) for shape in shapes]
    asked.clear()
    some_rows(5, scale=True).to("cpu")
    assert asked == [("cpu", shape, {}) for shape in shapes]
