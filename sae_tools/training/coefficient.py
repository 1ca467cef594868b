"""The sparsity coefficient that makes a dictionary use so many features per token, found while it trains.

After every step a controller looks at e = log(smoothed L0 of the batches / L0 asked for) and at what e will be in a
near and in a far future at the rate at which it moves. Does it still have its sign in the far one, the coefficient is
too timid; does it have the other one in the near one, it is too bold; in between it is left alone:

    log coefficient += I · clamp(minmod(e + T_near de/dt, e + T_far de/dt))

(minmod: the smaller of two numbers of one sign, else 0). From the hundreds of active features that every dictionary
starts with, L0 so comes down to what is asked for, and not through it: features that have been driven out come back
late or never. And the coefficient does not run away where L0 cannot follow it: Adam moves JumpReLU's thresholds by
about the learning rate a step, whatever the coefficient is. The futures are shares of the steps left. I is proportional
to the learning rate too, as is the speed at which a dictionary can follow, so that the coefficient settles while the
learning rate falls to 0.

Measured on rows of the bundled model (mlp_out@3 in resid_update; 1,024 features, 1,000 steps of 1,024 rows at a
learning rate of 1e-3, started at 1; one seed), held-out L0 was off, asked for 16, 32 and 64, by 0.4, -0.2 and -0.6 %
(relu), by -1.1 and -1.2 % (gated, 16 and 32) and by -4.2, -4.7 and -0.6 % (jumprelu). relu at 16 had a FVU of 0.145,
where fixed coefficients suggest 0.13: features that are let go of late need a larger one, which shrinks the others.

Nothing is synchronised with an accelerator.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

NEAR, FAR, FAR_IF_SLOW, LEAST_NEAR = 0.25, 0.3, 0.6, 50
"""T_near and T_far in steps: these shares of the steps that are left, and at least so many. e then goes to 0 as that
number to the power of 3.3 to 4; of 1.7 to 4 for dictionaries that follow slowly."""
SLOWNESS, LEAST_SLOWNESS = 0.02, 20
"""1 / I in steps: this share of the run, and at least so many."""
SMOOTHED = 30
"""Steps over which L0 is averaged: with 1,024 rows a batch's is off by 1 to 2 %."""
LARGEST = 1.0
"""Of what is added, before it is multiplied by I."""
REACH = 1e4
"""The coefficient stays within this factor of where it started."""
TOLERANCE = 0.05
"""The held-out L0 may be off by this share."""


class CoefficientSearch:
    """What is known of the coefficient, as numbers on the device: log_coefficient, log_l0 (smoothed) and, of the step
    before, error. `seen` is 0 before the first step."""

    def __init__(self, target: float, start: float, slow: bool = False, device: torch.device | str = "cpu"):
        """target: features per token. start: the coefficient, above 0. slow: whether what follows it moves at a speed
        of its own, as thresholds do."""
        self.far = FAR_IF_SLOW if slow else FAR
        self.target = target
        self.start = start
        self.numbers = torch.tensor([math.log(start), 0.0, 0.0, 0.0], device=device)

    def coefficient(self) -> Float[Tensor, ""]:
        return self.numbers[0].exp()

    def see(
        self, l0: Float[Tensor, ""], step: int, steps: int, lr_factor: float, ramp: float, frozen: Float[Tensor, ""]
    ) -> None:
        """Take note of a step's L0 and move the coefficient; nothing where `frozen` is 1.

        step: that were completed before it. steps: of the whole run. lr_factor: of the learning rate, between 0 and 1.
        ramp: of the coefficient, which is left alone until it is 1.
        """
        log_c, smoothed, before, seen = self.numbers.unbind()
        now = l0.float().clamp_min(1e-3).log()
        smoothed = torch.where(seen > 0, smoothed + (now - smoothed) / SMOOTHED, now)
        error = smoothed - math.log(self.target)
        rate, left = error - before, steps - step
        near, far = (error + max(LEAST_NEAR, share * left) * rate for share in (NEAR, self.far))
        expected = torch.where(near * far > 0, near.sign() * torch.minimum(near.abs(), far.abs()), 0.0)
        change = lr_factor / max(LEAST_SLOWNESS, SLOWNESS * steps) * expected.clamp(-LARGEST, LARGEST)
        middle, reach = math.log(self.start), math.log(REACH)
        if ramp == 1.0:
            log_c = torch.where(seen > 0, log_c + change, log_c).clamp(middle - reach, middle + reach)
        moved = torch.stack([log_c, smoothed, error, torch.ones_like(seen)])
        self.numbers = torch.where(frozen > 0, self.numbers, moved)

    def at_bound(self) -> int:
        """-1 and 1 where the coefficient is as small or large as it may become, else 0; waits for the device."""
        off = float(self.numbers[0]) - math.log(self.start)
        return 0 if abs(off) < math.log(REACH) * 0.999 else int(math.copysign(1, off))

    def verdict(self, heldout_l0: float, key: str) -> dict[str, float | bool | str]:
        """What came of it: what was asked for, the coefficient (of the setting `key`), the L0 on held-out tokens,
        whether that is within `TOLERANCE`, and all of it as a sentence."""
        off = heldout_l0 / self.target - 1
        met, coefficient = abs(off) <= TOLERANCE, self.coefficient().item()
        said = f"L0 {heldout_l0:.4g} on held-out tokens with {key} at {coefficient:.4g}, {self.target:g} asked for"
        if not met:
            why = {
                -1: f"{key} has reached the smallest value searched, and the dictionary cannot use more features",
                1: f"{key} has reached the largest value searched",
                0: f"it had not settled by the end: more steps would help, or a {'larger' if off > 0 else 'smaller'} "
                f"{key} to start from",
            }[self.at_bound()]
            said = f"match_l0 was not met within {TOLERANCE:.0%}: {said} ({why})"
        return {"target": self.target, "coefficient": coefficient, "l0": heldout_l0, "met": met, "said": said + "."}
