"""How much memory a computation takes: the tensors that are alive at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """While open, adds up the storages that operations make and that are alive; what an operation takes for itself and
    frees again is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        """Bytes."""
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (key := _key(x)) not in self._known and key not in before:
                self._add(x, key)
        return out

    def _add(self, x: Tensor, key: int) -> None:
        storage = x.untyped_storage()
        size = storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of the tensors that `work` makes, at the time when most are alive."""
    with Allocations() as allocations:
        result = work()
        del result
    return allocations.peak
