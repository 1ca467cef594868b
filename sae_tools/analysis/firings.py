"""Sparse activations on disk: one pass over a corpus for all dictionaries, read back in blocks of features.

The pass goes through the corpus in shards of contexts and writes one file for each dictionary and shard, sorted by
feature, then token: `start` int64 [d_sae + 1], `token` int32 [firings] (flat index in the corpus), `value` float32
[firings]. Activations are multiplied by the norm of the feature's decoder row, which makes them those of a dictionary
with decoder rows of norm 1. A shard that is there is not computed again, so a pass that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from safetensors import safe_open
from scipy import sparse
from torch import Tensor

from sae_tools.activations.harvest import Harvester
from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.subject import Subject
from sae_tools.config import RowsConfig
from sae_tools.dictionaries import Dictionary, TopKDictionary
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.rows import Contexts, Rows
from sae_tools.runs.tensors import load_tensors, save_tensors

SHARD_TOKENS = 16_384
"""Tokens of a shard (whole contexts, at least one)."""
FORWARD_TOKENS = 4096
"""Tokens in one forward pass of the language model."""
DENSE_BYTES = 64 * 2**20
"""Bound on dense activations [rows, d_sae] while they are made sparse."""
BLOCK_FIRINGS = 2**22
"""Firings that a block of features has at most, unless a single feature has more."""


class Block(NamedTuple):
    """The firings of the features from `first` to `stop`, over the whole corpus."""

    first: int
    stop: int
    start: Int64[np.ndarray, " bounds"]
    """Feature first + i has the firings from start[i] to start[i + 1], by rising token."""
    token: Int32[np.ndarray, " firings"]
    """Flat index in the corpus."""
    value: Float32[np.ndarray, " firings"]
    """Activation, > 0."""

    @property
    def counts(self) -> Int64[np.ndarray, " features"]:
        return np.diff(self.start)

    def feature(self) -> Int64[np.ndarray, " firings"]:
        """The feature of each firing, counted from `first`."""
        return np.repeat(np.arange(self.stop - self.first), self.counts)


@dataclass(frozen=True)
class Firings:
    """The shards of one dictionary, complete and checked."""

    files: list[Path]
    starts: Int64[np.ndarray, "shards bounds"]

    @property
    def d_sae(self) -> int:
        return self.starts.shape[1] - 1

    @property
    def fires(self) -> Int64[np.ndarray, " d_sae"]:
        """On how many tokens each feature is > 0."""
        return np.diff(self.starts, axis=1).sum(0)

    def blocks(self, limit: int = BLOCK_FIRINGS) -> Iterator[Block]:
        """All features in order, in blocks of at most `limit` firings (or of one feature)."""
        for first, stop in self.cuts(limit):
            yield self.block(first, stop)

    def cuts(self, limit: int = BLOCK_FIRINGS) -> list[tuple[int, int]]:
        """(first, stop) of those blocks."""
        before = np.concatenate([[0], self.fires.cumsum()])
        cuts, first = [], 0
        while first < self.d_sae:
            stop = int(np.searchsorted(before, before[first] + limit, side="right")) - 1
            stop = max(stop, first + 1)
            cuts.append((first, stop))
            first = stop
        return cuts

    def block(self, first: int, stop: int) -> Block:
        """The firings of some features: the shards' parts, each put where its feature's tokens go."""
        starts = self.starts[:, first : stop + 1]
        counts = np.diff(starts, axis=1)
        start = np.concatenate([[0], counts.sum(0).cumsum()])
        token, value = np.empty(start[-1], np.int32), np.empty(start[-1], np.float32)
        places = start[:-1] + counts.cumsum(0) - counts  # of each shard's firings of each feature
        for path, own, count, place in zip(self.files, starts, counts, places, strict=True):
            if own[-1] == own[0]:
                continue
            to = np.repeat(place - own[:-1], count) + np.arange(own[0], own[-1])
            with safe_open(path, framework="np") as file:
                token[to] = file.get_slice("token")[int(own[0]) : int(own[-1])]
                value[to] = file.get_slice("value")[int(own[0]) : int(own[-1])]
        return Block(first, stop, start, token, value)

    def remove(self) -> None:
        """Frees the disk; the firings cannot be read any more."""
        for path in self.files:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Reading:
    """A dictionary that takes part in the pass."""

    id: str
    """Names its files."""
    subject: Subject
    norms: Float[Tensor, " d_sae"]
    """What its activations are multiplied by."""
    fingerprint: str
    """Of the dictionary, the model and the corpus: shards with another one are computed again."""


@torch.no_grad()
def write_firings(
    model: LanguageModel,
    readings: list[Reading],
    corpus: Corpus,
    rows: RowsConfig,
    folder: Path,
    progress: Callable[[int], None] = lambda counted: None,
    shard_tokens: int = SHARD_TOKENS,
) -> tuple[list[Firings], float]:
    """(the firings of each dictionary, mean of 1/σ over the kept tokens, σ the final norm's scale), from one pass.

    folder: where the shards lie, made if it is missing; `<id>.firings-<shard>.safetensors`.
    progress: called with the number of kept tokens done.
    """
    if corpus.tokens.numel() >= 2**31:
        raise UserError(f"tokens: a report reads fewer than 2^31 tokens, and {corpus.tokens.numel():,} were asked for.")
    folder.mkdir(parents=True, exist_ok=True)
    sites = [reading.subject.site for reading in readings]
    harvester = Harvester(model, sites, rows, need_scale=True)
    per_shard = max(1, shard_tokens // corpus.length)
    files: list[list[Path]] = [[] for _ in readings]
    starts: list[list[np.ndarray]] = [[] for _ in readings]
    inverse_scale, counted = 0.0, 0
    for shard, first in enumerate(range(0, corpus.contexts, per_shard)):
        contexts = slice(first, min(first + per_shard, corpus.contexts))
        paths = [folder / f"{reading.id}.firings-{shard:05d}.safetensors" for reading in readings]
        settings = [{"fingerprint": r.fingerprint, "contexts": [contexts.start, contexts.stop]} for r in readings]
        found = [_there(path, meta) for path, meta in zip(paths, settings, strict=True)]
        if None in found:
            missing = [i for i, start in enumerate(found) if start is None]
            made, scale = _shard(harvester, [readings[i] for i in missing], corpus, contexts)
            for i, tensors in zip(missing, made, strict=True):
                meta = {**settings[i], "inverse_scale": scale}
                save_tensors(paths[i], {name: torch.from_numpy(array) for name, array in tensors.items()}, meta)
                found[i] = tensors["start"], scale
        for i, there in enumerate(found):
            assert there is not None
            files[i].append(paths[i])
            starts[i].append(there[0])
        assert found[0] is not None
        inverse_scale += found[0][1]
        counted += int(corpus.kept[contexts].sum())
        progress(counted)
    done = [Firings(own, np.stack(start)) for own, start in zip(files, starts, strict=True)]
    return done, inverse_scale / corpus.counted


def _there(path: Path, settings: dict[str, Any]) -> tuple[np.ndarray, float] | None:
    """(start, sum of 1/σ) of a shard that was made with the same settings; None where it has to be made."""
    if not path.exists():
        return None
    try:
        tensors, meta = load_tensors(path)
    except UserError:  # of another version, or damaged
        return None
    scale = meta.pop("inverse_scale", None)
    return None if meta != settings or scale is None else (tensors["start"].numpy(), scale)


def _shard(
    harvester: Harvester, readings: list[Reading], corpus: Corpus, contexts: slice
) -> tuple[list[dict[str, np.ndarray]], float]:
    """(tensors of each dictionary's file, sum of 1/σ) for some contexts."""
    parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in readings]
    inverse_scale = 0.0
    step = max(1, FORWARD_TOKENS // corpus.length)
    for first in range(contexts.start, contexts.stop, step):
        some = slice(first, min(first + step, contexts.stop))
        rows = harvester.harvest(Contexts(corpus.tokens[some].long(), corpus.document[some].long()))
        flat = corpus.kept[some].flatten().nonzero().squeeze(1).numpy() + first * corpus.length
        assert len(flat) == len(rows) and rows.scale is not None
        inverse_scale += rows.scale.double().reciprocal().sum().item()
        for reading, own in zip(readings, parts, strict=True):
            for row, feature, value in sparse_activations(reading, rows):
                own.append((flat[row].astype(np.int32), feature, value))
    return [_by_feature(own, reading.subject.dictionary.d_sae) for reading, own in zip(readings, parts, strict=True)], (
        inverse_scale
    )


def sparse_activations(reading: Reading, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row int64, feature int64, activation float32 > 0) of some rows at a time, by rising row."""
    subject, dictionary = reading.subject, reading.subject.dictionary
    device = dictionary.b_dec.device
    norms = reading.norms.to(device)
    step = max(1, DENSE_BYTES // (4 * dictionary.d_sae))
    for first in range(0, len(rows), step):
        z = subject.space.read(rows[first : first + step].to(device))
        row, feature, value = _active(dictionary, z, norms)
        yield row.cpu().numpy() + first, feature.cpu().numpy(), value.float().cpu().numpy()


def _active(
    dictionary: Dictionary, z: Float[Tensor, "rows dim"], norms: Float[Tensor, " d_sae"]
) -> tuple[Int64[Tensor, " firings"], Int64[Tensor, " firings"], Float[Tensor, " firings"]]:
    if isinstance(dictionary, TopKDictionary):
        codes = dictionary.encode_sparse(z)
        row, place = (codes.values > 0).nonzero(as_tuple=True)
        feature = codes.indices[row, place]
        return row, feature, codes.values[row, place] * norms[feature]
    f = dictionary.encode(z)
    row, feature = (f > 0).nonzero(as_tuple=True)
    return row, feature, f[row, feature] * norms[feature]


def _by_feature(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], d_sae: int) -> dict[str, np.ndarray]:
    """Firings by rising token, sorted by feature: scipy's conversion is a counting sort, which keeps that order."""
    token, feature, value = (
        np.concatenate([part[i] for part in parts]) if parts else np.empty(0, dtype)
        for i, dtype in enumerate((np.int32, np.int64, np.float32))
    )
    # As a matrix with one row for each firing; the column that it stands in is its feature.
    matrix = sparse.csr_array((value, feature, np.arange(len(token) + 1)), shape=(len(token), d_sae)).tocsc()
    return {
        "start": matrix.indptr.astype(np.int64),
        "token": token[matrix.indices],
        "value": matrix.data.astype(np.float32, copy=False),
    }
