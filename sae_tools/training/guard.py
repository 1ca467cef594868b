"""Stops a run whose numbers have become non-finite, without asking the device at every step.

A flag on the device freezes every dictionary of the job from the first bad step on, so that the parameters stay those
of the last good step; the host looks at it only where it synchronises anyway.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.training.step import Step


class NonFiniteError(UserError):
    """A loss, gradient or activation became NaN or infinite; the state before that step has been saved."""


class Guard:
    def __init__(self, n_dictionaries: int, device: torch.device | str):
        self.frozen: Float[Tensor, ""] = torch.zeros((), device=device)
        """1 from the first bad step on, else 0."""
        self._bad_step: Int[Tensor, " dictionaries"] = torch.full((n_dictionaries,), -1, device=device)
        self._bad_rows: Int[Tensor, " dictionaries"] = torch.zeros(n_dictionaries, dtype=torch.int64, device=device)
        self.positions: deque[tuple[int, dict[str, Any]]] = deque()
        """(step, position in the data before it) since the last look."""

    def before(self, step: int, position: dict[str, Any]) -> None:
        """Remember where the data stood before `step`, so that a bad step can be gone back to."""
        self.positions.append((step, position))

    def check(self, step: int, xs: list[Tensor], proposals: list[Step]) -> None:
        """Set the flag if any loss or gradient is not finite. No synchronisation."""
        for i, (x, proposal) in enumerate(zip(xs, proposals, strict=True)):
            bad = ~(torch.isfinite(proposal.loss) & torch.isfinite(proposal.norm))
            first = bad & (self._bad_step[i] < 0) & (self.frozen == 0)
            self._bad_step[i] = torch.where(first, step, self._bad_step[i])
            self._bad_rows[i] = torch.where(first, (~torch.isfinite(x.sum())).long(), self._bad_rows[i])
        self.frozen.copy_((self.frozen > 0) | (self._bad_step >= 0).any())

    def look(self) -> tuple[int, dict[str, Any], int, bool] | None:
        """None if all is well, else (bad step, position of the data before it, which dictionary, bad activations?).

        This synchronises with the device.
        """
        if self.frozen.item() == 0:
            self.positions.clear()
            return None
        steps = self._bad_step.tolist()
        which = min((step, i) for i, step in enumerate(steps) if step >= 0)[1]
        position = dict(self.positions)[steps[which]]
        return steps[which], position, which, bool(self._bad_rows[which].item())
