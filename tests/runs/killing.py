"""A process killed between any two of its file operations, without a process."""

from __future__ import annotations


class Killed(BaseException):
    """Stands in for SIGKILL: from the n-th file operation on, nothing reaches the disk any more."""


def killed_at_each_operation(kill_before, act) -> int:
    """Run `act(n)` once for every n, killing it at its n-th file operation, until it survives; returns how often."""
    for n in range(100):
        kill_before(n)
        try:
            act(n)
        except Killed:
            kill_before(-1)
            continue
        kill_before(-1)
        return n
    raise AssertionError("it never ended")
