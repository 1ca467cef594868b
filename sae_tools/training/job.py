"""A job put together: model, stream, buffer, and one trainee for every dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.activations.harvest import Harvester, collect_rows
from sae_tools.activations.store import Store
from sae_tools.activations.store_reader import StoreReader
from sae_tools.analysis.corpus import open_heldout
from sae_tools.config import DictionaryConfig, JobConfig
from sae_tools.data.ahead import reads_ahead
from sae_tools.data.stream import ContextStream
from sae_tools.device import pick_device
from sae_tools.dictionaries import build_dictionary
from sae_tools.dictionaries.initial import Target
from sae_tools.errors import UserError
from sae_tools.memory import release_freed_memory
from sae_tools.models.load import LanguageModel, load_configured
from sae_tools.models.sites import Site
from sae_tools.rows import Rows
from sae_tools.runs.directory import RunDirectory
from sae_tools.seeds import generator
from sae_tools.spaces import Root, build_space, logit_root
from sae_tools.tracking.metrics import MetricsWriter
from sae_tools.training.fine_tune import Initial, started_from
from sae_tools.training.from_store import estimates_need_scale, in_another_order, open_reader, stored_sample
from sae_tools.training.schedule import total_steps
from sae_tools.training.sites import Sites, all_sites, resolve_sites
from sae_tools.training.through_model import ThroughModel
from sae_tools.training.trainee import Trainee


@dataclass
class Job:
    cfg: JobConfig
    run: RunDirectory
    model: LanguageModel
    stream: ContextStream | StoreReader
    """What counts the passes over the text: the store's reader where there is one."""
    buffer: ShuffleBuffer | StoreReader
    """Where rows come from: the model, or a store."""
    trainees: list[Trainee]
    metrics: MetricsWriter
    device: torch.device
    through_model: ThroughModel | None = None
    """For the steps with KL, where the job has such."""
    step: int = 0
    """Steps completed."""
    has_checkpoint: bool = False

    @property
    def steps(self) -> int:
        return total_steps(self.cfg.training)

    @property
    def tokens(self) -> int:
        """Rows trained on so far."""
        return self.step * self.cfg.training.batch_size

    def position(self) -> dict[str, Any]:
        """Where the data stand, JSON-able: of the rows, and of the contexts for KL where the job has it."""
        if self.through_model is None:
            return {"data": self.buffer.state_dict()}
        return {"data": self.buffer.state_dict(), "kl": self.through_model.state_dict()}

    def go_to(self, position: dict[str, Any]) -> None:
        """The inverse of `position`."""
        self.buffer.load_state_dict(position["data"])
        if self.through_model is not None:
            self.through_model.load_state_dict(position["kl"])

    def close(self) -> None:
        """Nothing more will be written: other processes may now resume the run."""
        self.metrics.close()
        self.run.release_lock()


def check_context_length(cfg: JobConfig, model: LanguageModel) -> None:
    if cfg.data.context_length > model.n_ctx:
        raise UserError(
            f"data.context_length is {cfg.data.context_length}, but {model.name} reads at most {model.n_ctx} tokens."
        )


def open_model(
    cfg: JobConfig, model: LanguageModel | None = None
) -> tuple[torch.device, LanguageModel, dict[str, Sites]]:
    """(device, language model, sites of every dictionary), with all that the configuration asks of them checked."""
    if cfg.training.threads is not None:
        torch.set_num_threads(cfg.training.threads)
    device = pick_device(cfg.training.device, "training.device")
    if model is None:
        model = load_configured(cfg.model, device)
    elif cfg.model.shuffle_weights != model.shuffle_weights:
        found = "are as they were learnt" if model.shuffle_weights is None else f"have {model.shuffle_weights}"
        raise UserError(
            f"model.shuffle_weights is {cfg.model.shuffle_weights}, but the weights of the model in memory {found}; "
            "load it by load_model(NAME, shuffle_weights=SEED) with the configuration's seed."
        )
    check_context_length(cfg, model)
    return device, model, resolve_sites(cfg, model)


def needs_scale(cfg: DictionaryConfig) -> bool:
    """Whether training reads the final norm's scale at every token, which costs the whole forward pass."""
    return any(space.kind == "logit_update" and space.ln == "token" for space in cfg.spaces)


def row_bytes(harvester: Harvester, itemsize: int) -> int:
    """Bytes of one row with activations of that size: the sites, three numbers of context and the permutation's."""
    return sum(site.width for site in harvester.sites) * itemsize + 4 * 8 + (4 if harvester.need_scale else 0)


def open_stream(cfg: JobConfig, model: LanguageModel, seed: int | None = None) -> ContextStream:
    """The training text from its beginning, in the order that the seed (the job's, if None) gives."""
    return ContextStream(
        cfg.data,
        model.tokenizer,
        split="train",
        seed=cfg.seed if seed is None else seed,
        batch=cfg.buffer.contexts_per_forward,
        bos_token_id=model.bos_token_id,
        vocabulary=model.d_vocab,
        ahead=reads_ahead(model.device),
    )


