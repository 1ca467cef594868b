"""peak_of against sizes known beforehand."""

from __future__ import annotations

import mmap

import torch

from sae_tools.allocations import Allocations, peak_of
from sae_tools.memory import resident_bytes

MEGABYTE = 2**20


def megabyte(value: float = 0.0) -> torch.Tensor:
    return torch.full((MEGABYTE // 4,), value)


def test_what_lives_at_once_counts():
    def three_then_one() -> torch.Tensor:
        a, b = megabyte(), megabyte()
        c = a + b
        del a, b
        return c.neg_()

    assert peak_of(three_then_one) == 3 * MEGABYTE


def test_views_and_what_was_there_before_do_not():
    before = megabyte()
    assert peak_of(lambda: before.view(2, -1).T[1:]) == 0
    assert peak_of(lambda: before.add_(1)) == 0


def test_freed_memory_is_no_longer_alive():
    with Allocations() as allocations:
        for _ in range(5):
            x = megabyte() * 2
        del x
    assert allocations.alive == 0 and 2 * MEGABYTE <= allocations.peak <= 3 * MEGABYTE


def test_resident_memory_grows_with_what_is_held():
    before = resident_bytes()
    held = mmap.mmap(-1, 100 * MEGABYTE)  # new pages, which what was freed before cannot serve
    held.write(b"x" * len(held))
    if before:
        assert resident_bytes() - before > 90 * MEGABYTE
        assert resident_bytes(peak=True) >= resident_bytes()
    assert held[-1:] == b"x"
