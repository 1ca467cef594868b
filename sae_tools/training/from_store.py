"""A job that reads its rows from an activation store: what the store must hold, and how it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sae_tools.activations.store import Store
from sae_tools.activations.store_reader import StoreReader, random_rows
from sae_tools.config import DataConfig, DictionaryConfig, JobConfig
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site
from sae_tools.rows import Rows
from sae_tools.seeds import derived_seed
from sae_tools.training.sites import Sites, all_sites

RESAMPLING_ROWS = 16_384
"""Rows in memory at a time where dead features are resampled from a store."""


def what_is_read(data: DataConfig, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The text as a store names it: ContextStream.fingerprint() and the column of it that was read."""
    return {**fingerprint, "text_column": data.text_column, "token_column": data.token_column}


def estimates_need_scale(dictionaries: Iterable[DictionaryConfig]) -> bool:
    """Whether the final norm's scale is read to estimate a space (training itself may not need it)."""
    return any(space.kind == "logit_update" for dictionary in dictionaries for space in dictionary.spaces)


def open_store(
    cfg: JobConfig, model: LanguageModel, sites: dict[str, Sites], fingerprint: dict[str, Any]
) -> Store | None:
    """The store that the job reads, checked to be of its model, text and rows; None where it runs the model.

    fingerprint: ContextStream.fingerprint() of the job's text.
    Raises UserError, one sentence, for a store that is damaged, of something else, or has too few rows.
    """
    if cfg.store is None:
        return None
    store = Store.open(cfg.store)
    store.check_same_model(model.describe())
    store.check_same_text(what_is_read(cfg.data, fingerprint))
    scale = next((name for name, d in cfg.dictionaries.items() if estimates_need_scale([d])), None)
    widths = {site.name: site.width for site in all_sites(sites.values())}
    store.check_rows(cfg.rows, widths, None if scale is None else f"dictionary '{scale}'")
    if cfg.training.estimate_rows > store.rows:
        raise UserError(
            f"training.estimate_rows is {cfg.training.estimate_rows:,}, but {store.path} holds {store.rows:,} rows."
        )
    return store


def open_reader(cfg: JobConfig, store: Store, sites: Iterable[Site], need_scale: bool) -> StoreReader:
    """Batches for training; a window of the store takes the place of the buffer, `buffer.rows` large at most."""
    return StoreReader(
        store,
        [site.name for site in sites],
        rows=cfg.buffer.rows,
        batch_size=cfg.training.batch_size,
        seed=cfg.seed,
        need_scale=need_scale,
    )


def stored_sample(cfg: JobConfig, store: Store, sites: Iterable[Site]) -> Rows:
    """The rows from which centres, scales and initial biases are estimated: random over the whole store."""
    return random_rows(
        store,
        cfg.training.estimate_rows,
        derived_seed(cfg.seed, "estimate"),
        [site.name for site in sites],
        need_scale=estimates_need_scale(cfg.dictionaries.values()),
    )


def in_another_order(reader: StoreReader, sites: Iterable[Site], seed: int) -> Iterator[Rows]:
    """All rows of the reader's store at some sites, endlessly, in an order of their own."""
    return StoreReader(
        reader.store,
        [site.name for site in sites],
        rows=RESAMPLING_ROWS,
        batch_size=min(RESAMPLING_ROWS, reader.store.rows),
        seed=seed,
        need_scale="scale" in reader.columns,
    )
