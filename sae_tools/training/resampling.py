"""Neuron resampling within a job: which features are dead, and from which inputs they start again."""

from __future__ import annotations

import torch

from sae_tools.activations.harvest import collect_rows
from sae_tools.config import ReLUConfig
from sae_tools.seeds import derived_seed, generator
from sae_tools.training.job import Job, open_harvester, open_stream
from sae_tools.training.resample import resample_
from sae_tools.training.schedule import l1_factor
from sae_tools.training.trainee import Trainee


@torch.no_grad()
def resample_dead_features(job: Job, trainee: Trainee) -> None:
    """Start again the features of one dictionary that fired in none of the last `resample_dead_steps` steps.

    The inputs they start from are a random subset of the training text: the first `resample_inputs` rows of a pass over
    it in an order of its own, drawn anew at every resampling. What was resampled becomes an event of the density
    history.
    """
    architecture = trainee.cfg.architecture
    assert isinstance(architecture, ReLUConfig)
    dead = trainee.density.dead(job.tokens, architecture.resample_dead_steps * trainee.training.batch_size)
    if not bool(dead.any()):
        return
    names = ("resample", trainee.name, job.step)
    stream = open_stream(job.cfg, job.model, seed=derived_seed(job.cfg.seed, *names))
    rows = collect_rows(stream, open_harvester(job.cfg, job.model, [trainee.site]), architecture.resample_inputs)
    inputs = trainee.rows_in_space(rows.to(job.device))
    l1 = architecture.l1 * l1_factor(job.step, architecture.l1_warmup_steps)
    losses = torch.cat([trainee.dictionary.row_losses(part, l1=l1) for part in inputs.split(4096)])
    done = resample_(trainee.dictionary, trainee.optimiser, dead, inputs, losses, generator(job.cfg.seed, *names))
    trainee.density.event("resampled", done.features, job.tokens)
