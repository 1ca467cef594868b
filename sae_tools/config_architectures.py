"""The architectures of dictionaries: their settings, and what training asks of any of them.

Nothing here imports torch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from sae_tools.config_section import Section


class Architecture(Section):
    """What training asks of any architecture."""

    kind: Any
    """Its name, the first of its settings."""
    coefficient_key: ClassVar[str | None] = None
    """The setting that is the coefficient of the sparsity penalty; None where there is no penalty."""
    ramp_key: ClassVar[str | None] = None
    """The setting that says over how many steps it rises from 0."""
    follows_slowly: ClassVar[bool] = False
    """Whether L0 follows that coefficient at a speed of its own."""
    dead_key: ClassVar[str] = "dead_after_tokens"
    """The setting that says after how many tokens without a firing a feature counts as dead in the metrics (of ReLU,
    whose papers count steps, `dead_window` does)."""

    @property
    def full_coefficient(self) -> float:
        """Of the sparsity penalty, once it has risen."""
        return 0.0 if self.coefficient_key is None else getattr(self, self.coefficient_key)

    def ramp(self, step: int) -> float:
        """The share of it that holds for the update that follows `step` completed ones."""
        steps = 0 if self.ramp_key is None else getattr(self, self.ramp_key)
        return 1.0 if steps == 0 else min(1.0, step / steps)

    def coefficient(self, step: int) -> float:
        """Of the sparsity penalty, for the update that follows `step` completed ones."""
        return self.full_coefficient * self.ramp(step)

    @property
    def aux_after_tokens(self) -> int | None:
        """Tokens without a firing after which a feature takes part in an auxiliary loss; None where there is none."""
        return None

    def dead_window(self, batch_size: int) -> int:
        """Tokens without a firing after which a feature counts as dead in the metrics."""
        return getattr(self, self.dead_key)

    def resamples_after(self, step: int) -> bool:
        """Whether dead features start again once `step` steps are completed."""
        return False


class Competing(Architecture):
    """Features compete by their pre-activations, and an auxiliary loss revives those that never win."""

    k: int = Field(default=32, ge=1)
    """Features that fire per row (of BatchTopK on average over a batch)."""
    aux_k: int | None = Field(default=None, ge=1)
    """Dead features that reconstruct the error in the auxiliary loss; null: half of the dictionary's input width."""
    aux_coefficient: float = Field(default=1 / 32, ge=0)
    dead_after_tokens: int = Field(default=1_000_000, ge=1)
    """A feature that fired on none of this many tokens counts as dead for AuxK."""

    @property
    def aux_after_tokens(self) -> int | None:
        return self.dead_after_tokens if self.aux_coefficient > 0 else None


class TopKConfig(Competing):
    """The k largest pre-activations, then ReLU (Gao et al. 2024, arXiv 2406.04093)."""

    kind: Literal["topk"] = "topk"


class BatchTopKConfig(Competing):
    """The k largest pre-activations per row on average, over the whole batch (Bussmann et al. 2024, arXiv 2412.06410).
    After training a feature fires above one threshold, the average of the smallest activation that batches kept."""

    kind: Literal["batchtopk"] = "batchtopk"
    threshold_rate: float = Field(default=0.05, gt=0, le=1)
    """How far each batch moves the threshold towards the smallest activation that it kept. That one is a quantile of
    many and hardly differs between batches, but falls while a dictionary learns: a slow average would lag behind it,
    and fewer than k features fire after a short run."""


