"""How a job comes to its first step: assembled afresh, or continued from a run's newest checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sae_tools.activations.store import Store
from sae_tools.activations.store_reader import StoreReader
from sae_tools.config import JobConfig
from sae_tools.config_loading import config_differences, load_config
from sae_tools.device import selection_precision
from sae_tools.dictionaries import build_dictionary
from sae_tools.dictionaries.initial import Target
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE
from sae_tools.runs.directory import RunDirectory
from sae_tools.runs.tensors import load_tensors
from sae_tools.seeds import generator
from sae_tools.spaces import Space
from sae_tools.tracking.metrics import MetricsWriter
from sae_tools.training.fine_tune import Initial, read_initials
from sae_tools.training.from_store import open_store
from sae_tools.training.job import (
    Job,
    build_trainees,
    check_heldout,
    open_buffer,
    open_model,
    open_stream,
)
from sae_tools.training.sites import all_sites
from sae_tools.training.through_model import open_through_model
from sae_tools.training.trainee import Trainee

NOT_COMPARED = ("name", "runs_dir", "provenance")
"""Settings that say where a run is and what it was made from, not what it does."""


def start_job(cfg: JobConfig, model: LanguageModel | None = None) -> Job:
    """A new run, before its first step.

    What is wrong with the configuration is found before the run's folder is made. From then on it can be resumed.

    model: one already in memory, instead of loading `cfg.model`.
    Raises UserError for a site, layer or size that the model does not have and for data that cannot be read.
    """
    device, model, sites = open_model(cfg, model)
    stream = open_stream(cfg, model)
    check_heldout(cfg, model)
    store = open_store(cfg, model, sites, stream.fingerprint())
    initials = read_initials(cfg.dictionaries, sites, model)
    # A resumed run selects as this one did, on whatever machine.
    training = cfg.training.model_copy(update={"selection": selection_precision(cfg.training.selection, device)})
    made_from = provenance(model, stream.fingerprint(), store, initials)
    cfg = cfg.model_copy(update={"training": training, "provenance": made_from})
    run = RunDirectory.create(Path(cfg.runs_dir), cfg.name)
    run.write_config(cfg)
    try:
        trainees = build_trainees(cfg, model, sites, device, store or stream, initials)
    except UserError:
        run.remove_if_unused()
        raise
    buffer = open_buffer(cfg, model, all_sites(sites.values()), stream, store)
    stream = buffer if isinstance(buffer, StoreReader) else stream
    through_model = open_through_model(cfg, model, all_sites(sites.values()), device)
    return Job(cfg, run, model, stream, buffer, trainees, MetricsWriter(run.metrics), device, through_model)


def resume_job(path: Path, cfg: JobConfig | None = None, model: LanguageModel | None = None) -> Job:
    """A run where its newest complete checkpoint left it; what was written past that checkpoint is dropped.

    cfg: must equal the run's own, but for where the run and its store are; None takes the run's.
    Raises UserError if `path` is no run, or if its configuration, model or data are not those it was started with.
    """
    run = RunDirectory.open(path)
    own = load_config(JobConfig, run.config)
    if cfg is not None:
        _check_same(run, cfg, own)
        own = own.model_copy(update={"store": cfg.store})  # it may have been moved; what it holds is checked below
    device, model, sites = open_model(own, model)
    stream = open_stream(own, model)
    before, fingerprint = own.provenance or {}, stream.fingerprint()
    _check_provenance(run, before, provenance(model, fingerprint))
    store = open_store(own, model, sites, fingerprint)
    _check_provenance(run, before, provenance(model, fingerprint, store))
    source = store or stream
    buffer = open_buffer(own, model, all_sites(sites.values()), stream, store)
    stream = buffer if isinstance(buffer, StoreReader) else stream
    state = run.newest_checkpoint()
    run.drop_after(-1 if state is None else state["tokens"])
    if state is None:
        initials = read_initials(own.dictionaries, sites, model)
        _check_provenance(run, before, provenance(model, fingerprint, store, initials))
        trainees = build_trainees(own, model, sites, device, source, initials)
        through_model = open_through_model(own, model, all_sites(sites.values()), device)
        return Job(own, run, model, stream, buffer, trainees, MetricsWriter(run.metrics), device, through_model)
    trainees = [_saved_trainee(name, own, run, state["tokens"], sites[name].read, device) for name in own.dictionaries]
    through_model = open_through_model(own, model, all_sites(sites.values()), device)
    metrics = MetricsWriter(run.metrics, resume_at=state["step"])
    job = Job(own, run, model, stream, buffer, trainees, metrics, device, through_model, state["step"], True)
    job.go_to(state)
    return job


def provenance(
    model: LanguageModel,
    data_fingerprint: dict[str, Any],
    store: Store | None = None,
    initials: Mapping[str, Initial] | None = None,
) -> dict[str, Any]:
    """What a run was made from and with: the model, the data, the store if it read one, the weights that dictionaries
    started from, the versions of what computes."""
    made = {"model": model.describe(), "data": data_fingerprint, "versions": versions()}
    if store is not None:
        made["store"] = {"fingerprint": store.fingerprint, "rows": store.rows, "dtype": store.plan.dtype}
    if initials:
        made["init_from"] = {name: initial.fingerprint for name, initial in initials.items()}
    return made


def versions() -> dict[str, str]:
    packages = ("sae_tools", "torch", "transformer_lens", "transformers", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _saved_trainee(
    name: str, cfg: JobConfig, run: RunDirectory, tokens: int, site: Site, device: torch.device
) -> Trainee:
    folder = run.checkpoint(name, tokens)
    space = Space.from_state(*load_tensors(folder / SPACE)).to(device)
    target_space, target = None, None
    if cfg.dictionaries[name].writes is not None:
        target_space = Space.from_state(*load_tensors(folder / TARGET_SPACE)).to(device)
        target = Target(target_space.dim)
    tensors, _ = load_tensors(folder / "trainer.safetensors")
    fresh = cfg.dictionaries[name].model_copy(update={"b_dec_init": "zero"})  # every parameter is overwritten below
    dictionary = build_dictionary(fresh, space.dim, generator(cfg.seed, "dictionary", name), target=target).to(device)
    trainee = Trainee(
        name, site, cfg.dictionaries[name], cfg.training, space, dictionary, tensors["variance"], target_space
    )
    try:
        trainee.load_tensors(tensors)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{folder / 'trainer.safetensors'} does not hold the state of dictionary '{name}' as configured ({error})."
        ) from None
    return trainee


def _check_same(run: RunDirectory, cfg: JobConfig, own: JobConfig) -> None:
    for key, (given, saved) in config_differences(cfg, own).items():
        if (key, given) == ("training.selection", "auto"):  # the run's own says what that was
            continue
        moved = key == "store" and given is not None and saved is not None
        if key.split(".")[0] not in NOT_COMPARED and not moved:
            raise UserError(
                f"{run.path} cannot be resumed with another configuration: {key} is {given}, but the run has {saved}."
            )


def _check_provenance(run: RunDirectory, before: dict[str, Any], now: dict[str, Any]) -> None:
    """The same model and the same text, or the resumed run would not be the same run."""
    for part, what in (
        ("model", "language model"),
        ("data", "text"),
        ("store", "activation store"),
        ("init_from", "SAE to start from"),
    ):
        if part in now and before.get(part) != now[part]:
            keys = [key for key in now[part] if (before.get(part) or {}).get(key) != now[part][key]]
            raise UserError(
                f"{run.path} cannot be resumed: its {what} is not the one that it was started with "
                f"(different: {', '.join(keys) or part})."
            )
