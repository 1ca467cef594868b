"""The next block of contexts, read by a thread while the one before it is being served.

Tokenizers let other threads run while they work, and so do NumPy and PyTorch, so a step waits for text only where there
is no core for the thread. Never more than one block ahead, and nothing depends on the thread: where it has brought no
block, for whatever reason, whoever asks for the block reads it himself, and gets the error if there is one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import Any

import torch

from sae_tools.data.blocks import Block, BlockReader

_SECONDS_TO_END = 5.0
"""How long the end of the process waits for a thread, which looks at every document whether it is still wanted: only
one that hangs in a network read takes longer."""


def reads_ahead(device: torch.device | str) -> bool:
    """Whether there is a core for reading ahead while a job trains on `device`: always next to a GPU; on the CPU where
    PyTorch leaves at least one of the cores that this process may use to others."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.device(device).type != "cpu" or torch.get_num_threads() < cores


class BlocksAhead:
    """Blocks in the reader's order. The reader belongs to it: only its own methods may move it."""

    def __init__(self, reader: BlockReader):
        self._reader = reader
        self._thread: _Reading | None = None

    def start(self) -> None:
        """Begins to read the next block in a thread, unless that has begun or there is none."""
        if self._thread is None and not self._reader.over:
            self._thread = _Reading(self._reader)
            self._thread.start()

    def read(self) -> Block | None:
        """The next block, waited for or read here; None when there is nothing left. Raises what BlockReader.read does.

        Interrupted while it waits it has lost nothing and can be called again.
        """
        if self._thread is None:
            return self._reader.read()
        self._thread.join()
        done, self._thread = self._thread, None
        if done.block is None:  # an error, or a thread that a fork has left behind
            self._reader.go_to(*done.before)
            return self._reader.read()
        return done.block

    def go_to(self, position: dict[str, Any], contexts: int) -> None:
        """See BlockReader.go_to. What has been read ahead is dropped."""
        if self._thread is not None:
            self._thread.unwanted.set()
            self._thread.join()
            self._thread = None
        self._reader.go_to(position, contexts)

    def __del__(self) -> None:
        if self._thread is not None:
            self._thread.unwanted.set()


class _Reading(threading.Thread):
    """Reads one block. It knows the reader, but not who waits, so that a stream nobody holds any more goes away."""

    def __init__(self, reader: BlockReader):
        # A daemon, so that one that hangs does not keep the process; `_end_all` ends the others before the
        # interpreter does, which must not happen in the middle of a tokenizer's compiled code.
        super().__init__(name="text", daemon=True)
        self._reader = reader
        self.before = (reader.position(), reader.contexts)
        self.unwanted = threading.Event()
        self.block: Block | None = None
        _all.add(self)

    def run(self) -> None:
        with contextlib.suppress(Exception):  # it comes again where the block is asked for
            self.block = self._reader.read(self.unwanted.is_set)


_all: weakref.WeakSet[_Reading] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    threads = list(_all)
    for thread in threads:
        thread.unwanted.set()
    for thread in threads:
        if thread.is_alive():
            thread.join(_SECONDS_TO_END)
