"""What all contenders have in common: sizes, rows and initial weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BENCHES = ("topk", "relu", "batchtopk", "jumprelu")
LEARNING_RATE = 1e-6
"""Small, so that features stay as dense as they start while the same rows are trained on again and again."""
BANDWIDTH = 0.05
"""Of JumpReLU's straight-through estimator: SAELens's default, on pre-activations of standard deviation 1."""
DEAD_SHARE = 1 / 8
"""Of the features are dead where AuxK is timed."""


@dataclass(frozen=True)
class Setting:
    """Sizes of one comparison."""

    d_in: int = 512
    d_sae: int = 8192
    k: int = 32
    """Features that fire per row: TopK's, and BatchTopK's on average."""
    batch: int = 2048
    l0: int = 64
    """Features that fire per row at most, on average, with ReLU and JumpReLU."""
    aux: bool = False
    """Whether AuxK has dead features to revive."""
    device: str = "cpu"
    autocast: bool = False
    """bf16 autocast for the peers that offer it (SAELens, dictionary_learning)."""

    def small(self) -> Setting:
        """As small as can be: to compile and import whatever is compiled and imported on first use."""
        return replace(self, d_in=64, d_sae=256, batch=64, k=min(self.k, 8), l0=min(self.l0, 8))


@dataclass(frozen=True)
class Start:
    """Rows and weights that every contender copies."""

    setting: Setting
    x: Float[Tensor, "batch d_in"]
    """Standard normal, so that the mean squared norm of a row is d_in."""
    W_dec: Float[Tensor, "d_sae d_in"]
    """Random directions of norm 1; the encoder is their copy, biases are 0."""
    encoder: Float[Tensor, "d_sae d_in"]
    threshold: float
    """Pre-activation that just under `l0` features per row exceed on average: JumpReLU's threshold, and what b_enc
    subtracts from ReLU's pre-activations."""
    dead: Bool[Tensor, " d_sae"] | None
    """Features whose encoder is too small to be chosen, where AuxK is timed."""


@dataclass(frozen=True)
class Contender:
    step: Callable[[], object]
    """One whole training step."""
    l0: Callable[[], float]
    """Features that fire per row in training, on average."""


def make_start(setting: Setting) -> Start:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(setting.batch, setting.d_in, generator=generator)
    W_dec = torch.nn.functional.normalize(torch.randn(setting.d_sae, setting.d_in, generator=generator), dim=-1)
    encoder, dead = W_dec.clone(), None
    if setting.aux:
        dead = torch.arange(setting.d_sae) < int(DEAD_SHARE * setting.d_sae)
        encoder[dead] *= 1e-3
    x, W_dec, encoder = (tensor.to(setting.device) for tensor in (x, W_dec, encoder))
    dead = None if dead is None else dead.to(setting.device)
    return Start(setting, x, W_dec, encoder, density_threshold(x[:2048] @ encoder.T, 0.97 * setting.l0), dead)


def density_threshold(pre: Float[Tensor, "rows d_sae"], l0: float) -> float:
    """What `l0` of the pre-activations of a row exceed on average."""
    count = max(1, round(l0 * pre.shape[0]))
    return pre.flatten().topk(count).values[-1].item()


def mean_active(f: Float[Tensor, "rows d_sae"]) -> float:
    """Entries that are not 0 per row."""
    return f.count_nonzero().item() / f.shape[0]
