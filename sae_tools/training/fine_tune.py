"""Fine-tuning: a dictionary that starts from somebody's SAE instead of fresh weights (`dictionaries.X.init_from`).

Settings and space are the job's own, weights are the file's: carried into the dictionary's space, where they do what
they did at the site, up to what the space cannot see. Where training keeps decoder rows at norm 1 their norms are
folded into the encoder first; TopK and its kin then choose by activation in the space's unit, which is another choice
if the norms differ. Everything else is fresh: optimiser, counters, learning rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_tools.config import DictionaryConfig, MatryoshkaConfig
from sae_tools.dictionaries import Dictionary, MatryoshkaDictionary
from sae_tools.dictionaries.formats.folding import unfold, with_subtraction, without_subtraction
from sae_tools.dictionaries.formats.parts import (
    KIND_OF,
    Parts,
    put_together,
    rescaled,
    shifted,
    take_apart,
    unit_scaling,
)
from sae_tools.dictionaries.formats.read import read_dictionary
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site, resolve_site
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE
from sae_tools.runs.tensors import load_tensors
from sae_tools.spaces import Space
from sae_tools.training.sites import Sites

TAKES = {
    "topk": ("topk", "batchtopk", "matryoshka"),
    "batchtopk": ("batchtopk", "topk", "matryoshka", "jumprelu"),
    "matryoshka": ("matryoshka",),
    "relu": ("relu",),
    "jumprelu": ("jumprelu",),
    "gated": ("gated",),
}
"""By the architecture that is trained: of which others the weights mean the same. (`jumprelu` for BatchTopK: only with
one threshold for all features, which is how others store a BatchTopK dictionary.)"""


@dataclass(frozen=True)
class Initial:
    """What a dictionary starts from, checked as far as that goes without its space."""

    key: str
    """The setting that names it."""
    path: Path
    dictionary: Dictionary
    metadata: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """32 hex digits over the weights as they were read."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(take_apart(self.dictionary).tensors().items()):
            digest.update(f"{name} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def read_initials(
    dictionaries: Mapping[str, DictionaryConfig], sites: dict[str, Sites], model: LanguageModel
) -> dict[str, Initial]:
    """By name, those dictionaries that start from a file.

    Raises UserError, one sentence, for a file that cannot be read or is of another site, size or architecture.
    """
    found = {}
    for name, cfg in dictionaries.items():
        if cfg.init_from is not None:
            key = f"dictionaries.{name}.init_from"
            with _said_of(key):
                dictionary, metadata = read_dictionary(cfg.init_from, fold_decoder_norm=False)
                found[name] = Initial(key, Path(cfg.init_from), dictionary, metadata)
                _check(cfg, found[name], sites[name], model)
    return found


