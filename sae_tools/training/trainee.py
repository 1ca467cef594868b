"""One dictionary in training: its space, its parameters, its optimiser and what is counted about it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.config import DictionaryConfig, TrainingConfig
from sae_tools.device import selection_precision
from sae_tools.dictionaries import Coefficient, Dictionary, normalise_decoder_
from sae_tools.models.sites import Site
from sae_tools.rows import Rows
from sae_tools.spaces import Space
from sae_tools.tracking.density import DensityCounter
from sae_tools.training.coefficient import CoefficientSearch
from sae_tools.training.schedule import learning_rate_factor
from sae_tools.training.step import Step, clip_divisor, training_step
from sae_tools.training.through_model import RunContexts, penalty_factor


class Trainee:
    """A dictionary and everything that changes while it is trained.

    An update has two halves: `propose` computes gradients and changes nothing; `apply` takes the step unless the job's
    `frozen` flag is set. Between them the loop can see whether anything became non-finite, without asking the device.
    """

    def __init__(
        self,
        name: str,
        site: Site,
        cfg: DictionaryConfig,
        training: TrainingConfig,
        space: Space,
        dictionary: Dictionary,
        variance: Float[Tensor, ""],
        target_space: Space | None = None,
    ):
        """variance: mean squared distance from their mean of the rows that are reconstructed, in their space: the
        denominator of the FVU logged. target_space: of a two-site dictionary, what it reconstructs; None: what it
        reads."""
        self.name = name
        self.site = site
        self.cfg = cfg
        self.training = training
        self.space = space
        self.target_space = target_space
        self.dictionary = dictionary
        dictionary.selection_precision = selection_precision(training.selection, dictionary.b_dec.device)
        self.variance = variance.to(dictionary.b_dec.device)
        self.base_lr = cfg.lr or training.lr
        self.optimiser = torch.optim.Adam(
            dictionary.parameters(), lr=self.base_lr, betas=training.adam_betas, eps=training.adam_eps, fused=True
        )
        self.search = None
        if cfg.match_l0 is not None:
            architecture, device = cfg.architecture, dictionary.b_dec.device
            start, slow = architecture.full_coefficient, architecture.follows_slowly
            self.search = CoefficientSearch(cfg.match_l0, start, slow, device)
        self.density = DensityCounter(cfg.d_sae, device=dictionary.b_dec.device)
        self.sums: dict[str, Tensor] = {}
        """Sums over the steps since the last line of metrics, on the device."""

    @property
    def written(self) -> Space:
        """The coordinates of what it reconstructs, with their site."""
        return self.space if self.target_space is None else self.target_space

    @property
    def sites(self) -> list[Site]:
        """All that it reads and reconstructs."""
        return [self.site] if self.target_space is None else [self.site, self.target_space.site]

    def rows_in_space(self, rows: Rows) -> Float[Tensor, "rows d_in"]:
        return self.space.read(rows)

    def targets(self, rows: Rows) -> Float[Tensor, "rows d_out"] | None:
        """What is to be reconstructed; None: the rows in its space themselves."""
        return None if self.target_space is None else self.target_space.read(rows)

    def coefficient(self, step: int) -> Coefficient:
        """Of the sparsity penalty, for the update that follows `step` completed ones."""
        architecture, search = self.cfg.architecture, self.search
        return architecture.coefficient(step) if search is None else search.coefficient() * architecture.ramp(step)

    def propose(
        self,
        x: Float[Tensor, "rows d_in"],
        step: int,
        contexts: RunContexts | None = None,
        target: Float[Tensor, "rows d_out"] | None = None,
    ) -> Step:
        """Gradients for the update that follows `step` completed ones. x, target: as `rows_in_space` and `targets`.

        contexts: those whose rows are the first of x, where KL through the model is part of the loss.
        """
        dead, tokens, after = None, step * self.training.batch_size, self.cfg.architecture.aux_after_tokens
        if after is not None and tokens >= after:
            dead = self.density.dead(tokens, after)
        l1 = self.coefficient(step)
        if contexts is None:
            return training_step(self.dictionary, x, target=target, dead=dead, l1=l1)
        splice = contexts.splice(self.written.site, self.written, x if target is None else target)
        proposal = training_step(
            self.dictionary, x, target=target, dead=dead, l1=l1 * penalty_factor(contexts.cfg), pull=splice.pull
        )
        return proposal._replace(terms={**proposal.terms, "kl": splice.kl, "kl_steps": torch.ones_like(splice.kl)})

    @torch.no_grad()
    def apply(self, proposal: Step, step: int, steps: int, n_rows: int, frozen: Float[Tensor, ""]) -> None:
        """Clip, step, keep the decoder's rows at norm 1 and count, all of it a no-op where `frozen` is 1.

        The flag stays on the device: Adam takes it as `found_inf`, and the clipping as `grad_scale`, the hooks that
        gradient scaling uses; so neither takes a pass over the gradients of its own.
        """
        for parameter, gradient in zip(self.dictionary.parameters(), proposal.gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimiser.param_groups:
            group["lr"] = self.base_lr * learning_rate_factor(step, steps, self.training)
        clip = self.training.clip_norm
        divisor = None if clip is None else clip_divisor(proposal.norm, clip)
        self.optimiser.grad_scale, self.optimiser.found_inf = divisor, frozen  # type: ignore[attr-defined]
        self.optimiser.step()
        for parameter in self.dictionary.parameters():
            parameter.grad = None
        if self.dictionary.unit_decoder:
            normalise_decoder_(self.dictionary, frozen)
        self.dictionary.after_step_(proposal.terms, frozen)
        more: dict[str, Tensor] = {}
        if self.search is not None:
            more["coefficient"] = self.search.coefficient()
            factor, ramp = learning_rate_factor(step, steps, self.training), self.cfg.architecture.ramp(step)
            self.search.see(proposal.terms["l0"], step, steps, factor, ramp, frozen)
        live = (1 - frozen).long()
        self.density.update(proposal.fired * live, n_rows * live)
        terms = {"steps": torch.ones_like(proposal.loss), "loss": proposal.loss, "gradient_norm": proposal.norm}
        terms |= {**proposal.terms, **more}
        for name, value in terms.items():
            counted = torch.where(frozen > 0, torch.zeros_like(value), value)
            self.sums[name] = self.sums[name] + counted if name in self.sums else counted

    def averages(self) -> dict[str, float]:
        """Means over the steps since the last call, in one transfer; starts a new average."""
        names = list(self.sums)
        if not names:
            return {}
        values = dict(zip(names, torch.stack([self.sums[name].float() for name in names]).tolist(), strict=True))
        self.sums = {}
        steps, kl_steps = values.pop("steps"), values.pop("kl_steps", 0.0)
        kl = values.pop("kl", 0.0)
        result = {name: value / steps for name, value in values.items()}
        if kl_steps:  # they may have begun in between
            result["kl"] = kl / kl_steps
        result["fvu"] = result["squared_error"] / self.variance.item()
        return result

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs beyond the space and the configuration."""
        state = {f"parameter.{name}": p.detach() for name, p in self.dictionary.named_parameters()}
        state |= {f"buffer.{name}": value for name, value in self.dictionary.named_buffers()}
        for name, parameter in self.dictionary.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                state[f"adam.{name}.{key}"] = value
        state |= {f"density.{name}": value for name, value in self.density.state().items()}
        state |= {f"sums.{name}": value for name, value in self.sums.items()}
        state["variance"] = self.variance
        if self.search is not None:
            state["search.numbers"] = self.search.numbers
        return {name: value.contiguous() for name, value in state.items()}

    @torch.no_grad()
    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for name, parameter in self.dictionary.named_parameters():
            parameter.copy_(state[f"parameter.{name}"])
            prefix = f"adam.{name}."
            self.optimiser.state[parameter] = {
                key.removeprefix(prefix): value.to(parameter.device).clone()
                for key, value in state.items()
                if key.startswith(prefix)
            }
            if not self.optimiser.state[parameter]:
                del self.optimiser.state[parameter]
        for name, value in self.dictionary.named_buffers():
            value.copy_(state[f"buffer.{name}"])
        self.density.load_state({k.removeprefix("density."): v for k, v in state.items() if k.startswith("density.")})
        device = self.dictionary.b_dec.device
        self.sums = {k.removeprefix("sums."): v.to(device) for k, v in state.items() if k.startswith("sums.")}
        self.variance = state["variance"].to(device)
        if self.search is not None:
            self.search.numbers = state["search.numbers"].to(device).clone()
