"""The page's data, cut into the pieces ("blobs") in which the page reads them, each a container (columns.py).

`report`: what the first view needs. `dictionary/<id>`: a column per quantity, for the table and the scatter plots.
`density/<id>`: its history. `corpus/<k>`: token ids and vocabulary, once. `features/<id>/<c>`: what the pages of the
features c·chunk, c·chunk + 1, … show.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sae_tools.report import columns
from sae_tools.report.contents import RARE_BELOW, Contents, CorpusShown, DictionaryShown
from sae_tools.report.panels import modules

OWN_BLOB = ("density",)
"""Panels whose data per dictionary are a blob of their own, `<panel>/<id>`: too large to come with the table."""


class Blob(NamedTuple):
    name: str
    text: str
    """Compressed, base64."""


def encoded(contents: Contents) -> Iterator[Blob]:
    """All blobs in order, `report` first; some threads compress ahead of the one that is asked for."""
    workers = max(2, min(8, os.cpu_count() or 1))
    waiting: deque[tuple[str, Future[str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for name, make in blobs(contents):
            waiting.append((name, pool.submit(columns.encode, make())))
            if len(waiting) > 2 * workers:
                name, text = waiting.popleft()
                yield Blob(name, text.result())
        while waiting:
            name, text = waiting.popleft()
            yield Blob(name, text.result())


def count(contents: Contents) -> int:
    """How many blobs there are."""
    return sum(1 for _ in blobs(contents))


def blobs(contents: Contents) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that makes the container) in the order in which the page holds them."""
    yield "report", lambda: report_blob(contents)
    for shown in contents.dictionaries:
        yield f"dictionary/{shown.id}", lambda shown=shown: dictionary_blob(contents, shown)
    for shown in contents.dictionaries:
        for panel in OWN_BLOB if shown.windows else ():
            yield f"{panel}/{shown.id}", lambda shown=shown, panel=panel: own_blob(contents, shown, panel)
    for k, corpus in enumerate(contents.corpora):
        yield f"corpus/{k}", lambda corpus=corpus: corpus_blob(corpus)
    for shown in contents.dictionaries:
        for c, start in enumerate(range(0, shown.d_sae, contents.chunk)):
            chunk = slice(start, min(start + contents.chunk, shown.d_sae))
            yield f"features/{shown.id}/{c}", lambda shown=shown, chunk=chunk: features_blob(contents, shown, chunk)


def report_blob(contents: Contents) -> bytes:
    found = {name: module.report(contents) for name, module in modules().items() if hasattr(module, "report")}
    return container({"meta": meta(contents), **found})


def dictionary_blob(contents: Contents, shown: DictionaryShown) -> bytes:
    found = {
        name: module.dictionary(contents, shown)
        for name, module in modules().items()
        if hasattr(module, "dictionary") and name not in OWN_BLOB
    }
    return container(found)


def own_blob(contents: Contents, shown: DictionaryShown, panel: str) -> bytes:
    return container({panel: modules()[panel].dictionary(contents, shown)})


def features_blob(contents: Contents, shown: DictionaryShown, chunk: slice) -> bytes:
    found = {
        name: module.features(contents, shown, chunk)
        for name, module in modules().items()
        if hasattr(module, "features")
    }
    return container(found)


def corpus_blob(corpus: CorpusShown) -> bytes:
    """`tokens` [contexts, length], `document` [contexts, length]; `vocabulary`: the text of every token id, `special`:
    ids of those that are no text."""
    return container(
        {
            "corpus": {
                "tokens": columns.narrow(corpus.tokens),
                "document": columns.narrow(corpus.document),
                "vocabulary": corpus.vocabulary,
                "special": corpus.special,
            }
        }
    )


def container(panels: dict[str, dict[str, Any]]) -> bytes:
    """Arrays under `panel.key`, everything else as JSON under the panel."""
    arrays, values = {}, {}
    for panel, found in panels.items():
        arrays |= {f"{panel}.{key}": value for key, value in found.items() if isinstance(value, np.ndarray)}
        rest = {key: value for key, value in found.items() if not isinstance(value, np.ndarray)}
        if rest:
            values[panel] = rest
    return columns.pack(arrays, values)


def meta(contents: Contents) -> dict[str, Any]:
    """What the page is about, for all panels."""
    return {
        "title": contents.title,
        "version": contents.version,
        "created": contents.created,
        "chunk": contents.chunk,
        "sharded": contents.sharded,
        "dictionaries": [dictionary_meta(shown) for shown in contents.dictionaries],
        "corpora": [corpus_meta(contents, k) for k in range(len(contents.corpora))],
    }


def dictionary_meta(shown: DictionaryShown) -> dict[str, Any]:
    known = (
        "id", "d_sae", "d_in", "site", "space", "writes", "target_space", "architecture", "k", "unit", "corpus",
        "tokens", "training_tokens",
    )  # fmt: skip
    return {key: shown.meta.get(key) for key in known} | {
        "l0": int(shown.arrays["fires"].sum()) / shown.meta["tokens"],  # on the report's own text
        "run": shown.run,
        "name": shown.name,
        "has_logits": shown.has_logits,
        "has_density": bool(shown.windows),
        "matches": shown.meta["matches"],
        "ultra_rare_below": shown.thresholds.ultra_rare_below,
        "rare_below": RARE_BELOW,
        "dense_above": shown.thresholds.dense_above,
    }


def corpus_meta(contents: Contents, k: int) -> dict[str, Any]:
    corpus = contents.corpora[k]
    contexts, length = corpus.tokens.shape
    measured = next(shown.meta for shown in contents.dictionaries if shown.meta["corpus"] == k)
    return {
        "model": corpus.model,
        "source": corpus.source,
        "held_out": corpus.held_out,
        "contexts": contexts,
        "length": length,
        "counted": corpus.counted,
        **{key: measured[key] for key in ("before", "after", "intervals")},
    }
