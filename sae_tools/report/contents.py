"""What a report shows: runs with their curves and figures, dictionaries with their features, the text they fired on.

Everything is read from files: the run directories, and the feature files that analysis/features.py left in one folder.
What a run does not have (a stopped one no held-out figures, a foreign SAE no history) is None or empty here, and the
page says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.feature_files import FeatureFile
from sae_tools.config import FidelityConfig, JobConfig
from sae_tools.config_loading import parse_config
from sae_tools.errors import UserError
from sae_tools.runs.density import DensityWindow, read_windows
from sae_tools.runs.directory import RunDirectory
from sae_tools.tracking.metrics import read_metrics

RARE_BELOW = 1e-3
"""Rare: fires on less than this share of the tokens, but is not ultra-rare."""
LONGEST_CARD = 64 * 1024
"""Characters of a model card that go into the report."""


class Origin(Protocol):
    """Where a dictionary comes from: what the report needs of `analysis.sources.Source`."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def run(self) -> Path | None: ...
    @property
    def tokens(self) -> int | None: ...


@dataclass(frozen=True)
class ModelShown:
    """The language model, as a run wrote it down or as it was loaded."""

    facts: Mapping[str, Any]
    """`LanguageModel.describe`, or part of it."""
    card: str | None = None
    """Its README."""


@dataclass(frozen=True)
class RunShown:
    """A run of ours, or a foreign SAE standing alone."""

    name: str
    config_text: str
    config: JobConfig | None
    model: ModelShown
    records: list[dict[str, Any]]
    """Lines of metrics.jsonl; empty for a foreign SAE."""
    dictionaries: list[str]
    """Ids."""


@dataclass(frozen=True)
class DictionaryShown:
    id: str
    run: str
    """Name of its RunShown."""
    name: str
    """Within the run."""
    file: FeatureFile
    windows: Sequence[DensityWindow]
    """Its history up to the checkpoint shown; empty: none."""
    fidelity: Mapping[str, Any] | None
    """Its entry of fidelity.json, if that is of this checkpoint."""
    thresholds: FidelityConfig = field(default_factory=FidelityConfig)

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        return self.file.arrays

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.file.meta

    @property
    def d_sae(self) -> int:
        return self.file.d_sae

    @property
    def has_logits(self) -> bool:
        return self.file.has_logits


@dataclass(frozen=True)
class CorpusShown:
    model: str
    source: str
    tokens: np.ndarray
    """int32 [contexts, length]"""
    document: np.ndarray
    """int32 [contexts, length]"""
    counted: int
    """Tokens of it that features were measured on."""
    vocabulary: list[str]
    special: list[int]
    held_out: bool
    """Whether the dictionaries are known not to have been trained on it."""


@dataclass(frozen=True)
class Contents:
    title: str
    version: str
    created: str
    """When the report was built, ISO 8601 in UTC: the one thing in it that two builds do not share."""
    chunk: int
    """Features per blob of their data."""
    runs: list[RunShown]
    dictionaries: list[DictionaryShown]
    corpora: list[CorpusShown]
    sharded: bool = False

    def dictionary(self, id: str) -> DictionaryShown:
        return next(shown for shown in self.dictionaries if shown.id == id)

    def corpus_of(self, shown: DictionaryShown) -> CorpusShown:
        return self.corpora[shown.meta["corpus"]]


