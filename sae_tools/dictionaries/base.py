"""What all dictionaries share: parameters, pre-activations, decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_tools.dictionaries.sparse import (
    OnAll,
    OnPairs,
    Precision,
    Selection,
    Support,
    dense_gradients,
    preactivations_at,
    squared_norm,
)

Coefficient = float | Float[Tensor, ""]
"""Of a sparsity penalty; one that is searched stays on the device."""


class Codes(NamedTuple):
    """Feature activations, k for each row; entries whose value is 0 do not fire, whatever their index."""

    values: Float[Tensor, "rows k"]
    indices: Int[Tensor, "rows k"]
    """int64, no feature twice in a row, in no particular order."""


class StepOutput(NamedTuple):
    """What one batch of rows says about a dictionary."""

    loss: Float[Tensor, ""]
    """The objective, averaged over rows; differentiable in every parameter."""
    terms: dict[str, Float[Tensor, ""]]
    """Its parts, detached: `squared_error` (summed over dimensions, mean over rows), `l0` (features that fired per
    row), and per architecture `aux`, `l1` or `l0_penalty`, without their coefficient, `gate_error` and
    `smallest_active`."""
    fired: Int[Tensor, " d_sae"]
    """On how many of the rows each feature was > 0, int64."""


class Selected(NamedTuple):
    """What a batch's objective has to look at."""

    active: Selection
    dead: Selection | None
    """For an auxiliary loss: what dead features would do. Entries of -inf stand for no feature."""


class Pull(NamedTuple):
    """A loss that is measured elsewhere (the KL of a model that the reconstruction is spliced into): its gradient."""

    rows: int
    """It depends on the reconstruction of so many rows, the first ones."""
    gradient: Callable[[Float[Tensor, "rows d_out"]], Float[Tensor, "rows d_out"]]
    """Of that loss, with respect to their reconstruction, at that reconstruction (detached); called once."""


class Objective(NamedTuple):
    """An architecture's objective on some rows, before any auxiliary loss; sums, not means."""

    f: Tensor
    """Feature activations, in the shape of the pre-activations."""
    error: Float[Tensor, "rows d_out"]
    """What is to be reconstructed, less its reconstruction."""
    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    """Parts of the loss that it names, without their coefficient, detached."""
    batch: dict[str, Float[Tensor, ""]] = {}
    """Terms that are no sums over rows, of an objective that is only ever asked about the whole batch."""


