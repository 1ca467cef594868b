from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.activations.harvest import Harvester
from sae_tools.activations.mixing import measure_mixing
from sae_tools.config import RowsConfig
from sae_tools.errors import UserError
from sae_tools.models.load import load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Rows
from tests.activations.fakes import FakeHarvester, FakeStream, same_rows
from tests.tiny_models import tiny_model


def buffer(
    stream: FakeStream, *, rows: int = 48, batch_size: int = 8, seed: int = 0, harvester: Any = None
) -> ShuffleBuffer:
    return ShuffleBuffer(stream, harvester or FakeHarvester(), rows=rows, batch_size=batch_size, seed=seed)


def harvested(stream: FakeStream) -> Rows:
    return Rows.concatenate([FakeHarvester().harvest(contexts) for contexts in stream])


def identities(rows: Rows) -> Counter[tuple[int, ...]]:
    return Counter(zip(rows.tokens.tolist(), rows.position.tolist(), rows.document.tolist(), strict=True))


@given(count=st.integers(0, 9), rows=st.integers(1, 200), batch_size=st.integers(1, 40))
def test_a_finite_stream_is_served_whole_once_each_row_intact(count: int, rows: int, batch_size: int):
    served = list(buffer(FakeStream(count=count), rows=rows, batch_size=batch_size))
    if not count:
        assert served == []
        return
    expected, found = harvested(FakeStream(count=count)), Rows.concatenate(served)
    assert identities(found) == identities(expected)
    assert torch.equal(found.scale, 1 + found.tokens.float())
    assert torch.equal(found.activations["mlp_out@1"][:, 1], -2.0 * found.tokens)
    assert torch.equal(found.activations["mlp_acts@0"][:, 0], (found.tokens + found.position).float())
    assert all(len(batch) == batch_size for batch in served[:-1]) and 0 < len(served[-1]) <= batch_size


@given(
    rows=st.integers(1, 150),
    batch_size=st.integers(1, 30),
    cut=st.integers(0, 25),
    count=st.none() | st.integers(1, 12),
    batch=st.integers(1, 5),
)
@example(rows=48, batch_size=8, cut=6, count=None, batch=3)  # at the boundary of two fills
@example(rows=48, batch_size=8, cut=0, count=None, batch=3)
@example(rows=10, batch_size=10, cut=3, count=None, batch=5)  # several fills out of one batch of contexts
@example(rows=1, batch_size=1, cut=7, count=1, batch=1)
def test_a_resumed_buffer_goes_on_bit_for_bit(rows: int, batch_size: int, cut: int, count: int | None, batch: int):
    def fresh() -> ShuffleBuffer:
        return buffer(FakeStream(count=count, batch=batch), rows=rows, batch_size=batch_size)

    straight = fresh()
    before = list(islice(straight, cut))
    state = json.loads(json.dumps(straight.state_dict()))
    assert len(json.dumps(state)) < 300
    resumed = fresh()
    list(islice(resumed, 3))  # whatever it had served before
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest, again = list(islice(straight, 15)), list(islice(resumed, 15))
    assert len(rest) == len(again) and all(same_rows(a, b) for a, b in zip(rest, again, strict=True))
    assert straight.state_dict() == resumed.state_dict()
    if count is not None and len(before) + len(rest) < cut + 15:
        assert next(straight, None) is None and next(resumed, None) is None