def load_contents(
    origins: Sequence[Origin],
    folder: Path,
    *,
    models: Sequence[ModelShown | None],
    corpora: Sequence[Mapping[str, Any]],
    version: str,
    created: str,
    chunk: int,
    sharded: bool = False,
) -> Contents:
    """Everything that the report on `origins` shows.

    folder: of the feature files. models: one for each origin; None: what its run wrote down. corpora: for each corpus
    in the folder, `model` and `source` in words, and `held_out` (see `CorpusShown`). Raises UserError for files that
    are missing or damaged.
    """
    runs: dict[Path, RunShown] = {}
    dictionaries = []
    for origin, model in zip(origins, models, strict=True):
        key = origin.run if origin.run is not None else origin.path
        if key not in runs:
            name = free_name(key.resolve().name, {run.name for run in runs.values()})
            read = read_run if origin.run is not None else read_foreign
            runs[key] = read(key, name, model)
        runs[key].dictionaries.append(origin.id)
        dictionaries.append(read_dictionary(origin, runs[key], folder))
    title = f"Features of {', '.join(run.name for run in runs.values())}"
    shown = [read_corpus(folder, k, **known) for k, known in enumerate(corpora)]
    for one in dictionaries:
        corpus = shown[one.meta["corpus"]]
        if (corpus.counted, corpus.tokens.shape[1]) != (one.meta["tokens"], one.meta["length"]):
            raise UserError(f"{folder}: {one.id} was measured on another text than is there; make the report again.")
    return Contents(title, version, created, chunk, list(runs.values()), dictionaries, shown, sharded)


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or if that is taken `name-2`, `name-3`, …"""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def read_run(path: Path, name: str, model: ModelShown | None) -> RunShown:
    run = RunDirectory.open(path)
    text = read_text(run.config)
    config = parse_config(JobConfig, text, str(run.config))
    if model is None:
        model = ModelShown((config.provenance or {}).get("model", {"name": config.model.name}))
    records = read_metrics(run.metrics) if run.metrics.exists() else []
    for number, record in enumerate(records, 1):
        if not is_whole(record):
            raise UserError(f"{run.metrics}, line {number}: no record of metrics.")
    return RunShown(name, text, config, model, records, [])


def is_whole(record: dict[str, Any]) -> bool:
    """Whether a line of metrics has what the page reads of it; a run may come from anywhere."""
    time, dictionaries = record.get("time"), record.get("dictionaries")
    return (
        isinstance(record.get("tokens"), int)
        and isinstance(time, dict)
        and isinstance(time.get("seconds"), (int, float))
        and isinstance(dictionaries, dict)
        and all(isinstance(entry, dict) for entry in dictionaries.values())
    )


def read_foreign(path: Path, name: str, model: ModelShown | None) -> RunShown:
    cfg = path / "cfg.json"
    return RunShown(name, read_text(cfg) if cfg.exists() else "", None, model or ModelShown({}), [], [])


def read_dictionary(origin: Origin, run: RunShown, folder: Path) -> DictionaryShown:
    file = FeatureFile.load(folder / f"{origin.id}.safetensors")
    if origin.run is None or run.config is None:
        return DictionaryShown(origin.id, run.name, origin.id, file, [], None)
    name = origin.path.resolve().parents[1].name  # RUN/<name>/checkpoints/<tokens>
    windows = [
        window
        for window in read_windows(RunDirectory(origin.run).density(name))
        if origin.tokens is None or window.end <= origin.tokens
    ]
    if any(len(window.fires) != file.d_sae for window in windows):
        raise UserError(f"{RunDirectory(origin.run).density(name)} has windows of another dictionary: wrong size.")
    entry = read_fidelity(origin.run / "analysis" / "fidelity.json").get(name)
    if entry is not None and entry.get("training_tokens") != origin.tokens:
        entry = None  # of another checkpoint
    return DictionaryShown(origin.id, run.name, name, file, windows, entry, run.config.fidelity)


def read_fidelity(path: Path) -> dict[str, dict[str, Any]]:
    """fidelity.json by dictionary; empty where there is none. UserError if it cannot be read."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
        assert all(isinstance(entry["fvu"], dict) for entry in value.values())
    except (ValueError, RecursionError, AttributeError, AssertionError, KeyError, TypeError):
        raise UserError(f"{path} is no file of held-out figures; remove it, or measure the run again.") from None
    return value


def read_corpus(folder: Path, k: int, model: str, source: str, held_out: bool) -> CorpusShown:
    corpus, _ = Corpus.load(folder / f"corpus-{k}.safetensors")
    path = folder / f"vocabulary-{k}.json"
    try:
        vocabulary = json.loads(read_text(path))
        tokens, special = vocabulary["tokens"], vocabulary["special"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise UserError(f"{path} is no vocabulary; remove it, and it is made again.") from None
    ids, document = corpus.tokens.numpy(), corpus.document.numpy()
    return CorpusShown(model, source, ids, document, corpus.counted, tokens, special, held_out)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def model_card(folder: Path | None) -> str | None:
    """README.md in a model's folder, cut at LONGEST_CARD; None where there is none."""
    path = None if folder is None else folder / "README.md"
    if path is None or not path.is_file():
        return None
    card = read_text(path)
    return card if len(card) <= LONGEST_CARD else f"{card[:LONGEST_CARD]}\n…"
