"""Contenders by the names that results carry."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from contenders import ours
from contenders.start import Contender, Start

PEERS = {
    "saelens": "contenders.with_saelens",
    "dictionary_learning": "contenders.with_dictionary_learning",
    "sparsify": "contenders.with_sparsify",
}
NAMES = ("sae_tools", "sae_tools-bf16", *PEERS, "product")


def names(bench: str) -> tuple[str, ...]:
    """Those that have the bench at all: sparsify has TopK only, and only TopK chooses candidates in bf16."""
    return NAMES if bench == "topk" else tuple(name for name in NAMES if name not in ("sae_tools-bf16", "sparsify"))


def builder(name: str) -> Callable[[str, Start], Contender]:
    """The function that builds a contender for a bench, with all that it needs imported.

    Raises ImportError where a peer is not installed.
    """
    if name == "product":
        return lambda _, start: product(start)
    if name in PEERS:
        return importlib.import_module(PEERS[name]).build
    if name.endswith("bf16"):
        return lambda bench, start: ours.build(bench, start, "bfloat16")
    return ours.build


def product(start: Start) -> Contender:
    """The bare encoder product in fp32, [batch, d_in] @ [d_in, d_sae]."""
    x, W = start.x, start.encoder.T.contiguous()
    return Contender(lambda: torch.mm(x, W), lambda: float("nan"))
