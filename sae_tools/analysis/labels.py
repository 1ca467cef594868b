"""Labels of a corpus's tokens that the text itself provides: the documents are read again and found in the contexts.

A context begins anywhere in its document, so quotes or indentation can only be told from the whole of it. A token's
label is that of its first character that is no whitespace (of its first one, if all are).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.labels_prose import prose_labels
from sae_tools.analysis.labels_python import UNKNOWN, is_python, python_labels
from sae_tools.config import DataConfig
from sae_tools.data.documents import Document
from sae_tools.data.sources import open_documents
from sae_tools.data.tokens import is_compiled
from sae_tools.models.load import LanguageModel

MIN_RUN = 4
"""Tokens of a document in a context, fewer of which are not looked for."""
SOURCES = 6
"""Of the sources that documents come from, at most so many are labels: the largest."""
DOCUMENTS_OF_A_SOURCE = 4
"""Fewer documents of a source cannot be told apart from each other."""


@dataclass(frozen=True)
class Labels:
    kind: Literal["python", "prose"]
    tasks: dict[str, UInt8[np.ndarray, "contexts length"]]
    """By task: 1, 0, or UNKNOWN."""
    found: Bool[np.ndarray, "contexts length"]
    """Tokens whose place in their document is known."""


def label_corpus(
    model: LanguageModel, data: DataConfig, corpus: Corpus, kind: Literal["auto", "python", "prose"] = "auto"
) -> Labels | str:
    """The labels, or a clause that says why there are none."""
    if data.token_column is not None:
        return "the source holds token ids, and no text to take labels from"
    if model.tokenizer is None or not is_compiled(model.tokenizer):
        return "the tokenizer does not say which characters a token stands for"
    documents = wanted_documents(data, set(corpus.document.unique().tolist()))
    if kind == "auto":
        parse = sum(is_python(document.text or "") for document in documents.values())
        kind = "python" if 2 * parse > len(documents) else "prose"
    of_text = python_labels if kind == "python" else prose_labels
    encode = with_offsets(model.tokenizer)
    shape = tuple(corpus.tokens.shape)
    found = np.zeros(shape, bool)
    tasks: dict[str, np.ndarray] = {}
    runs: dict[int, list[tuple[int, int, int]]] = {}
    for context, first, stop, number in document_runs(corpus):
        runs.setdefault(number, []).append((context, first, stop))
    for number, places in runs.items():
        if number not in documents:
            continue
        text = documents[number].text or ""
        ids, offsets = encode(text)
        characters = of_text(text)
        at = first_visible(text, offsets)
        for context, first, stop in places:
            tokens = corpus.tokens[context, first:stop].numpy().astype(np.int32)
            lead = int(model.bos_token_id is not None and tokens[0] == model.bos_token_id)
            place = unique_place(ids, tokens[lead:])
            if place is None:
                continue
            where = slice(first + lead, stop)
            found[context, where] = True
            for task, values in characters.items():
                labels = tasks.setdefault(task, np.full(shape, UNKNOWN, np.uint8))
                labels[context, where] = values[at[place : place + len(tokens) - lead]]
    tasks |= source_tasks(corpus, documents, found)
    return Labels(kind, tasks, found)


def wanted_documents(data: DataConfig, numbers: set[int]) -> dict[int, Document]:
    """The held-out documents with these numbers, which count them in their one order (data/blocks.py)."""
    source = open_documents(data, split="heldout")
    out: dict[int, Document] = {}
    for number in range(max(numbers, default=-1) + 1):
        document = source.read()
        if document is None:
            break
        if number in numbers:
            out[number] = document
    return out


def document_runs(corpus: Corpus) -> Iterator[tuple[int, int, int, int]]:
    """(context, first, stop, document) of every stretch of one document in a context."""
    for context, numbers in enumerate(corpus.document):
        edges = [0, *(torch.nonzero(numbers[1:] != numbers[:-1]).flatten() + 1).tolist(), len(numbers)]
        for first, stop in zip(edges[:-1], edges[1:], strict=True):
            yield context, first, stop, int(numbers[first])


def unique_place(ids: np.ndarray, run: np.ndarray) -> int | None:
    """Where the run of tokens begins in the document's; None if it is nowhere, in several places, or too short."""
    if len(run) < MIN_RUN:
        return None
    content, wanted = ids.tobytes(), run.tobytes()
    places: list[int] = []
    at = content.find(wanted)
    while at >= 0 and len(places) < 2:
        if at % ids.itemsize == 0:
            places.append(at // ids.itemsize)
        at = content.find(wanted, at + 1)
    return places[0] if len(places) == 1 else None


def with_offsets(tokenizer: Any) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """A function from a text to (ids int32, characters [first, stop) of each), as data/tokens.py encodes it."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True

    def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
        encoding = own.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)

    return encode


def first_visible(text: str, offsets: np.ndarray) -> np.ndarray:
    """Of each token, the first character that is no whitespace, or its first one."""
    visible = np.array([not character.isspace() for character in text] + [True], bool)
    places = np.arange(len(visible))
    following = np.minimum.accumulate(np.where(visible, places, len(visible))[::-1])[::-1]
    first, stop = offsets[:, 0], offsets[:, 1]
    found = following[np.minimum(first, len(visible) - 1)]
    return np.where(found < stop, found, np.minimum(first, len(visible) - 1))


def source_of(key: str) -> str | None:
    """The package of a Python source (`stdlib/json/decoder.py`: json), or the file that holds a document."""
    if key.startswith(("stdlib/", "installed/")) and key.endswith(".py"):
        parts = key.split("/")
        return parts[1] if len(parts) > 2 else None
    file, colon, number = key.rpartition(":")
    return file.rsplit("/", 1)[-1] if colon and number.isdigit() else None


def source_tasks(corpus: Corpus, documents: dict[int, Document], found: np.ndarray) -> dict[str, np.ndarray]:
    """A task for each of the sources with the most tokens that several documents come from; none if it is but one."""
    sources = {number: source_of(document.key) for number, document in documents.items()}
    numbers = corpus.document.numpy()
    sizes: dict[str, tuple[int, int]] = {}
    for number in documents:
        name = sources[number]
        count = int((found & (numbers == number)).sum())
        if name is not None and count:
            held, tokens = sizes.get(name, (0, 0))
            sizes[name] = held + 1, tokens + count
    several = [name for name, (held, _) in sizes.items() if held >= DOCUMENTS_OF_A_SOURCE]
    several.sort(key=lambda name: (-sizes[name][1], name))
    if len(sizes) < 2:
        return {}
    out = {}
    for name in several[:SOURCES]:
        mine = np.isin(numbers, [number for number, source in sources.items() if source == name])
        out[f"source: {name}"] = np.where(found, mine, UNKNOWN).astype(np.uint8)
    return out
