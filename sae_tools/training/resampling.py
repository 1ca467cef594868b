"""Neuron resampling within a job: which features are dead, and from which inputs they start again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.analysis.subject import ENTRIES
from sae_tools.config import ReLUConfig
from sae_tools.seeds import derived_seed, generator
from sae_tools.training.job import Job, rows_in_another_order
from sae_tools.training.resample import draw_rows, restart_features_
from sae_tools.training.schedule import l1_factor
from sae_tools.training.trainee import Trainee


@torch.no_grad()
def resample_dead_features(job: Job, trainee: Trainee) -> None:
    """Start again the features of one dictionary that fired in none of the last `resample_dead_steps` steps.

    The inputs they start from are a random subset of the training text: the first `resample_inputs` rows of a pass over
    it in an order of its own, drawn anew at every resampling. The pass is made twice, once for the losses and once for
    the few inputs drawn, since all of them may not fit in memory. What was resampled becomes an event of the density
    history.
    """
    architecture = trainee.cfg.architecture
    assert isinstance(architecture, ReLUConfig)
    dead = trainee.density.dead(job.tokens, architecture.resample_dead_steps * trainee.training.batch_size)
    count = int(dead.sum())
    if count == 0:
        return
    l1 = architecture.l1 * l1_factor(job.step, architecture.l1_warmup_steps)
    losses, lengths = [], []
    for x in subset(job, trainee):
        losses += [trainee.dictionary.row_losses(part, l1=l1) for part in x.split(max(1, ENTRIES // len(dead)))]
        lengths.append(x.norm(dim=-1))
    random = generator(job.cfg.seed, "resample", trainee.name, job.step)
    drawn = draw_rows(torch.cat(losses), torch.cat(lengths), count, random)
    restart_features_(trainee.dictionary, trainee.optimiser, dead, pick(subset(job, trainee), drawn))
    trainee.density.event("resampled", dead.nonzero().squeeze(1), job.tokens)


def subset(job: Job, trainee: Trainee) -> Iterator[Float[Tensor, "rows d_in"]]:
    """The random subset of the training text, piece by piece, in the trainee's space; the same every time."""
    assert isinstance(trainee.cfg.architecture, ReLUConfig)
    seed = derived_seed(job.cfg.seed, "resample", trainee.name, job.step)
    left = trainee.cfg.architecture.resample_inputs
    for rows in rows_in_another_order(job, trainee.site, seed):
        rows = rows[:left]
        left -= len(rows)
        yield trainee.rows_in_space(rows.to(job.device))
        if left <= 0:
            return


def pick(parts: Iterator[Float[Tensor, "rows d"]], index: Tensor) -> Float[Tensor, "picked d"]:
    """The rows numbered `index`, in that order, of the parts put together."""
    picked: dict[int, Tensor] = {}
    wanted, start = set(index.tolist()), 0
    for part in parts:
        for row in wanted & set(range(start, start + len(part))):
            picked[row] = part[row - start].clone()
        start += len(part)
    return torch.stack([picked[row] for row in index.tolist()])