@contextmanager
def _said_of(key: str) -> Iterator[None]:
    """Errors about the file name the setting too."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _check(cfg: DictionaryConfig, initial: Initial, sites: Sites, model: LanguageModel) -> None:
    where, dictionary, metadata = initial.path, initial.dictionary, initial.metadata
    kind, wanted = KIND_OF[type(dictionary)], cfg.architecture.kind
    if kind not in TAKES[wanted]:
        raise UserError(f"{where} is a {kind} dictionary, whose weights mean nothing to {wanted}.")
    if kind == "jumprelu" and wanted == "batchtopk" and not _one_threshold(take_apart(dictionary)):
        raise UserError(f"{where} has a threshold for each feature, and batchtopk has one for all.")
    if dictionary.d_sae != cfg.d_sae:
        raise UserError(f"{where} has {dictionary.d_sae:,} features, but d_sae is {cfg.d_sae:,}.")
    if isinstance(cfg.architecture, MatryoshkaConfig) and isinstance(dictionary, MatryoshkaDictionary):
        widths = cfg.architecture.widths_of(cfg.d_sae)
        if dictionary.widths != widths:
            raise UserError(f"{where} nests {dictionary.widths} features, but architecture.widths is {widths}.")
    for key, ours, site, width, what in (
        ("hook_name", "site", sites.read, dictionary.d_in, "reads"),
        ("hook_name_out", "site_out", sites.written, dictionary.d_out, "writes"),
    ):
        said = metadata.get(ours) or metadata.get(key)  # ours is exact, and weights of a space name no hook
        if isinstance(said, str) and not _same_site(said, site, model):
            raise UserError(f"{where} {what} {said[:100]}, but the dictionary {site.name}.")
        if metadata.get("coordinates") != "space" and width != site.width:
            raise UserError(f"{where} {what} {width} dimensions, but {site.name} has {site.width}.")
    if dictionary.W_skip is not None and not cfg.skip:
        raise UserError(f"{where} has a skip connection, and skip is not set.")
    if metadata.get("coordinates") == "space":
        for file in (SPACE,) if cfg.writes is None else (SPACE, TARGET_SPACE):
            if not (initial.path / file).is_file():
                raise UserError(f"{where}: the weights are those of a space, and its {file} is missing.")


def _same_site(said: str, site: Site, model: LanguageModel) -> bool:
    try:
        return resolve_site(model, said).name == site.name
    except UserError:
        return False


@torch.no_grad()
def started_from(initial: Initial, fresh: Dictionary, space: Space, writes: Space | None = None) -> Dictionary:
    """The file's weights with the settings of `fresh`, in the coordinates of `space` (and `writes`).

    fresh: as the job would start without the file, on the CPU. Raises UserError where the weights are those of a space
    that has no map to this one, or this one has none to the site's activations that they are for.
    """
    with _said_of(initial.key):
        parts = _carried(initial, space.to("cpu"), None if writes is None else writes.to("cpu"))
    parts = with_subtraction(parts) if fresh.subtract_b_dec else without_subtraction(parts)
    own = take_apart(fresh)
    scaling = unit_scaling(parts.W_dec)
    if fresh.unit_decoder:
        parts = rescaled(parts, scaling)
    else:
        scaling = torch.ones_like(scaling)
    settings = dict(own.settings)
    if "threshold" in settings:
        shared = parts.features["threshold"].double().mean() if parts.kind == "jumprelu" else None
        before = parts.settings.get("threshold")
        settings["threshold"] = float(shared if shared is not None else (before or 0.0) * scaling.mean())
    features = {name: parts.features[name] for name in own.features}
    W_skip = own.W_skip if parts.W_skip is None else parts.W_skip
    return put_together(replace(parts, kind=own.kind, settings=settings, features=features, W_skip=W_skip))


def _carried(initial: Initial, space: Space, writes: Space | None) -> Parts:
    """The file's weights in the coordinates of `space` (and `writes`)."""
    source = initial.dictionary
    if initial.metadata.get("coordinates") == "space":
        read = _between(initial.path / SPACE, space, source.d_in)
        written = None if writes is None else _between(initial.path / TARGET_SPACE, writes, source.d_out)
        return take_apart(unfold(source, read, written))
    if not (space.foldable and (writes is None or writes.foldable)):
        raise UserError(
            f"{initial.path} acts on the site's activations, which have no fixed map to a space with ln 'token'; give "
            "the dictionary ln 'mean', or the checkpoint of one that was trained in such a space."
        )
    parts = take_apart(unfold(source, space, writes))
    return _with_unseen(parts, source, space) if parts.subtract_b_dec and writes is None else parts


def _with_unseen(parts: Parts, source: Dictionary, space: Space) -> Parts:
    """What the source's encoder makes of the mean activation where the space cannot see it goes into its bias."""
    forward, lift = space.affine()
    unseen = lift(forward(source.b_dec.double())) - source.b_dec.double()
    return shifted(parts, source.encoder.double() @ unseen)


def _between(file: Path, space: Space, width: int) -> Space:
    """From the coordinates of the space in `file`, of that width, to those of `space`."""
    before = Space.from_state(*load_tensors(file))
    if before.dim != width:
        raise UserError(f"{file} is a space of {before.dim} dimensions, but the weights beside it have {width}.")
    same = before.kind == space.kind and before.ln == space.ln and before.dim == space.dim
    if not same or not _close(before.matrix, space.matrix):
        raise UserError(
            f"{file}: the weights were trained in {before.kind} with ln '{before.ln}', which has no fixed map to the "
            f"dictionary's {space.kind} with ln '{space.ln}'; give the dictionary the same space."
        )
    # z = (x M f - c) / s in both, f being 1/σ of the very token, or (ln mean) an estimate: then each has its own
    ratio = 1.0
    if before.inverse_sigma is not None and space.inverse_sigma is not None:
        ratio = before.inverse_sigma / space.inverse_sigma
    offset = (ratio * space.centre.double() - before.centre.double()) / before.scale
    scale = ratio * space.scale / before.scale
    zeros = torch.zeros_like(space.centre)
    return Space(space.kind, space.site, space.dim, space.dim, "none", scale, offset.float(), zeros)


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def _one_threshold(parts: Parts) -> bool:
    threshold = parts.features["threshold"].double()
    return bool((threshold - threshold.mean()).abs().max() <= 1e-4 * threshold.abs().max())
