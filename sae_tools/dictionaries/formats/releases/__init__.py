"""Releases in layouts of their own, read here by the names of their files.

A reader per family takes files apart into `Parts`; `LAYOUTS` says which of them SAELens's registry means by its
`conversion_func`, and which files each needs. Nothing of these is written. Left out, as there is no such architecture
here: cross-layer transcoders, temporal SAEs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.releases import (
    gemma_scope,
    gemma_scope_2,
    llama_scope,
    qwen_transcoders,
    state_dicts,
)
from sae_tools.dictionaries.formats.releases.source import Found, Source
from sae_tools.dictionaries.formats.units import finished


class Release(NamedTuple):
    """A family of releases."""

    format: str
    """What metadata calls it."""
    read: Callable[[Source], Found]
    """Raises UserError for whatever is missing, damaged or does not fit."""
    files: tuple[str, ...]
    """What is fetched from a repository; {path} is the registry's path of the dictionary."""


GEMMA_SCOPE = Release("gemma-scope", gemma_scope.read, ("{path}/params.npz",))
GEMMA_SCOPE_2 = Release("gemma-scope-2", gemma_scope_2.read, ("{path}/params.safetensors", "{path}/config.json"))
LLAMA_SCOPE = Release(
    "llama-scope", llama_scope.read, ("{path}/hyperparams.json", "{path}/checkpoints/final.safetensors")
)
LLAMA_SCOPE_R1 = Release(
    "llama-scope-r1", llama_scope.read_r1_distill, ("{path}/config.json", "{path}/sae_weights.safetensors")
)
QWEN_SCOPE = Release("qwen-scope", state_dicts.read_qwen, ("{path}",))
QWEN_TRANSCODERS = Release(
    "qwen-transcoders",
    qwen_transcoders.read,
    ("{path}", *(f"{{above}}/{name}" for name in (qwen_transcoders.CONFIG, *qwen_transcoders.RUNS))),
)
GOODFIRE = Release("goodfire", state_dicts.read_goodfire, ("{path}",))
DEEPSEEK = Release("deepseek-r1", state_dicts.read_deepseek, ("{path}",))
HOOK_Z = Release("hook-z", state_dicts.read_hook_z, ("{path}", "{stem}_cfg.json"))
LAYOUTS = {
    "gemma_2": GEMMA_SCOPE,
    "gemma_2_transcoder": GEMMA_SCOPE,
    "gemma_3": GEMMA_SCOPE_2,
    "llama_scope": LLAMA_SCOPE,
    "llama_scope_r1_distill": LLAMA_SCOPE_R1,
    "qwen_scope": QWEN_SCOPE,
    "mwhanna_transcoder": QWEN_TRANSCODERS,
    "goodfire": GOODFIRE,
    "deepseek_r1": DEEPSEEK,
    "connor_rob_hook_z": HOOK_Z,
}
"""By the registry's names of formats."""
BY_FILE: tuple[tuple[re.Pattern[str], Release], ...] = (
    (state_dicts.QWEN_FILE, QWEN_SCOPE),
    (state_dicts.GOODFIRE_FILE, GOODFIRE),
    (state_dicts.DEEPSEEK_FILE, DEEPSEEK),
    (state_dicts.HOOK_Z_FILE, HOOK_Z),
)
LOOKED_FOR = (
    f"{gemma_scope.WEIGHTS} (Gemma Scope), {gemma_scope_2.WEIGHTS} (Gemma Scope 2), {llama_scope.HYPERPARAMS} or "
    f"{llama_scope.CONFIG} with {llama_scope.WEIGHTS} (Llama Scope)"
)


SINGLE_FILES = tuple(dict.fromkeys((*QWEN_TRANSCODERS.files, *HOOK_Z.files)))
"""What is fetched with a file that somebody names."""
IN_FOLDERS = (gemma_scope.WEIGHTS, gemma_scope_2.WEIGHTS)
"""Files that stand for their folder."""


def release_at(path: Path) -> Release | None:
    """Which release's layout a folder or file has, by names alone; None where they tell of none. May raise OSError."""
    if path.is_dir():
        here = {entry.name for entry in path.iterdir()}
        if gemma_scope.WEIGHTS in here:
            return GEMMA_SCOPE
        if gemma_scope_2.WEIGHTS in here:
            return GEMMA_SCOPE_2
        if llama_scope.HYPERPARAMS in here:
            return LLAMA_SCOPE
        return LLAMA_SCOPE_R1 if {llama_scope.CONFIG, llama_scope.WEIGHTS} <= here else None
    if not path.exists():
        return None
    if qwen_transcoders.FILE.search(path.name) and any((path.parent / run).exists() for run in qwen_transcoders.RUNS):
        return QWEN_TRANSCODERS
    return next((release for pattern, release in BY_FILE if pattern.search(path.name)), None)


def single_files(folder: Path) -> list[str]:
    """The names of those in the folder that are a dictionary each; none where it cannot be looked into."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file() and release_at(path) is not None)
    except OSError:
        return []


def read_release(
    release: Release, source: Source, *, fold_decoder_norm: bool | None = None
) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) as `read_dictionary` gives them."""
    parts, said, weights = release.read(source)
    return finished(parts, {**said, "format": release.format}, weights, unit_norms=fold_decoder_norm is not False)
