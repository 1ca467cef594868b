"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): JumpReLU SAEs and transcoders of Gemma 2, a `params.npz` each.

Arrays W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec, threshold [d_sae]; b_dec is not subtracted. Layer, site
and model are in the names of the folders alone: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`. SAEs of the
attention read the heads' outputs side by side, before they are mapped to the residual stream. Those of embeddings were
trained on rows of length 1 that Gemma multiplies by √d_model, and are brought to the model's.
"""

from __future__ import annotations

import math
import re
from typing import Any

from sae_tools.dictionaries.formats.npz import NpzFile
from sae_tools.dictionaries.formats.releases.source import PILE, Found, Layout, Source, named_tensors, parts_of
from sae_tools.errors import UserError

WEIGHTS = "params.npz"
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)(?![a-z])")
FOLDER = re.compile(r"(?:^|/)(?:layer_(\d+)|embedding)/width_\w+(?:/|$)")


def read(source: Source) -> Found:
    path = source.path / WEIGHTS
    file = NpzFile(path)
    w = "w" if "w_enc" in file.declared() else "W"
    layout = Layout(f"{w}_enc", "b_enc", f"{w}_dec", "b_dec", False, True, "threshold")
    tensors = named_tensors(file, layout, optional={"scaling_factor": "F"})
    if "scaling_factor" in tensors and not bool(((tensors["scaling_factor"] - 1).abs() < 1e-5).all()):
        raise UserError(f"{path}: scaling_factor is there, and is not supported unless it is 1.")
    folder = FOLDER.search(source.name)
    if folder is not None and folder[1] is None:
        scale = math.sqrt(tensors["encoder"].shape[1])
        tensors["encoder"], tensors["W_dec"] = tensors["encoder"] / scale, tensors["W_dec"] * scale
    return Found(parts_of("jumprelu", tensors), about(source.name), path)


def about(name: str) -> dict[str, Any]:
    """What the names of repository and folder say."""
    repository, folder = REPOSITORY.search(name), FOLDER.search(name)
    if repository is None:
        return {"architecture": "jumprelu"}
    size, tuned, site = repository.groups()
    said: dict[str, Any] = {"architecture": "jumprelu", "model_name": f"gemma-2-{size}", **PILE}
    said["model_name"] += "-it" if tuned == "it" else ""
    if site == "transcoders":
        said["architecture"] = "jumprelu_transcoder"
    if folder is None:
        return said
    layer = folder[1]
    if layer is None:
        said["hook_name"] = "hook_embed"
    elif site == "transcoders":
        said["hook_name"] = f"blocks.{layer}.ln2.hook_normalized"
        said["hook_name_out"] = f"blocks.{layer}.hook_mlp_out"
    else:
        said["hook_name"] = f"blocks.{layer}.{SITES[site]}"
    return said
