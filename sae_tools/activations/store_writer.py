"""Writing an activation store: batches of the shuffle buffer become shards, one after the other.

Every shard carries where the text stood after its last row, so a writer that was killed goes on after the last shard
that is whole, and the store ends as if nothing had happened, bit for bit (on a CPU with the same number of threads).
A shard is part of one fill of the buffer, and fills divide the rows evenly: little is harvested that is not stored.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.activations.store import MANIFEST, Plan, Store, write_manifest
from sae_tools.activations.store_shards import ShardHeader, read_header, shard_name, write_shard
from sae_tools.errors import UserError
from sae_tools.rows import Rows
from sae_tools.runs import atomic
from sae_tools.runs.lock import locked
from sae_tools.runs.tensors import load_tensors, read_meta

SHARD_BYTES = 256 * 2**20
"""About the size of a shard; it is in memory once more while it is written."""


def sizes(rows: int, buffer_rows: int, row_bytes: int, shard_bytes: int = SHARD_BYTES) -> tuple[int, int]:
    """(rows of a fill, rows of a shard) with which `rows` rows are stored: as few fills of at most about `buffer_rows`
    as possible, all of one size, each of as few shards of at most `shard_bytes` as possible."""
    fill = math.ceil(rows / math.ceil(rows / buffer_rows))
    shard = math.ceil(fill / math.ceil(fill * row_bytes / shard_bytes))
    return math.ceil(fill / shard) * shard, shard


class Written(NamedTuple):
    """What a folder already holds of a store."""

    complete: bool
    headers: list[ShardHeader]
    """Of the shards that are there, from the first without a gap."""

    @property
    def rows(self) -> int:
        return sum(header.rows for header in self.headers)


def look(path: Path, plan: Plan) -> Written:
    """What is already there of the planned store. Raises UserError if the folder is something else, another store, or
    damaged; nothing is changed."""
    if not path.exists():
        return Written(False, [])
    if not path.is_dir():
        raise UserError(f"{path} is a file: a store needs a folder of its own.")
    names = sorted(p.name for p in path.iterdir() if p.name != ".lock" and not p.name.startswith(atomic.TEMPORARY))
    if MANIFEST in names:
        store = Store.open(path)
        _check_plan(path, store.plan, plan)
        return Written(True, store.headers)
    if shard_name(0) in names:
        _check_plan(path, _plan_of(path / shard_name(0)), plan)
    shards = [shard_name(i) for i in range(min(len(names), plan.shards))]
    if names != shards:
        first = next(name for name in names if name not in shards)
        raise UserError(f"{path} holds something else than a store ({first}): name an empty folder or a new one.")
    headers = []
    for number, name in enumerate(shards):
        _check_plan(path, _plan_of(path / name), plan)
        header = read_header(path / name, plan.layout)
        if header.rows != plan.rows_of(number) or header.meta.get("shard") != number:
            raise UserError(f"{path / name} is not shard {number} of its store: remove it and those after it.")
        passes = header.meta.get("text_passes")
        if not isinstance(header.meta.get("next"), dict) or type(passes) is not int or passes < 1:
            raise UserError(
                f"{path / name} does not say where the text stood after its rows: remove it and those after it."
            )
        headers.append(header)
    return Written(False, headers)


def check_space(path: Path, needed: int) -> None:
    """UserError if the disk that `path` will be on has fewer than `needed` bytes left for us."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{path} needs {needed:,} bytes ({needed / 2**30:,.2f} GiB) more, but its disk has {free:,} free "
            f"({free / 2**30:,.2f} GiB)."
        )


def fill_store(
    path: Path,
    plan: Plan,
    buffer: ShuffleBuffer,
    versions: dict[str, str],
    *,
    progress: Callable[[int], None] = lambda rows: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Store | None:
    """Write what is missing of the planned store; None if `should_stop()` ended it early, to be gone on with later.

    buffer: with batches of `plan.shard_rows` rows and a capacity of `plan.fill_rows`, from the beginning of the text.
    progress: called with the number of rows stored so far.
    Raises UserError where the folder is something else, is being written by another process, or the disk is full.
    """
    look(path, plan)  # before anything is made
    with locked(path):
        written = look(path, plan)
        if written.complete:
            return Store.open(path)
        atomic.remove_leftovers(path)
        headers = written.headers
        check_space(path, plan.bytes - sum(header.bytes for header in headers))
        if headers:
            last = path / shard_name(len(headers) - 1)
            load_tensors(last)  # every byte of it: the one that was written when something went wrong
            after = headers[-1].meta["next"]
            if after.keys() != buffer.state_dict().keys():
                raise UserError(f"{last} does not say where the text stood after its rows: remove it.")
            buffer.load_state_dict(after)
        for number in range(len(headers), plan.shards):
            if should_stop():
                return None
            rows = next(buffer)[: plan.rows_of(number)]
            headers.append(_write(path, plan, number, rows, buffer))
            progress(sum(header.rows for header in headers))
        write_manifest(path, plan, headers, versions)
    return Store.open(path)


def _write(path: Path, plan: Plan, number: int, rows: Rows, buffer: ShuffleBuffer) -> ShardHeader:
    if len(rows) != plan.rows_of(number):
        raise UserError(f"The text ended before the store's {plan.rows:,} rows were there.")
    passes = getattr(buffer.stream, "epoch", 0) + 1  # a source that has no epochs is read once
    meta = {
        "plan": plan.model_dump(mode="json"),
        "shard": number,
        "next": buffer.state_dict(),
        "text_passes": passes,
    }
    file = path / shard_name(number)
    try:
        write_shard(file, rows, plan.layout, meta)
    except atomic.NoSpaceError:
        raise UserError(
            f"no space left on device while writing {file}; the shards before it are kept, so make room and run the "
            f"same command again."
        ) from None
    return read_header(file, plan.layout)


def _check_plan(path: Path, there: Plan, here: Plan) -> None:
    if difference := there.difference(here):
        raise UserError(f"{path} holds a store with other settings: {difference}; name another folder for this one.")


def _plan_of(file: Path) -> Plan:
    """The plan that a shard carries. Raises UserError for a file that is damaged or no shard."""
    try:
        return Plan.model_validate(read_meta(file)["plan"])
    except (KeyError, TypeError, ValueError, RecursionError):  # pydantic's own error is a ValueError
        raise UserError(f"{file} is no part of an activation store of sae_tools.") from None
