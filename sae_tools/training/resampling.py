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
    dead = trainee.density.dead(job.tokens, architecture.dead_window(trainee.training.batch_size))
    count = int(dead.sum())
    if count == 0:
        return
    l1 = trainee.coefficient(job.step)
    losses, lengths = [], []
    for x, y in subset(job, trainee):
        for part, target in zip(*(v.split(max(1, ENTRIES // len(dead))) for v in (x, y)), strict=True):
            losses.append(trainee.dictionary.row_losses(part, target=target, l1=l1))
        lengths.append(torch.minimum(x.norm(dim=-1), y.norm(dim=-1)))
    random = generator(job.cfg.seed, "resample", trainee.name, job.step)
    drawn = draw_rows(torch.cat(losses), torch.cat(lengths), count, random)
    vectors, targets = pick(subset(job, trainee), drawn)
    restart_features_(trainee.dictionary, trainee.optimiser, dead, vectors, targets)
    trainee.density.event("resampled", dead.nonzero().squeeze(1), job.tokens)


def subset(job: Job, trainee: Trainee) -> Iterator[tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]]:
    """(what is read, what is to be reconstructed) on the random subset of the training text, piece by piece, in the
    trainee's spaces; the same every time."""
    assert isinstance(trainee.cfg.architecture, ReLUConfig)
    seed = derived_seed(job.cfg.seed, "resample", trainee.name, job.step)
    left = trainee.cfg.architecture.resample_inputs
    for rows in rows_in_another_order(job, trainee.sites, seed):
        rows = rows[:left]
        left -= len(rows)
        rows = rows.to(job.device)
        x, y = trainee.rows_in_space(rows), trainee.targets(rows)
        yield x, x if y is None else y
        if left <= 0:
            return


def pick(
    parts: Iterator[tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows d_out"]]], index: Tensor
) -> tuple[Float[Tensor, "picked d_in"], Float[Tensor, "picked d_out"]]:
    """The rows numbered `index`, in that order, of the parts put together."""
    picked: dict[int, tuple[Tensor, Tensor]] = {}
    wanted, start = set(index.tolist()), 0
    for x, y in parts:
        for row in wanted & set(range(start, start + len(x))):
            picked[row] = x[row - start].clone(), y[row - start].clone()
        start += len(x)
    chosen = [picked[row] for row in index.tolist()]
    return torch.stack([x for x, _ in chosen]), torch.stack([y for _, y in chosen])
