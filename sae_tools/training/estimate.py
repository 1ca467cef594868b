"""What a job will cost, before it is run: parameters, memory, FLOPs per token and time (`sae-train --dry-run`)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from rich.console import Group
from rich.table import Table

from sae_tools.activations.harvest import Harvester
from sae_tools.activations.store_reader import StoreReader
from sae_tools.config import (
    BatchTopKConfig,
    DictionaryConfig,
    GatedConfig,
    JobConfig,
    JumpReLUConfig,
    ReLUConfig,
    TopKConfig,
)
from sae_tools.memory import available_bytes, resident_bytes
from sae_tools.models.load import LanguageModel
from sae_tools.models.parameters import memory_bytes, parameter_count
from sae_tools.seeds import generator
from sae_tools.spaces import Space
from sae_tools.training.estimate_kl import KLCost, kl_cost
from sae_tools.training.estimate_memory import (
    MoreBytes,
    Trained,
    phases,
    random_contexts,
    settled_bytes,
    small_dictionary,
    trained,
)
from sae_tools.training.fine_tune import read_initials
from sae_tools.training.from_store import open_reader, open_store
from sae_tools.training.job import open_harvester, open_model, open_stream, row_bytes
from sae_tools.training.schedule import total_steps
from sae_tools.training.sites import Sites, all_sites
from sae_tools.training.timing import seconds_of
from sae_tools.training.trainee import Trainee

PROBE_FEATURES = (1024, 4096)
"""Numbers of features that a step is timed at where one at the real size would take too long."""
PROBE_ROWS = 1024
LONG_STEP = 2.0
"""Seconds."""
SPARSE_BIAS = -2.0
"""b_enc of a timed ReLU, Gated or JumpReLU dictionary, with which 2 % of features fire on rows of unit variance: that
is how it is for most of training, if not in the beginning."""


@dataclass(frozen=True)
class DictionaryCost:
    parameters: int
    flops_per_token: float
    """Of one training step, forward and backward."""
    state_bytes: int
    """Weights, Adam's two moments, and gradients."""
    step_bytes: int
    """What a step holds at its peak beyond that."""
    seconds_per_token: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a job. Memory in bytes; time on this machine, from a few steps on random tokens."""

    model_parameters: int
    model_bytes: int
    harvest_flops_per_token: float
    harvest_seconds_per_token: float
    buffer_bytes: int
    dictionaries: dict[str, DictionaryCost]
    tokens: int
    loading_bytes: int
    """The most that loading the model took, all in all."""
    settled_bytes: int
    """Interpreter, libraries and model."""
    phases: dict[str, int]
    """By what the job does in it: memory beyond that."""
    kl: KLCost | None = None

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process has at a time (on an accelerator: both together)."""
        return max(self.loading_bytes, self.settled_bytes + max(self.phases.values()))

    @property
    def seconds(self) -> float:
        per_token = self.harvest_seconds_per_token + sum(d.seconds_per_token for d in self.dictionaries.values())
        return self.tokens * per_token + (0 if self.kl is None else self.kl.steps * self.kl.seconds)

    def render(self) -> Group:
        table = Table(pad_edge=False)
        for heading in ("", "parameters", "FLOPs / token", "memory", "tokens / s"):
            table.add_column(heading, justify="left" if not heading else "right")
        table.add_row(
            "language model (harvest)" if self.harvest_flops_per_token else "rows from the store",
            f"{self.model_parameters:,}",
            quantity(self.harvest_flops_per_token),
            size(self.model_bytes),
            rate(self.harvest_seconds_per_token),
        )
        for name, d in self.dictionaries.items():
            memory = size(d.state_bytes + d.step_bytes)
            table.add_row(name, f"{d.parameters:,}", quantity(d.flops_per_token), memory, rate(d.seconds_per_token))
        table.add_row("shuffle buffer", "", "", size(self.buffer_bytes), "")
        total_flops = self.harvest_flops_per_token + sum(d.flops_per_token for d in self.dictionaries.values())
        parameters = self.model_parameters + sum(d.parameters for d in self.dictionaries.values())
        if self.kl is not None:
            table.add_row(f"KL (last {self.kl.steps:,} steps)", "", "", size(self.kl.memory.step), "")
        everything = rate(self.seconds / self.tokens)
        table.add_row("together (peak)", f"{parameters:,}", quantity(total_flops), size(self.peak_bytes), everything)
        when = ", ".join(f"{size(self.settled_bytes + more)} {what}" for what, more in self.phases.items())
        memory = f"Peak memory: {when}, of which {size(self.settled_bytes)} are interpreter, libraries and model."
        line = (
            f"{self.tokens:,} tokens: about {duration(self.seconds)} on this machine, held-out measurement not counted."
        )
        return Group(table, memory, line)


