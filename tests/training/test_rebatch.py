from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sae_tools.errors import UserError
from sae_tools.training.rebatch import Rebatched, _tensor

ROWS = torch.arange(60.0).view(30, 2)


def chunks(*sizes: int) -> list[Tensor]:
    return list(ROWS.split(list(sizes)))


def some(batches: Rebatched, count: int) -> Tensor:
    return torch.cat([next(batches).x for _ in range(count)])


def test_chunks_of_any_size_become_batches_in_order():
    batches = Rebatched(iter(chunks(1, 13, 0, 2, 14)), 7, "cpu")
    assert torch.equal(batches.peek(9).x, ROWS[:9])
    assert torch.equal(some(batches, 4), ROWS[:28])
    assert next(batches, None) is None  # two rows are left over


def test_what_can_be_gone_through_again_is():
    batches = Rebatched(chunks(11, 19), 7, "cpu")
    assert torch.equal(some(batches, 8), torch.cat([ROWS, ROWS])[:56])

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            yield from chunks(30)

    assert torch.equal(some(Rebatched(Loader(), 7, "cpu"), 8), torch.cat([ROWS, ROWS])[:56])
    assert next(Rebatched([], 7, "cpu"), None) is None


def test_a_tensor_comes_in_another_order_in_every_pass():
    batches = Rebatched(ROWS, 6, "cpu", seed=4)
    first, second = some(batches, 5), some(batches, 5)
    assert not torch.equal(first, ROWS) and not torch.equal(first, second)
    for seen in (first, second):
        assert torch.equal(seen[seen[:, 0].argsort()], ROWS)
    assert torch.equal(some(Rebatched(ROWS, 6, "cpu", seed=4), 5), first)
    assert not torch.equal(some(Rebatched(ROWS, 6, "cpu", seed=5), 5), first)
    assert batches.rows == 30


def test_pairs_stay_together():
    batches = Rebatched((ROWS, ROWS[:, :1] * 2), 7, "cpu")
    for _ in range(9):
        batch = next(batches)
        assert batch.y is not None and torch.equal(batch.y, batch.x[:, :1] * 2)
    lists = Rebatched([[x, x + 1] for x in chunks(9, 21)], 10, "cpu")  # as a DataLoader gives them
    batch = next(lists)
    assert batch.y is not None and torch.equal(batch.y, batch.x + 1)


def test_a_loader_of_rows_alone():
    loader = DataLoader(TensorDataset(ROWS), batch_size=4)
    assert torch.equal(some(Rebatched(loader, 7, "cpu"), 4), ROWS[:28])


def test_other_numbers_become_float32():
    assert next(Rebatched([ROWS.half()], 7, "cpu")).x.dtype == torch.float32
    assert next(Rebatched(ROWS.double(), 7, "cpu")).x.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_arrays_are_as_good_as_tensors(dtype: str):
    array = ROWS.numpy().astype(dtype)
    expected = some(Rebatched(ROWS, 7, "cpu"), 8)
    assert torch.equal(some(Rebatched(array, 7, "cpu"), 8), expected) and Rebatched(array, 7, "cpu").rows == 30
    backwards = np.ascontiguousarray(array[::-1])[::-1]
    assert torch.equal(some(Rebatched(backwards, 7, "cpu"), 8), expected)
    pairs = Rebatched((array, ROWS[:, :1] * 2), 7, "cpu")
    batch = next(pairs)
    assert batch.y is not None and torch.equal(batch.x, expected[:7]) and torch.equal(batch.y, expected[:7, :1] * 2)
    pieces = Rebatched((part for part in ([array[:9], array[:9] + 1], (ROWS[9:], array[9:] + 1))), 10, "cpu")
    batch = next(pieces)
    assert batch.y is not None and torch.equal(batch.x, ROWS[:10]) and torch.equal(batch.y, ROWS[:10] + 1)


@pytest.mark.filterwarnings("error")
def test_an_array_on_disk_stays_there(tmp_path: Path):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    batches = Rebatched(rows, 7, "cpu")
    assert torch.equal(some(batches, 4), some(Rebatched(ROWS, 7, "cpu"), 4))
    assert _tensor(rows).data_ptr() == rows.ctypes.data


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([ROWS, ROWS[:, :1]], "rows of widths 1 come after rows of widths 2"),
        ([ROWS, (ROWS, ROWS)], "rows of widths 2 and 2 come after rows of widths 2"),
        ([ROWS.long()], "rows are .* of floating-point numbers, but a tensor of shape .* int64 came"),
        ([ROWS.view(3, 10, 2)], r"a tensor of shape \[3, 10, 2\]"),
        ([(ROWS, ROWS[:3])], "must have the same number of rows, but have 30 and 3"),
        (["abc"], "but str came"),
        (7, "and no int"),
        (ROWS.long().numpy(), r"16, 32 or 64 bits, but an array of shape \[30, 2\] and int64 came"),
        ([ROWS.numpy() * 1j], "and complex64 came"),
        (np.array([["a", "b"]]), "and <U1 came"),
        (ROWS[:, 0].numpy(), r"an array of shape \[30\]"),
        ((ROWS.numpy(), ROWS[:3]), "must have the same number of rows, but have 30 and 3"),
        ([ROWS, ROWS[:, :1].numpy()], "rows of widths 1 come after rows of widths 2"),
    ],
)
def test_what_is_no_rows(source, message: str):
    with pytest.raises(UserError, match=message):
        some(Rebatched(source, 20, "cpu"), 2)