class MatryoshkaConfig(BatchTopKConfig):
    """BatchTopK whose first features are dictionaries of their own: the loss is the mean of the squared errors of the
    first `widths[0]` features' reconstruction, the first `widths[1]` ones', …, and all of them (Bussmann et al. 2025,
    arXiv 2503.17547). General features gather among the first, special ones among the last."""

    kind: Literal["matryoshka"] = "matryoshka"  # type: ignore[assignment]
    widths: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Features of the nested dictionaries, ascending; the last is d_sae. null: a sixteenth, an eighth, a quarter, half
    and all of d_sae."""

    @field_validator("widths")
    @classmethod
    def _nested(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and any(a >= b for a, b in pairwise(value)):
            raise ValueError(f"the widths must ascend, and {value} do not")
        return value

    def widths_of(self, d_sae: int) -> list[int]:
        if self.widths is not None:
            return self.widths
        return sorted({max(1, d_sae // part) for part in (16, 8, 4, 2, 1)})


class ReLUConfig(Architecture):
    """ReLU with an L1 penalty. Loss: squared error summed over dimensions and l1 summed over features, both averaged
    over tokens."""

    kind: Literal["relu"] = "relu"
    form: Literal["unit-norm", "decoder-norm"] = "unit-norm"
    """`unit-norm`: decoder rows kept at norm 1, the parallel part of their gradient removed before the step ('Towards
    Monosemanticity', 2023); `decoder-norm`: free decoder, penalty weighted by its row norms (Anthropic, April 2024)."""
    l1: float = Field(default=1.0, ge=0)
    """Penalty per unit of activation, on rows whose mean squared norm is their dimension."""
    l1_warmup_steps: int = Field(default=0, ge=0)
    resample_at: list[Annotated[int, Field(ge=1)]] = []
    """Steps after which dead features are resampled ('Towards Monosemanticity', appendix)."""
    resample_dead_steps: int = Field(default=12_500, ge=1)
    """Dead, for resampling: fired on none of this many preceding steps."""
    resample_inputs: int = Field(default=819_200, ge=1, le=2**24)
    """Rows whose loss decides which inputs the resampled features start from."""
    coefficient_key: ClassVar = "l1"
    ramp_key: ClassVar = "l1_warmup_steps"

    def dead_window(self, batch_size: int) -> int:
        return self.resample_dead_steps * batch_size

    def resamples_after(self, step: int) -> bool:
        return step in self.resample_at


class GatedConfig(Architecture):
    """A gate says whether a feature fires, and another scale and bias of the same direction how strongly, so that the
    L1 penalty, which is on the gate alone, does not shrink activations (Rajamanoharan et al. 2024, arXiv 2404.16014).
    Loss: squared error, l1 times the sum of the gate's positive pre-activations, and the squared error of the
    reconstruction that these make through the decoder taken as constant; averaged over tokens."""

    kind: Literal["gated"] = "gated"
    form: Literal["unit-norm", "decoder-norm"] = "unit-norm"
    """`unit-norm`: decoder rows kept at norm 1; `decoder-norm`: free decoder, penalty weighted by its row norms."""
    l1: float = Field(default=1.0, ge=0)
    """Penalty per unit of the gate, on rows whose mean squared norm is their dimension."""
    l1_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the penalty rises linearly from 0."""
    dead_after_tokens: int = Field(default=1_000_000, ge=1)
    """A feature that fired on none of this many tokens counts as dead in the metrics."""
    coefficient_key: ClassVar = "l1"
    ramp_key: ClassVar = "l1_warmup_steps"


class JumpReLUConfig(Architecture):
    """A feature fires above a threshold of its own, which is learned by a straight-through estimator (Rajamanoharan et
    al. 2024, arXiv 2407.14435). Loss: squared error summed over dimensions and l0_coefficient times the penalty, both
    averaged over tokens; decoder rows kept at norm 1. Names and penalties are SAELens's."""

    kind: Literal["jumprelu"] = "jumprelu"
    penalty: Literal["step", "quadratic"] = "step"
    """`step`: L0, the number of features that fire on a token; `quadratic`: 2 (L0 - target_l0)² / target_l0."""
    l0_coefficient: float = Field(default=1.0, ge=0)
    """Of the penalty, on rows whose mean squared norm is their dimension."""
    l0_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the coefficient rises linearly from 0."""
    target_l0: float | None = Field(default=None, gt=0)
    """Features per token that the quadratic penalty asks for."""
    init_threshold: float = Field(default=0.25, ge=0)
    """Of every feature; each moves by about the learning rate per step from there. On rows whose mean squared norm is
    their dimension, 1 is about a standard deviation of the first pre-activations: from there a third of the features
    may never fire, while near 0 most are active for hundreds of steps, which is slow."""
    bandwidth: float = Field(default=0.05, gt=0)
    """Width of the window around a threshold in which pre-activations tell which way to move it."""
    dead_after_tokens: int = Field(default=1_000_000, ge=1)
    """A feature that fired on none of this many tokens counts as dead in the metrics."""
    coefficient_key: ClassVar = "l0_coefficient"
    ramp_key: ClassVar = "l0_warmup_steps"
    follows_slowly: ClassVar = True


def _architecture_kind(v: Any) -> str:
    return v.get("kind", "topk") if isinstance(v, dict) else getattr(v, "kind", "topk")


ArchitectureConfig = Annotated[
    Annotated[TopKConfig, Tag("topk")]
    | Annotated[BatchTopKConfig, Tag("batchtopk")]
    | Annotated[MatryoshkaConfig, Tag("matryoshka")]
    | Annotated[ReLUConfig, Tag("relu")]
    | Annotated[GatedConfig, Tag("gated")]
    | Annotated[JumpReLUConfig, Tag("jumprelu")],
    Discriminator(_architecture_kind),
]