def check_heldout(cfg: JobConfig, model: LanguageModel) -> None:
    """Raises UserError if there is no held-out text to measure on, which would otherwise show after training only.

    Reads documents until they fill one context.
    """
    small = cfg.data.model_copy(update={"shuffle_characters": 1})
    next(open_heldout(model, small, batch=1))


def open_harvester(cfg: JobConfig, model: LanguageModel, sites: list[Site]) -> Harvester:
    """Reads the sites in as little of the forward pass as the job's spaces allow."""
    return Harvester(model, sites, cfg.rows, need_scale=any(needs_scale(d) for d in cfg.dictionaries.values()))


def open_buffer(
    cfg: JobConfig, model: LanguageModel, sites: list[Site], stream: ContextStream, store: Store | None = None
) -> ShuffleBuffer | StoreReader:
    """Turns the stream into batches of rows, on the CPU, or reads them from a store; nothing is read yet."""
    if store is not None:
        return open_reader(cfg, store, sites, any(needs_scale(d) for d in cfg.dictionaries.values()))
    return ShuffleBuffer(
        stream,
        open_harvester(cfg, model, sites),
        rows=cfg.buffer.rows,
        batch_size=cfg.training.batch_size,
        seed=cfg.seed,
        device="cpu",
        total=total_steps(cfg.training) * cfg.training.batch_size,
    )


def estimation_rows(
    cfg: JobConfig, model: LanguageModel, sites: list[Site], source: ContextStream | Store | None = None
) -> Rows:
    """The first rows of the training text, or random ones of a store, from which centres, scales and initial biases are
    estimated.

    source: the job's stream, which is set back to where it was, so that training sees these rows too and the text is
    not tokenised twice; None opens one. The final norm's scale is read only where a space asks for it: it costs the
    whole forward pass.
    """
    if isinstance(source, Store):
        return stored_sample(cfg, source, sites).to(model.device)
    need_scale = estimates_need_scale(cfg.dictionaries.values())
    harvester = Harvester(model, sites, cfg.rows, need_scale=need_scale)
    stream = open_stream(cfg, model) if source is None else source
    position = stream.state_dict()
    rows = collect_rows(stream, harvester, cfg.training.estimate_rows)
    stream.load_state_dict(position)
    return rows


def rows_in_another_order(job: Job, sites: list[Site], seed: int) -> Iterator[Rows]:
    """The rows that training takes, endlessly and at these sites only, in an order of their own given by `seed`."""
    if isinstance(job.buffer, StoreReader):
        yield from in_another_order(job.buffer, sites, seed)
    else:
        harvester = open_harvester(job.cfg, job.model, sites)
        yield from map(harvester.harvest, open_stream(job.cfg, job.model, seed=seed))


def build_trainees(
    cfg: JobConfig,
    model: LanguageModel,
    sites: dict[str, Sites],
    device: torch.device,
    source: ContextStream | Store | None = None,
    initials: Mapping[str, Initial] | None = None,
) -> list[Trainee]:
    """Fresh trainees: spaces, initial biases and variances estimated on some of the rows (see `estimation_rows`).

    initials: by name, what dictionaries start from instead of fresh weights.
    """
    sample = estimation_rows(cfg, model, all_sites(sites.values()), source)
    release_freed_memory()
    wanted = any(space.kind == "logit_update" for d in cfg.dictionaries.values() for space in d.spaces)
    root = logit_root(model) if wanted else None  # once for all
    trainees = []
    for name in cfg.dictionaries:
        initial = (initials or {}).get(name)
        trainees.append(build_trainee(name, cfg, model, sites[name], sample, root, device, initial))
        release_freed_memory()
    return trainees


def build_trainee(
    name: str,
    cfg: JobConfig,
    model: LanguageModel,
    sites: Sites,
    sample: Rows,
    root: Root | None,
    device: torch.device,
    initial: Initial | None = None,
) -> Trainee:
    own = cfg.dictionaries[name]
    if initial is not None:
        own = own.model_copy(update={"b_dec_init": "zero"})  # every parameter is the file's
    space, target_space, target = build_space(own.space, sites.read, model, sample, root=root), None, None
    z = space.read(sample)
    if own.writes is not None:
        target_space = build_space(own.writes.space, sites.written, model, sample, root=root)
        target = Target(target_space.dim, target_space.read(sample), target_space.project)
    dictionary = build_dictionary(
        own, space.dim, generator(cfg.seed, "dictionary", name), z, project=space.project, target=target
    )
    if initial is not None:
        dictionary = started_from(initial, dictionary, space, target_space)
    written = z if target is None or target.sample is None else target.sample
    variance = written.var(0, correction=0).sum()
    target_space = None if target_space is None else target_space.to(device)
    own = cfg.dictionaries[name]
    return Trainee(name, sites.read, own, cfg.training, space.to(device), dictionary.to(device), variance, target_space)