class Dictionary(nn.Module, ABC):
    """A sparse autoencoder with a pre-encoder bias: pre-activations (x - b_dec) W_enc + b_enc, x̂ = f W_dec + b_dec.

    Two-site dictionaries (transcoders; Dunefsky et al. 2024, arXiv 2406.11944) reconstruct other vectors than they
    read: without `subtract_b_dec` the pre-activations are x W_enc + b_enc, and d_out may differ from d_in. With a skip
    connection (Paulo et al. 2025, arXiv 2501.18823) x̂ = f W_dec + b_dec + x W_skip.

    The encoder is stored as its transpose, `encoder [d_sae, d_in]`, a row for each feature like the decoder, because
    sparse gradients and a feature's own numbers are then contiguous; `W_enc` is a view of it in the field's layout.
    """

    unit_decoder: bool
    """Whether training keeps the decoder's rows at norm 1."""
    selection_precision: Precision = "float32"
    """Of the product that training chooses candidates from, where the architecture chooses (`sparse/select.py`)."""
    aux_coefficient: float = 0.0
    """Of the auxiliary loss."""
    metadata: dict[str, Any]
    """What the file that it was read from says of it; empty for a fresh one."""
    W_skip: nn.Parameter | None
    """[d_in, d_out]; None without a skip connection."""

    def __init__(
        self,
        encoder: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        *,
        subtract_b_dec: bool = True,
        W_skip: Float[Tensor, "d_in d_out"] | None = None,
    ):
        super().__init__()
        if subtract_b_dec and encoder.shape[1] != W_dec.shape[1]:
            raise ValueError(f"b_dec of width {W_dec.shape[1]} cannot be subtracted from rows of {encoder.shape[1]}")
        self.encoder = nn.Parameter(encoder.contiguous())
        self.b_enc = nn.Parameter(b_enc)
        self.W_dec = nn.Parameter(W_dec.contiguous())
        self.b_dec = nn.Parameter(b_dec)
        self.W_skip = None if W_skip is None else nn.Parameter(W_skip.contiguous())
        self.subtract_b_dec = subtract_b_dec
        self.metadata = {}

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.encoder.T

    @property
    def d_in(self) -> int:
        return self.encoder.shape[1]

    @property
    def d_sae(self) -> int:
        return self.encoder.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        """‖d_i‖: a feature's activation times this is what it adds to the reconstruction, in the units of its rows."""
        return self.W_dec.detach().norm(dim=-1)

    def centred(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """What the encoder multiplies."""
        return x - self.b_dec if self.subtract_b_dec else x

    def pre_activations(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        return F.linear(self.centred(x), self.encoder, self.b_enc)

    @abstractmethod
    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Feature activations, dense, >= 0."""

    def decode(
        self, f: Float[Tensor, "rows d_sae"] | Codes, x: Float[Tensor, "rows d_in"] | None = None
    ) -> Float[Tensor, "rows d_out"]:
        """Reconstruction from dense activations or from `Codes`.

        x: what was read, for the skip connection; without it that part is left out.
        """
        if isinstance(f, Codes):
            decoded = F.embedding_bag(f.indices, self.W_dec, per_sample_weights=f.values, mode="sum") + self.b_dec
        else:
            decoded = torch.addmm(self.b_dec, f, self.W_dec)
        return decoded if self.W_skip is None or x is None else torch.addmm(decoded, x, self.W_skip)

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        """The reconstruction."""
        return self.decode(self.encode(x), x)

    @abstractmethod
    def select(self, centred: Float[Tensor, "rows d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Selected | None:
        """Which features the objective has to look at on what the encoder multiplies; None: at all of them."""

    @abstractmethod
    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        """The training objective in terms of the pre-activations z on a support.

        y: what the active features' decoder rows have to add up to, differentiable in b_dec and W_skip.
        """

    def losses(
        self,
        x: Float[Tensor, "rows d_in"],
        *,
        target: Float[Tensor, "rows d_out"] | None = None,
        dead: Bool[Tensor, " d_sae"] | None = None,
        l1: Coefficient = 0.0,
        pull: Float[Tensor, "rows d_out"] | Pull | None = None,
    ) -> StepOutput:
        """The training objective on the rows `x`: a pure function of parameters and arguments.

        target: what is to be reconstructed; None: x.
        pull: the gradient, with respect to the reconstruction, of a loss that is measured elsewhere (the KL of a model
        that it is spliced into), or what gives it at the reconstruction of this very step: added to the gradients, and
        not to the value.
        dead: features that count as dead, for an auxiliary loss; None: there are none.
        l1: coefficient of the sparsity penalty at this step.
        Arguments that an architecture has no use for are ignored. Nothing is synchronised with an accelerator.
        """
        target = x if target is None else target
        centred = self.centred(x).detach()
        selected = self.select(centred, dead if self.aux_coefficient > 0 else None)
        if selected is None:
            return self._losses_on_all(x, l1, target, pull)
        on = OnPairs(selected.active.pairs)
        found = self.objective(
            self._differentiable(selected.active, centred), on, self._left_for_features(x, target), l1
        )
        if isinstance(pull, Pull):
            pull = _gradient_of(pull, target - found.error.detach())
        found = _pulled(found, pull, len(x))
        loss, terms = found.loss / len(x), self._terms(found, len(x)) | found.batch
        if self.aux_coefficient > 0:
            terms["aux"] = aux = torch.zeros_like(loss)
            if selected.dead is not None and dead is not None:
                aux = self._auxiliary_loss(selected.dead, centred, found.error.detach())
                aux = torch.where(dead.any(), aux, 0.0)  # with fixed shapes there may be none
                terms["aux"] = aux.detach()
            loss = loss + self.aux_coefficient * aux
        return _step_output(loss, terms, on.fired(found.f), len(x))

    def _left_for_features(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"]) -> Tensor:
        left = target - self.b_dec
        return left if self.W_skip is None else left - x @ self.W_skip

    def _losses_on_all(
        self,
        x: Float[Tensor, "rows d_in"],
        l1: Coefficient,
        target: Float[Tensor, "rows d_out"] | None = None,
        pull: Float[Tensor, "rows d_out"] | Pull | None = None,
    ) -> StepOutput:
        target = x if target is None else target
        if isinstance(pull, Pull):  # the objective below sees some rows at a time
            with torch.no_grad():
                pull = _gradient_of(pull, self(x[: pull.rows]), len(x))
        pulled = pull

        def objective(z: Tensor, part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            found = self.objective(z, OnAll(), self._left_for_features(x[part], target[part]), l1)
            found = _pulled(found, None if pulled is None else pulled[part], len(x))
            return found.loss / len(x), {**self._terms(found, len(x)), "fired": OnAll().fired(found.f)}

        first = (self.encoder, self.b_enc, self.b_dec)
        others = [p for p in self.parameters() if not any(p is known for known in first)]
        loss, terms = dense_gradients(objective, x, *first, others, subtract_b_dec=self.subtract_b_dec)
        return _step_output(loss, terms, terms.pop("fired"), len(x))

    def _differentiable(self, selection: Selection, centred: Float[Tensor, "rows d_in"]) -> Float[Tensor, " pairs"]:
        parameters = (self.encoder, self.b_enc, self.b_dec if self.subtract_b_dec else None)
        return preactivations_at(selection.values, centred, *parameters, selection.pairs)

    def _terms(self, found: Objective, rows: int) -> dict[str, Tensor]:
        error = {"squared_error": squared_norm(found.error.detach())}
        return {name: value / rows for name, value in {**error, **found.terms}.items()}

    def _auxiliary_loss(
        self, dead: Selection, centred: Float[Tensor, "rows d_in"], error: Float[Tensor, "rows d_out"]
    ) -> Float[Tensor, ""]:
        """‖e - ê‖², mean over rows: what dead features, through the decoder without its bias, make of the error e."""
        f = self._differentiable(dead, centred).relu()
        return (error - OnPairs(dead.pairs).decode(f, self.W_dec)).pow(2).sum() / len(error)

    def after_step_(self, terms: dict[str, Float[Tensor, ""]], frozen: Float[Tensor, ""]) -> None:
        """What an architecture changes of itself once the optimiser has taken a step; nothing where `frozen` is 1.

        terms: of the step, as `losses` gave them. Nothing is synchronised with an accelerator.
        """

    @torch.no_grad()
    def row_losses(
        self,
        x: Float[Tensor, "rows d_in"],
        *,
        target: Float[Tensor, "rows d_out"] | None = None,
        l1: Coefficient = 0.0,
    ) -> Float[Tensor, " rows"]:
        """The objective of each row alone (auxiliary loss left out), without gradients."""
        return self._row_losses(x, x if target is None else target, l1)

    def _row_losses(self, x: Tensor, target: Tensor, l1: Coefficient) -> Float[Tensor, " rows"]:
        f = self.encode(x)
        return (target - self.decode(f, x)).pow(2).sum(-1) + l1 * self.row_penalties(f)

    def row_penalties(self, f: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " rows"]:
        """The sparsity penalty of each row, without its coefficient; 0 where an architecture has none."""
        return f.new_zeros(len(f))


def _gradient_of(
    pull: Pull, reconstruction: Float[Tensor, "some d_out"], rows: int | None = None
) -> Float[Tensor, "rows d_out"]:
    """Of all rows: zero where nothing depends on a row."""
    gradient = pull.gradient(reconstruction[: pull.rows])
    return F.pad(gradient, (0, 0, 0, (len(reconstruction) if rows is None else rows) - pull.rows))


def _pulled(found: Objective, pull: Float[Tensor, "rows d_out"] | None, rows: int) -> Objective:
    """With `pull` among the gradients with respect to the reconstruction, once the loss is divided by `rows`."""
    if pull is None:
        return found
    linear = -rows * (pull * found.error).sum()
    return found._replace(loss=found.loss + linear - linear.detach())


def _step_output(loss: Tensor, terms: dict[str, Tensor], fired: Tensor, rows: int) -> StepOutput:
    return StepOutput(loss, {**terms, "l0": fired.sum() / rows}, fired)