@given(total=st.integers(1, 40), cut=st.integers(0, 39))
def test_the_last_fill_takes_what_is_still_needed(total: int, cut: int):
    """In batches of 8, six to a fill: no more is harvested than is asked for, but for a third of a fill and the rows
    of a forward pass; a resumed buffer does the same."""

    def some(harvester: FakeHarvester) -> ShuffleBuffer:
        return ShuffleBuffer(FakeStream(), harvester, rows=48, batch_size=8, seed=0, total=8 * total)

    harvester = FakeHarvester()
    reader = some(harvester)
    batches, states = [], []
    for _ in range(total):
        states.append(reader.state_dict())
        batches.append(next(reader))
    assert all(len(batch) == 8 for batch in batches)
    assert reader._filled == min(48, max(16, 8 * total - 48 * ((total - 1) // 6)))
    other = some(FakeHarvester())
    other.load_state_dict(json.loads(json.dumps(states[cut % total])))
    assert all(same_rows(next(other), batch) for batch in batches[cut % total :])
    assert len(next(other)) == 8  # asked for more than was said, it goes on


def test_a_whole_fill_is_one_permutation_of_consecutive_rows():
    one = Rows.concatenate(list(islice(buffer(FakeStream()), 6)))
    two = Rows.concatenate(list(islice(buffer(FakeStream()), 12)))[48:]
    expected = harvested(FakeStream(count=20))
    assert identities(one) == identities(expected[:48])
    assert identities(two) == identities(expected[48:96])
    assert not torch.equal(one.tokens, expected.tokens[:48])
    order = [identities(expected[i : i + 1]) for i in range(48)]
    moved = [order.index(identities(one[i : i + 1])) for i in range(48)]
    moved_later = [identities(expected[48 + i : 49 + i]) for i in range(48)]
    assert moved != [moved_later.index(identities(two[i : i + 1])) for i in range(48)]  # another one in the next fill


def test_the_seed_decides_the_order_and_nothing_else_does():
    first = list(islice(buffer(FakeStream(), seed=1), 10))
    torch.manual_seed(5)
    again = list(islice(buffer(FakeStream(), seed=1), 10))
    other = list(islice(buffer(FakeStream(), seed=2), 10))
    assert all(same_rows(a, b) for a, b in zip(first, again, strict=True))
    assert not any(same_rows(a, b) for a, b in zip(first, other, strict=True))


def test_batches_are_the_readers_own():
    served = buffer(FakeStream())
    first = next(served)
    kept = first.activations["mlp_out@1"].clone()
    first.tokens.fill_(-1)
    list(islice(served, 20))
    assert torch.equal(first.activations["mlp_out@1"], kept)
    resumed = buffer(FakeStream())
    assert torch.equal(next(resumed).activations["mlp_out@1"], kept)


def test_surplus_rows_are_not_harvested_twice_while_running():
    stream = FakeStream()
    served = buffer(stream)
    rows = sum(len(batch) for batch in islice(served, 60))
    needed = next(n for n in range(1, 100) if len(harvested(FakeStream(count=n))) >= rows)
    assert stream.drawn == needed


def test_resuming_harvests_one_fill_and_no_more():
    straight = buffer(FakeStream())
    list(islice(straight, 6 * 50 + 2))
    stream = FakeStream()
    resumed = buffer(stream)
    resumed.load_state_dict(straight.state_dict())
    assert stream.drawn <= 48 // 10 + 2  # a batch of 24 tokens gives some 16 rows


def test_interrupted_while_filling_the_state_is_that_of_the_fill_before():
    class Interrupted(FakeStream):
        armed = False

        def __next__(self):
            if self.armed and self.at == 5:
                raise KeyboardInterrupt
            return super().__next__()

    stream = Interrupted()
    served = buffer(stream)
    list(islice(served, 6))
    boundary = served.state_dict()
    stream.armed = True
    with pytest.raises(KeyboardInterrupt):
        next(served)
    assert served.state_dict() == boundary
    resumed, straight = buffer(FakeStream()), buffer(FakeStream())
    resumed.load_state_dict(served.state_dict())
    list(islice(straight, 6))
    assert same_rows(next(resumed), next(straight))


@pytest.mark.parametrize(("rows", "batch_size", "capacity"), [(48, 8, 48), (50, 8, 48), (5, 8, 8), (1, 1, 1)])
def test_sizes_are_true(rows: int, batch_size: int, capacity: int):
    served = buffer(FakeStream(), rows=rows, batch_size=batch_size)
    described = served.describe()
    per_row = 4 * (2 + 3) + 3 * 8 + 4 + 8  # activations; token, position, document; scale; permutation
    assert described == {"rows": capacity, "bytes": capacity * per_row, "bytes_per_row": per_row}
    next(served)
    store = served._store
    held = [*store.activations.values(), store.tokens, store.position, store.document, store.scale, served._order]
    assert sum(x.untyped_storage().nbytes() for x in held if x is not None) == described["bytes"]


def test_half_precision_is_kept_as_it_is_and_served_in_float32():
    harvester = FakeHarvester(dtype=torch.bfloat16)
    served = buffer(FakeStream(), harvester=harvester)
    batch = next(served)
    assert served._store.activations["mlp_out@1"].dtype == torch.bfloat16
    assert batch.activations["mlp_out@1"].dtype == torch.float32
    assert torch.equal(batch.activations["mlp_out@1"][:, 0], batch.tokens.to(torch.bfloat16).float())


@pytest.mark.parametrize(("setting", "value"), [("seed", 4), ("batch_size", 4), ("rows", 24)])
def test_another_buffers_state_is_refused(setting: str, value: int):
    state = buffer(FakeStream()).state_dict()
    with pytest.raises(UserError, match="saved run's buffer has"):
        buffer(FakeStream(), **{setting: value}).load_state_dict(state)


@pytest.mark.parametrize("cut", [1, 9])
def test_text_that_changed_is_noticed(cut: int):
    straight = buffer(FakeStream())
    list(islice(straight, cut))
    with pytest.raises(UserError, match="text is not the same"):
        buffer(FakeStream(salt=1)).load_state_dict(straight.state_dict())
    with pytest.raises(UserError, match="text is not the same"):
        buffer(FakeStream(count=2 if cut == 1 else 3)).load_state_dict(straight.state_dict())


def test_a_stream_without_rows_is_an_error_and_not_endless():
    with pytest.raises(UserError, match="rows.skip_positions"):
        next(buffer(FakeStream(), harvester=FakeHarvester(divisor=1)))
    few = buffer(FakeStream(count=3), harvester=FakeHarvester(divisor=1))
    assert list(few) == []


def test_documents_are_mixed_as_well_as_the_fill_allows():
    stream, straight = FakeStream(count=40), FakeStream(count=40)
    shuffled = [batch.document for batch in buffer(stream, rows=640, batch_size=32)]
    mixed = measure_mixing(shuffled)
    unshuffled = measure_mixing(harvested(straight).document.split(32))
    assert 0.6 < mixed.ratio < 1.4
    assert unshuffled.ratio > 10


def test_the_share_of_the_fill_is_what_batches_have_on_average():
    served = buffer(FakeStream(), rows=48)
    batches = [batch.document for batch in islice(served, 6)]
    assert served.same_document == pytest.approx(measure_mixing(batches).perfect)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_with_a_language_model(kind: str):
    model = load_model(tiny_model(kind))
    harvester = Harvester(model, [resolve_site(model, "mlp_out@1")], RowsConfig(), need_scale=True)

    def fresh() -> ShuffleBuffer:
        return buffer(FakeStream(batch=4, context=12), rows=100, batch_size=16, harvester=harvester)

    straight = fresh()
    states, batches = [], []
    for _ in range(15):
        states.append(straight.state_dict())
        batches.append(next(straight))
    for cut in (0, 1, 6, 7, 13):
        resumed = fresh()
        resumed.load_state_dict(json.loads(json.dumps(states[cut])))
        assert all(same_rows(a, b) for a, b in zip(islice(resumed, 15 - cut), batches[cut:], strict=True))
