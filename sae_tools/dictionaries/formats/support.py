"""Which architecture exists in which format: the matrix that readers, writers, refusals and the README go by."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.parts import KIND_OF
from sae_tools.errors import UserError

Format = Literal["saelens", "dictionary-learning", "sparsify"]
FORMATS: dict[Format, str] = {
    "saelens": "SAELens",
    "dictionary-learning": "dictionary_learning",
    "sparsify": "sparsify",
}
"""By the names of `sae-convert --to`; as their makers write them."""


class Architecture(NamedTuple):
    """What a dictionary is, as far as formats tell such apart."""

    kind: str
    """Of `parts.KINDS`."""
    transcoder: bool = False
    """It reconstructs other vectors than it reads."""
    skip: bool = False

    @property
    def label(self) -> str:
        return NAMES[self.kind] + (" skip transcoder" if self.skip else " transcoder" if self.transcoder else "")


class Names(NamedTuple):
    """What an architecture is called in a format."""

    read: tuple[str, ...]
    write: str


NAMES = {
    "relu": "ReLU",
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "matryoshka": "Matryoshka",
}
_VARIANTS = {"": (False, False), "transcoder": (True, False), "skip_transcoder": (True, True)}


def _matrix() -> dict[tuple[Architecture, Format], Names]:
    found: dict[tuple[Architecture, Format], Names] = {}

    def add(where: Format, kind: str, read: str, write: str | None = None, variant: str = "") -> None:
        names = tuple(filter(None, read.split()))
        found[Architecture(kind, *_VARIANTS[variant]), where] = Names(names, write or names[0])

    add("saelens", "relu", "standard")
    add("saelens", "topk", "topk")
    add("saelens", "jumprelu", "jumprelu")
    add("saelens", "gated", "gated")
    add("saelens", "batchtopk", "batchtopk", "jumprelu")  # a training checkpoint; SAELens's inference is JumpReLU's
    add("saelens", "matryoshka", "matryoshka_batchtopk", "jumprelu")
    for variant in ("transcoder", "skip_transcoder"):
        add("saelens", "relu", variant, variant=variant)
        add("saelens", "jumprelu", f"jumprelu_{variant}", variant=variant)
        add("saelens", "batchtopk", "", f"jumprelu_{variant}", variant=variant)
        add("saelens", "matryoshka", "", f"jumprelu_{variant}", variant=variant)
    add("dictionary-learning", "relu", "AutoEncoder AutoEncoderNew")
    add("dictionary-learning", "topk", "AutoEncoderTopK")
    add("dictionary-learning", "batchtopk", "BatchTopKSAE")
    add("dictionary-learning", "jumprelu", "JumpReluAutoEncoder")
    add("dictionary-learning", "gated", "GatedAutoEncoder")
    add("dictionary-learning", "matryoshka", "MatryoshkaBatchTopKSAE")
    add("sparsify", "topk", "topk")
    add("sparsify", "topk", "transcode", variant="transcoder")
    add("sparsify", "topk", "skip_connection", variant="skip_transcoder")
    return found


MATRIX = _matrix()
OURS = {
    f"{kind}_{variant}": Architecture(kind, *_VARIANTS[variant])
    for kind in ("topk", "gated")
    for variant in ("transcoder", "skip_transcoder")
}
"""Architectures that SAELens has no class for, in checkpoints of ours: folders of the same make, which it refuses."""


def architecture_of(dictionary: Dictionary, metadata: dict[str, Any] | None = None) -> Architecture:
    """What it is. A dictionary as wide where it writes as where it reads is a transcoder if it has a skip connection or
    its metadata says so: by an `architecture` of that name, or a `hook_name_out` other than `hook_name`."""
    said = metadata or {}
    other = said.get("hook_name_out")
    transcoder = (
        dictionary.d_in != dictionary.d_out
        or dictionary.W_skip is not None
        or "transcoder" in str(said.get("architecture"))
        or (other is not None and other != said.get("hook_name"))
    )
    return Architecture(KIND_OF[type(dictionary)], transcoder, dictionary.W_skip is not None)


def name_in(architecture: Architecture, where: Format) -> str:
    """What it is called there when written. Raises UserError, saying which formats have it, where it does not exist."""
    names = MATRIX.get((architecture, where))
    if names is None:
        having = [FORMATS[other] for other in FORMATS if (architecture, other) in MATRIX]
        rest = f"{' and '.join(having)} {'has' if len(having) == 1 else 'have'} one" if having else "no format has one"
        raise UserError(f"{FORMATS[where]} has no {architecture.label} dictionary; {rest}.")
    return names.write


def saelens_architectures() -> dict[str, Architecture]:
    """Every `architecture` of a cfg.json that is read."""
    theirs = {name: key for (key, where), names in MATRIX.items() if where == "saelens" for name in names.read}
    return theirs | OURS


def table() -> str:
    """The matrix as the README shows it, in Markdown."""
    lines = ["| | " + " | ".join(FORMATS.values()) + " |", "|---" * (1 + len(FORMATS)) + "|"]
    for kind, label in NAMES.items():
        cells = []
        for where in FORMATS:
            parts = []
            for variant in _VARIANTS.values():
                names = MATRIX.get((Architecture(kind, *variant), where))
                if names is None:
                    continue
                read = ", ".join(f"`{name}`" for name in names.read)
                written = "" if names.write in names.read else f"as `{names.write}`"
                parts.append(f"{read} (written {written})" if read and written else read or written)
            cells.append(", ".join(parts) or "–")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
