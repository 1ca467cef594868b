"""What a job holds in memory, phase by phase, from its configuration: the part of `sae-train --dry-run` about memory.

Between phases freed memory goes back to the system (`release_freed_memory`), so the process's peak is that of its
largest phase. Within a phase tensors of one size take the place of each other, and those of other sizes hardly do, so
a phase is taken for the sum of all that it needs.
What interpreter, libraries and language model take is measured (`settled_bytes`), and so is a forward pass, on one
context; the rest follows from shapes. Where a number of tensors of one shape is given, `allocations.peak_of` counted
them (tests/training/test_estimate_memory.py does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_tools.activations.harvest import Harvester
from sae_tools.allocations import peak_of
from sae_tools.analysis.corpus import CHARACTERS_PER_TOKEN, SPREAD
from sae_tools.analysis.fidelity import contexts_per_batch
from sae_tools.analysis.subject import ENTRIES
from sae_tools.config import (
    BatchTopKConfig,
    DataConfig,
    DictionaryConfig,
    GatedConfig,
    JobConfig,
    JumpReLUConfig,
    ReLUConfig,
    TopKConfig,
)
from sae_tools.data.ahead import reads_ahead
from sae_tools.data.tokens import encoder
from sae_tools.device import multiplies_bfloat16
from sae_tools.dictionaries import Dictionary, build_dictionary
from sae_tools.dictionaries.formats.saelens import CHUNK
from sae_tools.dictionaries.initial import Target
from sae_tools.dictionaries.relu import DENSE_ABOVE
from sae_tools.dictionaries.sparse.select import micro_batch_rows
from sae_tools.memory import release_freed_memory, resident_bytes
from sae_tools.models.intervene import run_and_capture
from sae_tools.models.load import LanguageModel
from sae_tools.models.parameters import memory_bytes
from sae_tools.models.sites import Site, resolve_site
from sae_tools.rows import Contexts
from sae_tools.seeds import generator
from sae_tools.training.job import row_bytes
from sae_tools.training.sites import Sites, all_sites
from sae_tools.training.step import training_step

TEXT_READ, TEXT_KEPT = 11, 2.5
"""Bytes for each character of a block of text while it is tokenised, permuted and packed, and after that."""
CHARACTERS_PER_ROW = 4
COMPRESSION = 6
"""A compressed file may hold this many times its size."""
PAIR = 40
"""Bytes of an active pair of row and feature in a step: feature, value, both orders, activation and gradients."""
MORE_VECTORS = {"jumprelu": 1, "gated": 2}
"""Parameters of d_sae numbers beside b_enc."""
PACKED = (".gz", ".zst", ".parquet")
WARM_UP_TOKENS = 100_000
LEFT_OVER = 64 * 2**20
"""What has gathered by the time of training: caches of libraries, pages that small blocks keep from going back (50 to
90 MB in the jobs of scripts/checks/memory.py)."""
UNKNOWN_RUNTIME = 700 * 2**20
"""Interpreter and libraries, where they cannot be measured."""


@dataclass(frozen=True)
class Trained:
    """A dictionary as far as its memory goes; bytes."""

    parameters: int
    gradients: int
    step: int
    """At the peak of one step, gradients included."""
    beside: int
    """What a step takes beside gradients, at another time: tensors of another size, which leave holes."""
    building: int
    exported: int
    read: int
    """Its rows in the space, at training's batch size, kept while every dictionary steps."""


