"""Training on rows that are given as tensors or arrays, with the machinery of jobs and nothing written to disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from sae_tools.config import DictionaryConfig, TrainingConfig, WritesConfig
from sae_tools.config_architectures import Architecture
from sae_tools.device import pick_device
from sae_tools.dictionaries import Dictionary, build_dictionary
from sae_tools.dictionaries.build import Target
from sae_tools.dictionaries.formats.folding import without_subtraction
from sae_tools.dictionaries.formats.parts import SCALED, put_together, rescaled, take_apart, unit_scaling
from sae_tools.errors import UserError
from sae_tools.models.sites import Site
from sae_tools.rows import Rows
from sae_tools.seeds import generator
from sae_tools.spaces import Space
from sae_tools.tracking.progress import TokenProgress
from sae_tools.training.coefficient import TOLERANCE
from sae_tools.training.guard import Guard, NonFiniteError
from sae_tools.training.in_memory_settings import READ, WRITTEN, Kind, as_in_a_job, validated
from sae_tools.training.loop import step_all
from sae_tools.training.rebatch import Batch, Rebatched, Source
from sae_tools.training.schedule import learning_rate_factor, total_steps
from sae_tools.training.trainee import Trainee


class Trained(NamedTuple):
    """What came of `train`."""

    dictionary: Dictionary
    """On the rows as they were given, on the CPU; of a unit-norm architecture a feature's activation is how much of its
    decoder row the reconstruction has."""
    metrics: list[dict[str, float]]
    """A record every `log_every` steps, means since the one before: `step`, `tokens`, `loss`, `squared_error`, `l0`,
    `fvu` (squared error / variance of the first rows), `gradient_norm`, `dead`, `lr`, and the architecture's own. Loss
    and error are those of rows in the unit of training."""
    tokens: int
    """Rows trained on: fewer than asked for where the rows ran out."""


def train(
    what: Kind | Architecture | DictionaryConfig | Dictionary,
    rows: Source,
    *,
    d_sae: int | None = None,
    tokens: int | None = None,
    batch_size: int = 2048,
    lr: float = 3e-4,
    warmup_steps: int | None = None,
    decay_fraction: float = 0.2,
    clip_norm: float | None = 1.0,
    seed: int = 0,
    rescale: bool = True,
    estimate_rows: int = 32_768,
    b_dec_init: Literal["zero", "mean", "geometric_median"] = "geometric_median",
    encoder_init: Literal["tied", "kaiming"] = "tied",
    skip: bool = False,
    match_l0: float | None = None,
    device: str = "cpu",
    log_every: int = 50,
    progress: bool = False,
    on_record: Callable[[dict[str, float]], None] = lambda record: None,
    **settings: Any,
) -> Trained:
    """Train a dictionary on rows of one's own, steps and losses being those of `sae-train`.

        trained = train("topk", activations, d_sae=4096, k=32, tokens=2_000_000)
        trained.dictionary.encode(activations), trained.metrics[-1]["fvu"]

    what: an architecture's name, with its settings as further keywords (`k=32`, `l1=2.0`; all of them are those of
        `architecture` in a configuration); its configuration; a `DictionaryConfig`, of which site and space do not
        matter here; or a dictionary, from whose weights training goes on in a copy (settings it has no word for, such
        as `l1`, are further keywords; a skip connection, sizes and initial biases are its own). Where training keeps
        decoder rows at norm 1, other norms are folded into the encoder first, which leaves the function of features
        that decide for themselves as it was; `topk`, `batchtopk` and `matryoshka` then choose by activation times
        norm, and no longer the features that a dictionary with free norms (`decoder_norms`) chose.
    rows: a tensor or numpy array [rows, d_in]; a pair (x, target) of them for a dictionary that predicts other vectors
        than it reads (a transcoder, with a skip connection if `skip`); or any iterable of these, of any numbers of rows
        (`Rebatched`). A tensor or array is shuffled anew in every pass. An iterable is taken in its own order: shuffle
        it, since neighbouring tokens are alike; what it gives must stay as it was given (no buffer filled again).
    tokens: rows to train on, rounded up to whole batches; None: all of a tensor or array once.
    lr, warmup_steps, decay_fraction, clip_norm: as `training` in a configuration; warmup_steps None: a tenth of the
        steps, at most 100.
    match_l0: features per row that the sparsity coefficient is searched for, as in a job; `coefficient` and `l0` of the
        metrics say what came of it, and a warning that it is off by more than 5 %.
    rescale: train on rows divided by one number, estimated on the first `estimate_rows` of them (targets by one of
        their own), so that the mean squared norm is the dimension; learning rates and sparsity coefficients then mean
        the same for any rows, as in a job. It is folded into the dictionary at the end.
    progress: show a bar. on_record: called with every record of the metrics.

    Raises UserError for settings and rows that make no sense, NonFiniteError for a row, loss or gradient that is not
    finite.
    """
    for name, value in (("batch_size", batch_size), ("log_every", log_every)):
        if value < 1:
            raise UserError(f"{name} is {value}, and must be at least 1.")
    target_device = pick_device(device)
    source = Rebatched(rows, batch_size, target_device, seed)
    tokens = source.rows if tokens is None else tokens
    if source.rows == 0:
        raise UserError("there are no rows.")
    if tokens is None:
        raise UserError("tokens is missing: of rows that come from an iterable it says how many to train on.")
    given = what if isinstance(what, Dictionary) else None
    cfg = as_in_a_job(what, settings, d_sae, b_dec_init, encoder_init, skip, match_l0)
    training = validated(
        TrainingConfig,
        tokens=tokens,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=min(100, tokens // batch_size // 10) if warmup_steps is None else warmup_steps,
        decay_fraction=decay_fraction,
        clip_norm=clip_norm,
        estimate_rows=estimate_rows,
    )
    trainee = _trainee(cfg, training, given, source.peek(training.estimate_rows), seed, rescale)
    steps, step, metrics = total_steps(training), 0, []
    guard = Guard(1, trainee.dictionary.b_dec.device)

    def record() -> None:
        _stop_if_not_finite(guard)
        metrics.append(_record(trainee, step, steps))
        on_record(metrics[-1])

    with ExitStack() as stack:
        bar = stack.enter_context(TokenProgress(steps * batch_size, 0, Console(stderr=True))) if progress else None
        for batch in source:
            guard.before(step, {})
            step_all([trainee], _rows(batch), step, steps, guard)
            step += 1
            if step % log_every == 0 or step == steps:
                record()
            if bar is not None:
                bar.update(step * batch_size)
            if step == steps:
                break
    if step == 0:
        raise UserError(f"the rows are fewer than the {batch_size:,} of one batch (batch_size), so nothing is trained.")
    if step < steps:
        if step % log_every:
            record()
        warnings.warn(f"the rows ran out after {step * batch_size:,} of {steps * batch_size:,}", stacklevel=2)
    if trainee.search is not None and abs((l0 := trainee.search.trained_l0()) / trainee.search.target - 1) > TOLERANCE:
        asked = f"{trainee.search.target:g} were asked for (match_l0)"
        warnings.warn(f"{l0:.4g} features fire per row of late, and {asked}: more rows would help", stacklevel=2)
    scale = None if trainee.target_space is None else trainee.target_space.scale
    dictionary = in_other_units(trainee.dictionary, trainee.space.scale, scale).requires_grad_(True)
    dictionary.metadata = {} if given is None else dict(given.metadata)
    return Trained(dictionary, metrics, step * batch_size)


@torch.no_grad()
def in_other_units(dictionary: Dictionary, x: float, y: float | None = None) -> Dictionary:
    """The same dictionary for rows that are `x` times those it knows, and targets `y` times theirs (None: x), on the
    CPU; activations are `y` times what they were, decoder rows stay."""
    y = x if y is None else y
    parts = take_apart(dictionary)
    settings = {
        name: value * y if name in ("threshold", "bandwidth") else value for name, value in parts.settings.items()
    }
    changed = replace(
        parts,
        encoder=parts.encoder * (y / x),
        b_enc=parts.b_enc * y,
        b_dec=parts.b_dec * y,
        features={name: t * y if name in SCALED else t for name, t in parts.features.items()},
        settings=settings,
        W_skip=None if parts.W_skip is None else parts.W_skip * (y / x),
    )
    return put_together(replace(changed, W_dec=parts.W_dec.clone())).cpu()


def _trainee(
    cfg: DictionaryConfig, training: TrainingConfig, given: Dictionary | None, sample: Batch, seed: int, rescale: bool
) -> Trainee:
    space = _space(READ, sample.x, rescale)
    z, target_space, target = space.read(_rows(sample)), None, None
    if sample.y is not None:
        target_space = _space(WRITTEN, sample.y, rescale)
        target = Target(target_space.dim, target_space.read(_rows(sample)), target_space.project)
        if cfg.writes is None:
            cfg = cfg.model_copy(update={"writes": WritesConfig(site=WRITTEN)})
    elif cfg.writes is not None or (given is not None and given.d_in != given.d_out):
        raise UserError("rows must be pairs (x, target) for a dictionary that writes elsewhere than it reads.")
    if given is None:
        dictionary = build_dictionary(
            cfg, space.dim, generator(seed, "dictionary", READ), z, project=space.project, target=target
        )
    else:
        wanted = (space.dim, space.dim if target is None else target.dim)
        if (given.d_in, given.d_out) != wanted:
            raise UserError(
                f"the dictionary reads {given.d_in} dimensions and writes {given.d_out}, and the rows have {wanted[0]} "
                f"and {wanted[1]}."
            )
        dictionary = _copy(given, cfg, space, target_space)
    device = sample.x.device
    written = z if target is None or target.sample is None else target.sample
    variance = written.var(0, correction=0).sum()
    if not float(variance) > 0:
        raise UserError(f"the {READ if target is None else WRITTEN} are all equal, so there is nothing to learn.")
    site = space.site
    return Trainee(READ, site, cfg, training, space, dictionary.to(device), variance, target_space)


def _copy(given: Dictionary, cfg: DictionaryConfig, space: Space, target_space: Space | None) -> Dictionary:
    """In the unit of training, decoder rows of norm 1 where training keeps them so, and the settings of `cfg`."""
    parts = take_apart(given)
    if target_space is not None:  # what is read and what is written get units of their own
        parts = without_subtraction(parts)
    own = {name: getattr(cfg.architecture, name) for name in parts.settings if hasattr(cfg.architecture, name)}
    settings = {**parts.settings, **{name: value for name, value in own.items() if value is not None}}
    parts = replace(parts, settings=settings)
    if put_together(parts).unit_decoder:
        parts = rescaled(parts, unit_scaling(parts.W_dec))
    scale = None if target_space is None else 1 / target_space.scale
    return in_other_units(put_together(parts), 1 / space.scale, scale)


def _space(name: str, x: Tensor, rescale: bool) -> Space:
    """The rows divided by one number."""
    d = x.shape[1]
    squared = float(x.double().pow(2).sum(1).mean())
    if not squared > 0 or squared == float("inf"):
        raise UserError(f"the {name} are all zero or not finite, so there is nothing to learn from them.")
    zeros = torch.zeros(d, device=x.device)
    scale = (squared / d) ** 0.5 if rescale else 1.0
    return Space("resid", Site("hook", 0, name, d), d, d, "none", scale, zeros, x.mean(0))


def _rows(batch: Batch) -> Rows:
    nothing = torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device)
    activations = {READ: batch.x} if batch.y is None else {READ: batch.x, WRITTEN: batch.y}
    return Rows(activations, nothing, nothing, nothing)


def _stop_if_not_finite(guard: Guard) -> None:
    if (bad := guard.look()) is not None:
        what = "the rows" if bad[3] else "the loss or its gradient"
        raise NonFiniteError(f"{what} became non-finite at step {bad[0] + 1}.")


def _record(trainee: Trainee, step: int, steps: int) -> dict[str, float]:
    tokens = step * trainee.training.batch_size
    window = min(tokens, trainee.cfg.architecture.dead_window(trainee.training.batch_size))
    return {
        "step": step,
        "tokens": tokens,
        **trainee.averages(),
        "dead": int(trainee.density.dead(tokens, window).sum()),
        "lr": trainee.base_lr * learning_rate_factor(step - 1, steps, trainee.training),
    }
