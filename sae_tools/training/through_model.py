"""KL through the model: a loss on what a reconstruction does to the model's predictions, for the end of training.

Fine-tuning with it for the last share of the tokens gains most of what end-to-end training does (Karvonen 2025, arXiv
2503.17272; Braun et al. 2024, arXiv 2405.12241). A step of that phase:

- takes `training.kl.contexts` contexts of the training text (by default as many as a batch holds); their rows come
  first in the step's batch, in the place of as many rows of the buffer, so that a step has as many rows as ever and
  every row has its squared error in the loss;
- runs the model once as it is, and for each dictionary once with its reconstruction of those rows spliced in, alone,
  lifted from its space (what the space cannot see is the original's), every other token left as it is. The
  reconstruction is the training step's own, so for BatchTopK that of its batch;
- goes backward from KL(original ‖ spliced), the mean over the predictions made at those rows, to the reconstruction in
  the coordinates of the space. That gradient joins the dictionary's as a `Pull`: its own gradients stay sparse.

The loss is squared error + coefficient · w · KL with w, taken as constant, the ratio of the two in these contexts: both
count the same at coefficient 1, as in Karvonen, and no unit has to be known. Penalties on sparsity are multiplied by
1 + coefficient (`penalty_factor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.activations.buffer import EMPTY_BATCHES
from sae_tools.analysis.corpus import CHARACTERS_PER_TOKEN, SPREAD
from sae_tools.analysis.fidelity import contexts_per_batch
from sae_tools.analysis.splicing import splice
from sae_tools.analysis.subject import kept_positions
from sae_tools.config import JobConfig, KLConfig, RowsConfig
from sae_tools.data.ahead import reads_ahead
from sae_tools.data.stream import ContextStream
from sae_tools.dictionaries.base import Pull
from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.intervene import Prefix, logits_with_edits, run_and_capture
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site, resolve_site
from sae_tools.rows import Contexts, Rows
from sae_tools.seeds import derived_seed
from sae_tools.spaces import Space
from sae_tools.training.schedule import total_steps

TINY = 1e-8
"""Nats; keeps the balance finite where a splice changes nothing."""


def first_kl_step(cfg: JobConfig) -> int:
    """Steps that are completed when KL through the model begins; all of them where it never does."""
    steps = total_steps(cfg.training)
    return steps if cfg.training.kl is None else steps - max(1, round(steps * cfg.training.kl.fraction))


def contexts_per_step(cfg: JobConfig) -> int:
    """In a step with KL; 0 where the job has none."""
    kl, length = cfg.training.kl, cfg.data.context_length - cfg.rows.skip_positions
    return 0 if kl is None else kl.contexts or cfg.training.batch_size // max(1, length)


def penalty_factor(kl: KLConfig) -> float:
    """On coefficients of sparsity while KL is in the loss: fidelity weighs 1 + coefficient times as much then."""
    return 1 + kl.coefficient


class Part(NamedTuple):
    """Some contexts, run through the unedited model."""

    tokens: Int[Tensor, "batch position"]
    kept: Bool[Tensor, "batch position"]
    log_probs: Float[Tensor, "batch position vocab"]
    prefix: Prefix


@dataclass
class RunContexts:
    """The contexts of one step, run through the unedited model: what every dictionary is compared with."""

    model: LanguageModel
    cfg: KLConfig
    parts: list[Part]
    """As few as the bound on a tensor of logits allows."""
    rows: Rows
    """Of the tokens that become rows, in order."""

    def splice(self, site: Site, space: Space, target: Float[Tensor, "rows dim"]) -> Splice:
        """target: what the dictionary is to reconstruct at the step's rows, of which these contexts' are the first."""
        return Splice(self, site, space, target[: len(self.rows)])


class Splice:
    """One dictionary's reconstruction in the place of the activations at a site."""

    def __init__(self, run: RunContexts, site: Site, space: Space, target: Float[Tensor, "rows dim"]):
        self.run, self.site, self.space, self.target = run, site, space, target
        self.kl: Float[Tensor, ""] = target.new_zeros(())
        """Mean KL(original ‖ spliced) in nats; once `gradient` has been called."""

    @property
    def pull(self) -> Pull:
        return Pull(len(self.run.rows), self.gradient)

    def gradient(self, z_hat: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Of coefficient · w · KL with respect to the reconstruction, in the space's coordinates."""
        gradients, kl = [], self.target.new_zeros(())
        n, start = len(self.run.rows), 0
        for part in self.run.parts:
            stop = start + int(part.kept.sum())
            if stop == start:
                continue
            gradient, divergence = self._of(part, z_hat[start:stop], slice(start, stop))
            gradients.append(gradient)
            kl, start = kl + divergence, stop
        self.kl = kl / n
        squared_error = (self.target - z_hat).pow(2).sum() / n
        weight = self.run.cfg.coefficient * squared_error / (self.kl + TINY)
        return torch.cat(gradients).mul_(weight / n)

    def _of(
        self, part: Part, z_hat: Float[Tensor, "some dim"], place: slice
    ) -> tuple[Float[Tensor, "some dim"], Float[Tensor, ""]]:
        """(gradient, value) of the KL summed over the part's predictions."""
        rows = self.run.rows[place]
        with torch.enable_grad():
            z_hat = z_hat.detach().requires_grad_()
            x_hat = self.space.lift(z_hat, rows.scale, rows.position, rows.activations[self.site.name])
            edit = splice(self.site, part.kept, x_hat)
            logits = logits_with_edits(self.run.model, part.tokens, [edit], prefix=part.prefix)
        with torch.no_grad():
            log_q = precise(logits).log_softmax(-1)
            p, q = part.log_probs.exp(), log_q.exp()
            kl = (part.log_probs - log_q).mul_(p).sum(-1)[part.kept].sum()
            at_logits = q.sub_(p).mul_(part.kept.unsqueeze(-1))  # of KL(p ‖ softmax(logits))
        (gradient,) = torch.autograd.grad(logits, z_hat, at_logits.to(logits.dtype))
        return gradient, kl.to(gradient.dtype).to(gradient.device)


class ThroughModel:
    """Serves the contexts of the steps with KL, from the training text in an order of its own."""

    def __init__(
        self,
        model: LanguageModel,
        sites: Sequence[Site],
        rows: RowsConfig,
        cfg: KLConfig,
        stream: ContextStream | None,
        *,
        need_scale: bool,
        device: torch.device,
    ):
        """sites: all that the job's dictionaries read and write. stream: None where contexts are not drawn, but given
        to `run`. device: the dictionaries'."""
        self.model, self.rows, self.cfg, self.stream, self.device = model, rows, cfg, stream, device
        self.sites = list({site.name: site for site in sites}.values())
        self.norm = FinalNorm.of(model) if need_scale else None
        self.final = resolve_site(model, f"resid_post@{model.n_layers - 1}")

    def draw(self) -> RunContexts:
        """The next contexts, run through the model. Raises UserError where many in a row give no rows."""
        assert self.stream is not None
        for _ in range(EMPTY_BATCHES):
            run = self.run(next(self.stream))
            if len(run.rows):
                return run
        raise UserError(f"training.kl: {EMPTY_BATCHES} batches of contexts in a row gave no rows.")

    @torch.no_grad()
    def run(self, contexts: Contexts) -> RunContexts:
        length = contexts.tokens.shape[1]
        at_a_time = contexts_per_batch(self.model, length, contexts.tokens.numel())
        parts, rows = [], []
        for tokens, document in zip(contexts.tokens.split(at_a_time), contexts.document.split(at_a_time), strict=True):
            tokens = tokens.to(self.model.device)
            kept = kept_positions(tokens, self.rows, self.model.special_token_ids)
            wanted = self.sites if self.norm is None else [*self.sites, self.final]
            clean = run_and_capture(self.model, tokens, wanted)
            activations = {site.name: precise(clean.activations[site.name][kept]) for site in self.sites}
            scale = None if self.norm is None else self.norm.scale(clean.activations[self.final.name][kept]).squeeze(-1)
            position = torch.arange(length, device=tokens.device).expand_as(tokens)[kept]
            rows.append(Rows(activations, tokens[kept], position, document.to(tokens.device)[kept], scale))
            parts.append(Part(tokens, kept, precise(clean.logits).log_softmax(-1), clean.prefix))
        return RunContexts(self.model, self.cfg, parts, Rows.concatenate(rows).to(self.device))

    def state_dict(self) -> dict[str, Any]:
        assert self.stream is not None
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.stream is not None
        self.stream.load_state_dict(state)


def precise(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()


def open_through_model(
    cfg: JobConfig, model: LanguageModel, sites: Sequence[Site], device: torch.device
) -> ThroughModel | None:
    """What the job's last steps need, or None where they need nothing. Nothing is read yet."""
    kl = cfg.training.kl
    if kl is None:
        return None
    stream = ContextStream(
        cfg.data.model_copy(update={"shuffle_characters": kl_characters(cfg)}),
        model.tokenizer,
        split="train",
        seed=derived_seed(cfg.seed, "kl"),
        batch=contexts_per_step(cfg),
        bos_token_id=model.bos_token_id,
        vocabulary=model.d_vocab,
        ahead=reads_ahead(model.device),
    )
    need_scale = any(space.ln == "token" for d in cfg.dictionaries.values() for space in d.spaces)
    return ThroughModel(model, sites, cfg.rows, kl, stream, need_scale=need_scale, device=device)


def kl_characters(cfg: JobConfig) -> int:
    """Characters of a block of the text for these contexts: several times what is needed, for them to be mixed."""
    assert cfg.training.kl is not None
    steps = total_steps(cfg.training) - first_kl_step(cfg)
    tokens = steps * contexts_per_step(cfg) * cfg.data.context_length
    return min(cfg.data.shuffle_characters, CHARACTERS_PER_TOKEN * SPREAD * tokens)