def trained(
    cfg: DictionaryConfig, d_in: int, job: JobConfig, device: torch.device, d_out: int | None = None
) -> Trained:
    """d_in: width of what the dictionary reads; d_out: of what it writes, where that is something else."""
    two_sites, d_out = d_out is not None, d_in if d_out is None else d_out
    dim = max(d_in, d_out)
    batch, d_sae, architecture = job.training.batch_size, cfg.d_sae, cfg.architecture
    projects = any(space.kind == "logit_update" for space in cfg.spaces)
    matrix, both, vectors = 4 * dim * d_sae, 4 * (d_in + d_out) * d_sae, 4 * (d_sae + d_out)
    both += 4 * d_in * d_out if cfg.skip else 0
    parameters = both + vectors + 4 * d_sae * MORE_VECTORS.get(architecture.kind, 0)
    micro = min(batch, micro_batch_rows(d_sae, device))
    several = batch > micro  # then the one before is there while the next is computed
    rows = 4 * batch * (d_in + d_out if two_sites else d_in)
    product = 4 * micro * d_sae
    pairs, more = PAIR * batch * getattr(architecture, "k", 0), 0
    if isinstance(architecture, TopKConfig | BatchTopKConfig):
        selecting = product * (1 + several)
        if isinstance(architecture, TopKConfig) and selects_in_bfloat16(job, device):
            selecting = selecting // 2 + matrix // 2
        if architecture.aux_coefficient > 0 and job.training.tokens > architecture.dead_after_tokens:
            # As if half of the features were dead: their columns are copied, and both gradients come twice.
            selecting = max(selecting, selecting // (1 + several) * 3 // 2)
            more, pairs = both, pairs + PAIR * batch * (architecture.aux_k or max(1, d_out // 2))
    else:
        selecting = product * (1 + several)
        sparse = int(DENSE_ABOVE * batch * d_sae * PAIR)
        more = max((dense_tensors(architecture) + several) * product, both, sparse)
    selecting, more = selecting + pairs // 2 + 3 * rows, more + pairs + 6 * rows
    return Trained(
        parameters=parameters,
        gradients=parameters,
        step=max(selecting, both + more),
        beside=max(selecting, more),
        building=3 * matrix + (6 * matrix if projects else 0) + (4 * d_in * d_out if two_sites else 0),
        # The folded weights, and a chunk of each in float64, before and after.
        exported=both + 8 * min(CHUNK, d_sae) * dim * (8 if projects else 5),
        read=rows,
    )


def small_dictionary(cfg: DictionaryConfig, x: Tensor, d_sae: int, y: Tensor | None = None) -> Dictionary:
    """One of the same architecture with at most `d_sae` features (as many as it must have), on rows like x; y: what it
    reconstructs, where that is something else."""
    architecture = cfg.architecture
    needed = getattr(architecture, "k", None) or getattr(architecture, "target_l0", None) or 1
    d_sae = min(cfg.d_sae, max(d_sae, math.ceil(needed)))
    if isinstance(architecture, TopKConfig | BatchTopKConfig):
        architecture = architecture.model_copy(update={"aux_k": min(architecture.aux_k or 1, d_sae)})
    small = cfg.model_copy(update={"d_sae": d_sae, "b_dec_init": "zero", "architecture": architecture})
    target = None if y is None else Target(y.shape[1], y)
    return build_dictionary(small, x.shape[1], generator(0, "estimate"), x, target=target)


def dense_tensors(architecture: ReLUConfig | GatedConfig | JumpReLUConfig) -> int:
    """Tensors of size rows x d_sae at the peak of a step on all features."""
    if not isinstance(architecture, JumpReLUConfig):
        return 4 + isinstance(architecture, GatedConfig) + (architecture.form == "decoder-norm")
    return 5 if architecture.penalty == "step" else 6


def selects_in_bfloat16(cfg: JobConfig, device: torch.device) -> bool:
    selection = cfg.training.selection
    return selection == "bfloat16" or (selection == "auto" and multiplies_bfloat16(device))


def phases(
    cfg: JobConfig,
    model: LanguageModel,
    sites: dict[str, Sites],
    harvester: Harvester,
    buffer_bytes: int,
    dictionaries: Sequence[Trained],
    kl: MoreBytes,
) -> dict[str, int]:
    """Bytes at the peak of each phase, beyond what is settled, by what the job does in it.

    sites, dictionaries: of each dictionary, in the job's order. kl: what KL through the model takes.
    """
    training, stored = cfg.training, cfg.store is not None
    forward = 0 if stored else harvest_bytes(cfg, model, harvester) * cfg.buffer.contexts_per_forward
    text = TextBytes(0, 0) if stored else text_bytes(cfg.data, cfg.data.shuffle_characters)
    sample = training.estimate_rows * (row_bytes(harvester, 4) + 4)
    parameters, spaces, root = sum(d.parameters for d in dictionaries), space_bytes(cfg, model), root_bytes(model)
    building = max(
        d.building
        + sum(
            4 * training.estimate_rows * site.width * (2 if space.kind == "logit_update" else 1)
            for site, space in zip(of_sites, of.spaces, strict=False)
        )
        for d, of_sites, of in zip(dictionaries, sites.values(), cfg.dictionaries.values(), strict=True)
    )
    rows = 2 * training.batch_size * row_bytes(harvester, 4) + sum(d.read for d in dictionaries)
    step, gradients = max(d.beside for d in dictionaries), sum(d.gradients for d in dictionaries)
    filling = max(text.read + forward + 32 * cfg.buffer.rows, kl.read)  # 32: what counts the documents of the buffer
    stepping = max(rows + step + gradients + kl.step, max(d.exported for d in dictionaries))
    if reads_ahead(model.device) and training.tokens * CHARACTERS_PER_ROW > cfg.data.shuffle_characters / 2:
        stepping += text.read
    return {
        "reading rows for estimates": 3 * sample if stored else max(text.read, text.kept + sample + forward),
        "making dictionaries": sample + parameters + spaces + max(root, building),
        "training": LEFT_OVER + text.kept + kl.kept + 3 * parameters + spaces + buffer_bytes + max(filling, stepping),
        "measuring": LEFT_OVER
        + text.kept
        + kl.kept
        + 3 * parameters
        + spaces
        + measuring_bytes(cfg, model, all_sites(sites.values())),
    }


class MoreBytes(NamedTuple):
    """Of KL through the model."""

    read: int = 0
    """While a block of its text is read."""
    kept: int = 0
    """Of the block that is served."""
    step: int = 0
    """In a step, beyond what every step takes."""


class TextBytes(NamedTuple):
    read: int
    """While a block is read."""
    kept: int
    """Of the block that is served."""


def text_bytes(cfg: DataConfig, block: int) -> TextBytes:
    """Of text read in blocks of `block` characters."""
    characters = min(block, characters_of(cfg.source))
    return TextBytes(int(TEXT_READ * characters), int(TEXT_KEPT * characters))


def characters_of(source: str | list[str]) -> float:
    """At most so many characters are in local files; infinity for other sources."""
    total = 0.0
    for name in [source] if isinstance(source, str) else source:
        path = Path(name)
        if not path.exists():
            return math.inf
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                total += file.stat().st_size * (COMPRESSION if file.suffix in PACKED else 1)
    return total


def random_contexts(cfg: JobConfig, model: LanguageModel, count: int) -> Contexts:
    """Of random tokens, as long as the job's."""
    shape = (count, cfg.data.context_length)
    tokens = torch.randint(0, model.d_vocab, shape, generator=generator(cfg.seed, "estimate"))
    return Contexts(tokens, torch.zeros_like(tokens))


def harvest_bytes(cfg: JobConfig, model: LanguageModel, harvester: Harvester) -> int:
    """Of one context's forward pass and rows, at its peak."""
    contexts = random_contexts(cfg, model, 1)
    harvester.harvest(contexts)  # what is compared once, with the bridge, is no part of it
    return peak_of(lambda: harvester.harvest(contexts))


def measuring_bytes(cfg: JobConfig, model: LanguageModel, sites: Sequence[Site]) -> int:
    """Of the held-out measurement: its text, and one batch of it."""
    length, tokens = cfg.data.context_length, cfg.fidelity.tokens
    contexts = contexts_per_batch(model, length, tokens)
    one = random_contexts(cfg, model, 1).tokens
    final = resolve_site(model, f"resid_post@{model.n_layers - 1}")
    forward = contexts * peak_of(lambda: run_and_capture(model, one, [*sites, final]))
    logits = 4 * contexts * length * model.d_vocab
    widest = max(site.width for site in sites)
    features = max(d.d_sae for d in cfg.dictionaries.values())
    encoded = 4 * min(ENTRIES, contexts * length * features)
    # Two tensors of activations; z, reconstructions and the float64 numbers of their errors.
    reconstructing = 2 * encoded + 48 * contexts * length * widest
    predicting = logits * (2 if model.dtype == torch.float32 else 3)  # log-probabilities, unedited and edited
    text = text_bytes(cfg.data, min(cfg.data.shuffle_characters, CHARACTERS_PER_TOKEN * SPREAD * tokens))
    corpus = 9 * tokens
    reading = max(text.read, text.kept + 2 * 17 * SPREAD * tokens)
    return max(reading, root_bytes(model)) + corpus + forward + predicting + reconstructing


def root_bytes(model: LanguageModel) -> int:
    """Of the logit metric and its root: pieces of the unembedding and some d x d matrices, in float64."""
    return 8 * model.d_model * (3 * min(8192, model.d_vocab) + 6 * model.d_model)


def space_bytes(cfg: JobConfig, model: LanguageModel) -> int:
    """Matrices of the spaces."""
    with_matrix = sum(space.kind == "logit_update" for d in cfg.dictionaries.values() for space in d.spaces)
    return with_matrix * 2 * 4 * model.d_model**2


def settled_bytes(cfg: JobConfig, model: LanguageModel, harvester: Harvester) -> int:
    """What this process holds with the model loaded and everything else used once, on little: libraries take memory of
    their own when they are first called. `UNKNOWN_RUNTIME` and the model where the system does not tell."""
    if cfg.store is None and model.tokenizer is not None and cfg.data.token_column is None:
        ids = random_contexts(cfg, model, math.ceil(WARM_UP_TOKENS / cfg.data.context_length)).tokens.flatten()
        encoder(model.tokenizer)([model.tokenizer.decode(ids.tolist())])
    harvester.harvest(random_contexts(cfg, model, 1))
    torch.linalg.eigh(torch.eye(256, dtype=torch.float64))
    x = torch.randn(64, 16, generator=generator(cfg.seed, "estimate"))
    for dictionary_cfg in cfg.dictionaries.values():
        y = None if dictionary_cfg.writes is None else x.to(model.device)
        small = small_dictionary(dictionary_cfg, x, 256, y).to(model.device)
        training_step(small, x.to(model.device), target=y)
    release_freed_memory()
    return resident_bytes() or UNKNOWN_RUNTIME + memory_bytes(model.bridge)
