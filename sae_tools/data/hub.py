"""A dataset of the Hugging Face hub, streamed: the one source that touches the network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from sae_tools.config import DataConfig
from sae_tools.data.documents import Document, Split, split_of_document
from sae_tools.data.files import document_of
from sae_tools.errors import UserError


class HubDocumentSource:
    """The documents of one split of `hub:owner/name`, in the dataset's own order in every epoch.

    The order is not shuffled here (a buffered shuffle of a streamed dataset cannot be resumed exactly): ContextStream
    shuffles blocks of documents. The position is the dataset's own state. A DocumentSource.
    """

    def __init__(self, cfg: DataConfig, *, split: Split, seed: int, dataset: Any = None):
        self.cfg = cfg
        self.split: Split = split
        self.seed = seed
        self.name = str(cfg.source if isinstance(cfg.source, str) else cfg.source[0]).removeprefix("hub:")
        self.skipped: set[str] = set()
        self._dataset = self._open() if dataset is None else dataset
        columns = getattr(self._dataset, "column_names", None)
        column = cfg.token_column or cfg.text_column
        if columns and column not in columns:
            raise UserError(
                f"hub:{self.name}: expected a column {column!r}, found {', '.join(map(repr, columns[:8]))}."
            )
        self._initial = self._dataset.state_dict()
        self.start(0)

    def _open(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.name, self.cfg.subset, split=self.cfg.split, streaming=True)
        except Exception as error:  # whatever the hub, the network or the dataset's description raise
            raise UserError(f"hub:{self.name}: cannot be opened ({first_line(error)}).") from error

    def start(self, epoch: int) -> None:
        self.epoch = epoch
        self._number = 0
        self._go_to(self._initial)

    def read(self) -> Document | None:
        for row in self._reachable_rows():
            self._loaded = None
            key = f"{self.name}:{self._number}"
            self._number += 1
            document = document_of(row, key, f"hub:{key}", self.cfg.text_column, self.cfg.token_column)
            if not isinstance(document, Document):
                self.skipped.add(key)
            elif split_of_document(document, self.cfg.heldout) == self.split:
                return document
        return None

    def _reachable_rows(self) -> Iterator[dict[str, Any]]:
        """The rows, with whatever breaks on the way from the hub as a sentence."""
        while True:
            try:
                row = next(self._rows, None)
            except Exception as error:
                raise UserError(f"hub:{self.name}: cannot be read any further ({first_line(error)}).") from error
            if row is None:
                return
            yield row

    def state_dict(self) -> dict[str, Any]:
        # Between load_state_dict and the first row, the dataset still reports where it was before.
        dataset = self._dataset.state_dict() if self._loaded is None else self._loaded
        return {"epoch": self.epoch, "number": self._number, "dataset": dataset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self._number = state["epoch"], state["number"]
        self._go_to(state["dataset"])

    def _go_to(self, state: dict[str, Any]) -> None:
        self._loaded: dict[str, Any] | None = copy.deepcopy(state)
        self._dataset.load_state_dict(copy.deepcopy(state))
        self._rows = iter(self._dataset)

    def fingerprint(self) -> dict[str, Any]:
        info = getattr(self._dataset, "info", None)
        version = getattr(info, "version", None)
        return {
            "source": f"hub:{self.name}",
            "subset": self.cfg.subset,
            "split": self.cfg.split,
            "version": None if version is None else str(version),
            "checksums": sorted(getattr(info, "download_checksums", None) or {}),
        }


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
