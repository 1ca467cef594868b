"""TransformerLens's names for places that other libraries call by a module's path."""

from __future__ import annotations

import re

BLOCKS = r"(?:^|\.)(?:layers|h|blocks|resblocks)\.(\d+)"
WRITES = {"": "hook_resid_post", ".mlp": "hook_mlp_out", ".attn": "hook_attn_out", ".self_attn": "hook_attn_out"}
"""What comes out of a block, or of these parts of it. (Of `.attention` it depends on the model.)"""
NAMED = re.compile(r"(resid_pre|resid_mid|resid_post|mlp_out|attn_out)_layer_(\d+)")


def hook_of(module: object) -> str | None:
    """The hook at a module's output: `gpt_neox.layers.3` or `transformer.h.3.mlp`, or dictionary_learning's
    `resid_post_layer_3`. None where the name does not tell; nothing is guessed."""
    if not isinstance(module, str):
        return None
    if named := NAMED.fullmatch(module):
        return f"blocks.{named[2]}.hook_{named[1]}"
    found = re.search(BLOCKS, module)
    rest = module[found.end() :] if found else None
    if found is None or rest not in WRITES:
        return None
    return f"blocks.{found[1]}.{WRITES[rest]}"
