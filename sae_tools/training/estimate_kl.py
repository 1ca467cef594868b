"""What KL through the model costs a job's last steps, for `sae-train --dry-run`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sae_tools.activations.harvest import Harvester
from sae_tools.allocations import peak_of
from sae_tools.analysis.fidelity import contexts_per_batch
from sae_tools.config import JobConfig
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site
from sae_tools.spaces import Space
from sae_tools.training.estimate_memory import MoreBytes, random_contexts, text_bytes
from sae_tools.training.schedule import total_steps
from sae_tools.training.sites import Sites, all_sites
from sae_tools.training.through_model import (
    RunContexts,
    Splice,
    ThroughModel,
    contexts_per_step,
    first_kl_step,
    kl_characters,
)
from sae_tools.training.timing import seconds_of


class KLCost(NamedTuple):
    steps: int
    """That have it."""
    seconds: float
    """Of such a step, beyond what every step takes."""
    memory: MoreBytes


def kl_cost(cfg: JobConfig, model: LanguageModel, sites: dict[str, Sites], harvester: Harvester) -> KLCost | None:
    """Timed on random tokens and as if reconstructions were perfect; None where the job has none of it."""
    kl = cfg.training.kl
    if kl is None:
        return None
    written = [each.written for each in sites.values()]
    through = ThroughModel(
        model, all_sites(sites.values()), cfg.rows, kl, None, need_scale=harvester.need_scale, device=model.device
    )
    contexts = random_contexts(cfg, model, contexts_per_step(cfg))
    run = through.run(contexts)
    seconds = seconds_of(lambda: through.run(contexts), model.device)
    by_site = {site.name: seconds_of(lambda site=site: gradient(run, site), model.device) for site in written}
    seconds += sum(by_site[site.name] for site in written)
    return KLCost(total_steps(cfg.training) - first_kl_step(cfg), seconds, _memory(cfg, model, through, written))


def gradient(run: RunContexts, site: Site) -> Tensor:
    """Of one dictionary's splice at the site."""
    zeros = torch.zeros(site.width, device=run.rows.tokens.device)
    space = Space("resid", site, site.width, site.width, "none", 1.0, zeros, zeros)
    z = space.read(run.rows)
    return Splice(run, site, space, z).gradient(z)


def _memory(cfg: JobConfig, model: LanguageModel, through: ThroughModel, written: list[Site]) -> MoreBytes:
    contexts, length = contexts_per_step(cfg), cfg.data.context_length
    one = random_contexts(cfg, model, 1)
    run = through.run(one)
    at_a_time = min(contexts, contexts_per_batch(model, length, contexts * length))
    running = contexts * peak_of(lambda: through.run(one))
    splicing = at_a_time * max(peak_of(lambda site=site: gradient(run, site)) for site in written)
    text = text_bytes(cfg.data, kl_characters(cfg))
    rows = cfg.training.batch_size * (sum(site.width for site in through.sites) * 4 + 32)
    return MoreBytes(text.read, text.kept, running + splicing + rows)