def estimate_job(cfg: JobConfig, model: LanguageModel | None = None) -> Estimate:
    """Loads the model (no data), times a forward pass on random tokens, or reading a window of the job's store, and
    a step of every dictionary.

    Raises UserError for everything about model, sites and store that `sae-train` would refuse.
    """
    device, model, sites = open_model(cfg, model)
    read_initials(cfg.dictionaries, sites, model)  # for what would be refused
    loading = resident_bytes(peak=True)
    harvester = open_harvester(cfg, model, all_sites(sites.values()))
    settled = settled_bytes(cfg, model, harvester)
    rows = max(1, cfg.buffer.rows // cfg.training.batch_size) * cfg.training.batch_size
    buffer_bytes = rows * row_bytes(harvester, model.dtype.itemsize)
    flops = harvester.flops_per_token(cfg.data.context_length)
    if cfg.store is not None:
        store = open_store(cfg, model, sites, open_stream(cfg, model).fingerprint())
        assert store is not None
        reader = open_reader(cfg, store, harvester.sites, harvester.need_scale)
        buffer_bytes, flops, harvest = reader.describe()["bytes"], 0, time_reading(reader)
    else:
        harvest = time_harvest(cfg, model, harvester)
    kl = kl_cost(cfg, model, sites, harvester)
    memory = {
        name: trained(d, sites[name].read.width, cfg, device, sites[name].written.width if d.writes else None)
        for name, d in cfg.dictionaries.items()
    }
    return Estimate(
        model_parameters=parameter_count(model.bridge),
        model_bytes=memory_bytes(model.bridge),
        harvest_flops_per_token=flops,
        harvest_seconds_per_token=harvest,
        buffer_bytes=buffer_bytes,
        dictionaries={n: dictionary_cost(d, sites[n], memory[n], cfg, device) for n, d in cfg.dictionaries.items()},
        tokens=total_steps(cfg.training) * cfg.training.batch_size,
        loading_bytes=loading,
        settled_bytes=settled,
        phases=phases(
            cfg, model, sites, harvester, buffer_bytes, list(memory.values()), MoreBytes() if kl is None else kl.memory
        ),
        kl=kl,
    )


def dictionary_cost(
    cfg: DictionaryConfig, sites: Sites, memory: Trained, job: JobConfig, device: torch.device
) -> DictionaryCost:
    encoder, decoder = 2 * sites.read.width, 2 * sites.written.width
    # Through the skip connection, and its gradient.
    skip = 2 * encoder * sites.written.width if cfg.skip else 0
    if isinstance(cfg.architecture, TopKConfig | BatchTopKConfig):
        # The encoder's product over all features; decoding and the three gradients over the active ones.
        flops = encoder * cfg.d_sae + (encoder + 3 * decoder) * cfg.architecture.k + skip
    else:
        # Encoder, decoder, and the gradients of the activations, the decoder and the encoder.
        flops = (2 * encoder + 3 * decoder) * cfg.d_sae + skip
    return DictionaryCost(
        memory.parameters // 4,
        flops,
        3 * memory.parameters + memory.gradients,
        max(0, memory.step - memory.gradients),
        time_step(cfg, sites, job, device, memory) / job.training.batch_size,
    )


def time_harvest(cfg: JobConfig, model: LanguageModel, harvester: Harvester) -> float:
    """Seconds per row of harvesting, from random tokens."""
    contexts = random_contexts(cfg, model, min(cfg.buffer.contexts_per_forward, 8))
    kept = max(1, int(harvester.keep(contexts.tokens).sum()))
    return seconds_of(lambda: harvester.harvest(contexts), model.device) / kept


def time_reading(reader: StoreReader) -> float:
    """Seconds per row of a store, from one window: read from the disk, or from memory where the system has it there."""
    start, rows = time.perf_counter(), 0
    while rows < reader.window_rows:
        rows += len(next(reader))
    return (time.perf_counter() - start) / rows


def time_step(cfg: DictionaryConfig, sites: Sites, job: JobConfig, device: torch.device, memory: Trained) -> float:
    """Seconds of one training step, from random rows: timed at its real size if it is short and fits into the memory
    that there is, else a line through two smaller numbers of features, and in proportion to the rows."""
    batch, rows = job.training.batch_size, min(job.training.batch_size, PROBE_ROWS)
    few, many = (min(cfg.d_sae, features) for features in PROBE_FEATURES)
    first = timed_step(cfg, sites, job, device, few, rows)
    whole = first * (cfg.d_sae / few) * (batch / rows)
    if device.type == "cuda" or (whole < LONG_STEP and 3 * memory.parameters + memory.step < available_bytes() / 2):
        return timed_step(cfg, sites, job, device, cfg.d_sae, batch)
    second = timed_step(cfg, sites, job, device, many, rows)
    slope = max(0.0, second - first) / max(1, many - few)
    return (first + slope * (cfg.d_sae - few)) * (batch / rows)


def timed_step(
    cfg: DictionaryConfig, sites: Sites, job: JobConfig, device: torch.device, features: int, rows: int
) -> float:
    """Seconds of a step, optimiser included, with so many features on so many rows."""
    x, y = (torch.randn(rows, site.width, generator=generator(0, "estimate", site.width)) for site in sites)
    target = None if cfg.writes is None else y
    dictionary = small_dictionary(cfg, x, features, target)
    if isinstance(cfg.architecture, ReLUConfig | GatedConfig | JumpReLUConfig):
        dictionary.b_enc.data.fill_(SPARSE_BIAS)
    site, zeros = sites.read, torch.zeros(sites.read.width)
    space = Space("resid", site, site.width, site.width, "none", 1.0, zeros, zeros).to(device)
    cfg = cfg.model_copy(update={"d_sae": dictionary.d_sae})
    trainee = Trainee("timed", site, cfg, job.training, space, dictionary.to(device), torch.ones(()))
    x, frozen = x.to(device), torch.zeros((), device=device)
    target = None if target is None else target.to(device)

    def step() -> None:
        trainee.apply(trainee.propose(x, 0, target=target), 0, 1, rows, frozen)

    return seconds_of(step, device)


def quantity(value: float) -> str:
    """1234567 → 1.23 M."""
    power = min(5, int(math.log10(value) // 3)) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"


def size(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB" if n < 2**30 else f"{n / 2**30:,.2f} GiB"


def rate(seconds_per_token: float) -> str:
    return f"{1 / seconds_per_token:,.0f}" if seconds_per_token > 0 else "–"


def duration(seconds: float) -> str:
    """Rounded for people: 42 s, 17 min, 5 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
