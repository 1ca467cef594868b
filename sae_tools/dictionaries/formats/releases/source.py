"""What readers of releases have in common: where a dictionary came from, and its tensors by the names of the layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sae_tools.dictionaries.formats.files import TensorFile, one_line, read_tensors
from sae_tools.dictionaries.formats.parts import KINDS, Parts
from sae_tools.errors import UserError


class Source(NamedTuple):
    """A dictionary of a release on this disk."""

    path: Path
    """The folder or the file."""
    name: str
    """What it was called where it came from, which says more than some files do: repository and path on the hub, or
    for files that somebody has, their absolute path. With / between folders."""
    norm_scaling_factor: float | None = None
    """By what activations were multiplied in training, where the registry says so."""


class Found(NamedTuple):
    """A dictionary taken apart."""

    parts: Parts
    metadata: dict[str, Any]
    """What is known of it: `architecture` always, `model_name`, `hook_name` and others where something tells them."""
    weights: Path
    """The file with the numbers."""


@dataclass(frozen=True)
class Layout:
    """The names and orientations of a release's tensors. Biases are [d_sae] and [width]."""

    encoder: str
    b_enc: str
    W_dec: str
    b_dec: str
    encoder_by_feature: bool
    """[d_sae, width]; else [width, d_sae]."""
    decoder_by_feature: bool
    """[d_sae, width]; else [width, d_sae]."""
    threshold: str | None = None
    """[d_sae]"""


def named_tensors(
    file: TensorFile,
    layout: Layout,
    *,
    optional: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """The tensors by our names (`encoder [d_sae, width]`, `b_enc`, `W_dec` like it, `b_dec`, `threshold`),
    float32, and those of `optional` by their own.

    The encoder says how many features there are and how wide rows are, and all else has to fit: transcoders too, which
    in these releases write as wide as they read. optional: further tensors that may be there, their dimensions as a
    word of F (d_sae) and D (width). Raises UserError for whatever does not fit, before numbers are read for all that
    can be seen before.
    """
    declared = file.declared()
    if layout.encoder not in declared:
        raise UserError(f"{file.path}: tensor '{layout.encoder}' is missing.")
    shape = declared[layout.encoder].shape
    if len(shape) != 2:
        raise UserError(f"{file.path}: {layout.encoder} has {len(shape)} dimensions, and must have 2.")
    d_sae, width = shape if layout.encoder_by_feature else shape[::-1]
    size = {"F": d_sae, "D": width}
    expected = {
        layout.encoder: shape,
        layout.b_enc: [d_sae],
        layout.W_dec: [d_sae, width] if layout.decoder_by_feature else [width, d_sae],
        layout.b_dec: [width],
    }
    if layout.threshold is not None:
        expected[layout.threshold] = [d_sae]
    more = {name: [size[letter] for letter in word] for name, word in (optional or {}).items()}
    found = read_tensors(file, expected, f"the shape of {layout.encoder} means", optional=more)
    tensors = {ours: found.pop(getattr(layout, ours)) for ours in ("encoder", "b_enc", "W_dec", "b_dec")}
    tensors["encoder"] = tensors["encoder"] if layout.encoder_by_feature else tensors["encoder"].T
    tensors["W_dec"] = tensors["W_dec"] if layout.decoder_by_feature else tensors["W_dec"].T
    if layout.threshold is not None:
        tensors["threshold"] = found.pop(layout.threshold)
    return tensors | found


def parts_of(
    kind: str,
    tensors: dict[str, Tensor],
    settings: dict[str, Any] | None = None,
    *,
    W_skip: Tensor | None = None,
    subtract_b_dec: bool = False,
) -> Parts:
    """Of the tensors by our names."""
    return Parts(
        kind,
        tensors["encoder"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        features={name: tensors[name] for name in KINDS[kind].features},
        settings={**KINDS[kind].free, **(settings or {})},
        W_skip=W_skip,
        subtract_b_dec=subtract_b_dec,
    )


def text(found: object) -> str | None:
    """A string from a file that is fit to be shown; None for anything else."""
    return one_line(found, 200) if isinstance(found, str) and found.strip() else None


PILE = {"dataset_path": "monology/pile-uncopyrighted", "context_size": 1024, "prepend_bos": True}
SLIMPAJAMA = {"dataset_path": "cerebras/SlimPajama-627B", "context_size": 1024, "prepend_bos": True}
LMSYS = {"dataset_path": "lmsys/lmsys-chat-1m", "prepend_bos": True}
"""What SAELens says of the text that releases were trained on."""
