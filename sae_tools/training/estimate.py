"""What a job will cost, before it is run: parameters, memory, FLOPs per token and time (`sae-train --dry-run`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Group
from rich.table import Table

from sae_tools.activations.harvest import Harvester
from sae_tools.activations.store_reader import StoreReader
from sae_tools.analysis.fidelity import LOGIT_BYTES
from sae_tools.config import BatchTopKConfig, DictionaryConfig, JobConfig, JumpReLUConfig, TopKConfig
from sae_tools.dictionaries import build_dictionary
from sae_tools.models.load import DTYPES, LanguageModel
from sae_tools.models.parameters import memory_bytes, parameter_count
from sae_tools.rows import Contexts
from sae_tools.seeds import generator
from sae_tools.training.from_store import open_reader, open_store
from sae_tools.training.job import open_harvester, open_model, open_stream, row_bytes
from sae_tools.training.schedule import total_steps
from sae_tools.training.step import training_step

PROBE_FEATURES = 1024
"""Dictionaries are timed at this many features at most; the time of a step grows linearly with them."""
RUNTIME_BYTES = 600 * 2**20
"""What the interpreter and its libraries take before anything is loaded (resident, CPU build of torch)."""

LOGITS_HELD = 6
"""Tensors of logits or log-probabilities that the held-out measurement holds at its peak."""


@dataclass(frozen=True)
class DictionaryCost:
    parameters: int
    flops_per_token: float
    """Of one training step, forward and backward."""
    state_bytes: int
    """Weights, gradients and Adam's two moments."""
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
    sample_bytes: int
    logit_bytes: int
    dictionaries: dict[str, DictionaryCost]
    tokens: int

    @property
    def peak_bytes(self) -> int:
        """What stays, and the largest of what comes at different times: buffer and step, sample, logits."""
        states = sum(d.state_bytes for d in self.dictionaries.values())
        steps = sum(d.step_bytes for d in self.dictionaries.values())
        return (
            RUNTIME_BYTES
            + self.model_bytes
            + states
            + max(self.buffer_bytes + steps, self.sample_bytes, self.logit_bytes)
        )

    @property
    def seconds(self) -> float:
        per_token = self.harvest_seconds_per_token + sum(d.seconds_per_token for d in self.dictionaries.values())
        return self.tokens * per_token

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
        everything = rate(self.seconds / self.tokens)
        table.add_row("together (peak)", f"{parameters:,}", quantity(total_flops), size(self.peak_bytes), everything)
        line = (
            f"{self.tokens:,} tokens: about {duration(self.seconds)} on this machine, held-out measurement not counted."
        )
        return Group(table, line)


def estimate_job(cfg: JobConfig, model: LanguageModel | None = None) -> Estimate:
    """Loads the model (no data), times a forward pass on random tokens, or reading a window of the job's store, and a
    small step of every dictionary.

    Raises UserError for everything about model, sites and store that `sae-train` would refuse.
    """
    device, model, sites = open_model(cfg, model)
    harvester = open_harvester(cfg, model, list(sites.values()))
    rows = max(1, cfg.buffer.rows // cfg.training.batch_size) * cfg.training.batch_size
    buffer_bytes = rows * row_bytes(harvester, DTYPES[cfg.model.dtype].itemsize)
    flops = harvester.flops_per_token(cfg.data.context_length)
    if cfg.store is not None:
        store = open_store(cfg, model, sites, open_stream(cfg, model).fingerprint())
        assert store is not None
        reader = open_reader(cfg, store, sites.values(), harvester.need_scale)
        buffer_bytes, flops, harvest = reader.describe()["bytes"], 0, time_reading(reader)
    else:
        harvest = time_harvest(cfg, model, harvester)
    dims = {name: site.width for name, site in sites.items()}
    parameters = parameter_count(model.bridge)
    widest = max(dims.values())
    return Estimate(
        model_parameters=parameters,
        model_bytes=memory_bytes(model.bridge),
        harvest_flops_per_token=flops,
        harvest_seconds_per_token=harvest,
        buffer_bytes=buffer_bytes,
        sample_bytes=cfg.training.estimate_rows * (2 * row_bytes(harvester, 4) + 4 * widest),
        logit_bytes=LOGITS_HELD * max(LOGIT_BYTES, 4 * model.d_vocab * cfg.data.context_length),
        dictionaries={name: dictionary_cost(d, dims[name], cfg, device) for name, d in cfg.dictionaries.items()},
        tokens=total_steps(cfg.training) * cfg.training.batch_size,
    )


def dictionary_cost(cfg: DictionaryConfig, dim: int, job: JobConfig, device: torch.device) -> DictionaryCost:
    batch, d_sae = job.training.batch_size, cfg.d_sae
    parameters = 2 * dim * d_sae + d_sae + dim
    product = 2 * dim * d_sae
    if isinstance(cfg.architecture, JumpReLUConfig):
        parameters += d_sae
    if isinstance(cfg.architecture, TopKConfig | BatchTopKConfig):
        # The encoder's product over all features; decoding and the three gradients over the active ones.
        flops = product + 4 * (2 * dim * cfg.architecture.k)
        dense = 1
    else:
        # Encoder, decoder, and the gradients of the activations, the decoder and the encoder.
        flops = 5 * product
        dense = 4
    step_bytes = 4 * batch * (dense * d_sae + 6 * dim) + 4 * 2 * dim * d_sae
    return DictionaryCost(parameters, flops, 4 * 4 * parameters, step_bytes, time_step(cfg, dim, batch, device) / batch)


def time_harvest(cfg: JobConfig, model: LanguageModel, harvester: Harvester) -> float:
    """Seconds per row of harvesting, from random tokens."""
    shape = (min(cfg.buffer.contexts_per_forward, 8), cfg.data.context_length)
    tokens = torch.randint(0, model.d_vocab, shape, generator=generator(cfg.seed, "estimate"))
    contexts = Contexts(tokens, torch.zeros_like(tokens))
    kept = max(1, int(harvester.keep(tokens).sum()))
    return seconds_of(lambda: harvester.harvest(contexts), model.device) / kept


def time_reading(reader: StoreReader) -> float:
    """Seconds per row of a store, from one window: read from the disk, or from memory where the system has it there."""
    start, rows = time.perf_counter(), 0
    while rows < reader.window_rows:
        rows += len(next(reader))
    return (time.perf_counter() - start) / rows


def time_step(cfg: DictionaryConfig, dim: int, batch: int, device: torch.device) -> float:
    """Seconds of one training step on `batch` random rows, scaled up from `PROBE_FEATURES` features."""
    architecture = cfg.architecture
    needed = getattr(architecture, "k", None) or getattr(architecture, "target_l0", None) or 1
    probe = min(cfg.d_sae, max(PROBE_FEATURES, math.ceil(needed)))
    if isinstance(architecture, TopKConfig | BatchTopKConfig):
        architecture = architecture.model_copy(update={"aux_k": min(architecture.aux_k or 1, probe)})
    small = cfg.model_copy(update={"d_sae": probe, "b_dec_init": "zero", "architecture": architecture})
    x = torch.randn(min(batch, 1024), dim, generator=generator(0, "estimate", dim))
    dictionary = build_dictionary(small, dim, generator(0, "estimate"), x).to(device)
    x = x.to(device)
    optimiser = torch.optim.Adam(dictionary.parameters(), fused=True)

    def step() -> None:
        for parameter, gradient in zip(dictionary.parameters(), training_step(dictionary, x).gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()

    return seconds_of(step, device) * (cfg.d_sae / probe) * (batch / len(x))


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Shortest of a few runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


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
