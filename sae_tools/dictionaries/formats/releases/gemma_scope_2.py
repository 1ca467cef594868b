"""Gemma Scope 2: JumpReLU SAEs, transcoders and skip transcoders of Gemma 3, `params.safetensors` and `config.json`.

Tensors w_enc [d_in, d_sae], b_enc, w_dec [d_sae, d_in], b_dec, threshold [d_sae], and where a transcoder is `affine`
affine_skip_connection [d_in, d_in], by which rows are multiplied as it is; b_dec is not subtracted. SAEs of the
attention read the heads' outputs side by side. config.json names modules of transformers; without it the folder's name
does: `gemma-scope-2-4b-pt/transcoder_all/layer_9_width_16k_l0_small_affine`.

Transcoders read what the MLP reads, the stream after its norm, says config.json. SAELens calls that hook_mlp_in, which
in TransformerLens is the stream before the norm; so metadata has its name as `hook_name`, and as `site` the place.
"""

from __future__ import annotations

import re
from typing import Any

from sae_tools.dictionaries.formats.files import SafetensorsFile, read_json, shown
from sae_tools.dictionaries.formats.releases.source import PILE, Found, Layout, Source, named_tensors, parts_of, text
from sae_tools.errors import UserError

WEIGHTS, CONFIG = "params.safetensors", "config.json"
LAYOUT = Layout("w_enc", "b_enc", "w_dec", "b_dec", False, True, "threshold")
SKIP = "affine_skip_connection"
REPOSITORY = re.compile(r"gemma-scope-2-(\d+[mb])-(pt|it)(?![a-z])")
FOLDER = re.compile(r"(?:^|/)(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/layer_(\d+)_width")
SITES = {
    "resid_post": ("hook_resid_post", ".output"),
    "attn_out": ("attn.hook_z", ".self_attn.o_proj.input"),
    "mlp_out": ("hook_mlp_out", ".post_feedforward_layernorm.output"),
    "transcoder": ("hook_mlp_in", ".pre_feedforward_layernorm.output"),
}
"""By the folder's name: the hook that SAELens calls it, and where in a layer of transformers' model it is."""


def read(source: Source) -> Found:
    path, config = source.path / WEIGHTS, source.path / CONFIG
    cfg = read_json(config) if config.exists() or config.is_symlink() else {}
    if cfg.get("architecture", "jump_relu") != "jump_relu":
        raise UserError(f"{config}: architecture {shown(cfg['architecture'])} is not supported; expected 'jump_relu'.")
    said = about(source.name, cfg)
    file = SafetensorsFile(path)
    skip = SKIP in file.declared()
    affine = cfg.get("affine_connection")
    if affine is not None and affine is not skip:
        has = "one" if skip else "none"
        raise UserError(f"{config}: affine_connection is {shown(affine)}, and {WEIGHTS} has {has}.")
    tensors = named_tensors(file, LAYOUT, optional={SKIP: "DD"})
    d_sae = len(tensors["b_enc"])
    if "width" in cfg and cfg["width"] != d_sae:
        raise UserError(f"{config}: width is {shown(cfg['width'])}, and {WEIGHTS} has {d_sae} features.")
    if skip:
        said["architecture"] = "jumprelu_skip_transcoder"
    return Found(parts_of("jumprelu", tensors, W_skip=tensors.get(SKIP)), said, path)


def about(name: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """What the names of repository and folder say, and config.json where they say nothing."""
    repository, folder = REPOSITORY.search(name), FOLDER.search(name)
    said: dict[str, Any] = {"architecture": "jumprelu"}
    model = text(cfg.get("model_name")) or (f"gemma-3-{repository[1]}-{repository[2]}" if repository else None)
    if model is not None:
        model = model if "google" in model else f"google/{model}"
        model = model.replace("-v3", "-3")
        said["model_name"] = model.replace("-pt", "") if "270m" in model else model  # the hub has no 270m-pt
        said |= PILE
    if folder is not None:
        site, layer = folder.groups()
        where = f"model.layers.{layer}"
        said |= _hooks(where + SITES[site][1], where + SITES["mlp_out"][1] if site == "transcoder" else None)
    else:
        said |= _hooks(cfg.get("hf_hook_point_in"), cfg.get("hf_hook_point_out"))
    return said


def _hooks(reads: object, writes: object) -> dict[str, Any]:
    """By the names of transformers' modules; {} where one is not known."""
    hook, out = _hook(reads), _hook(writes)
    if hook is None:
        return {}
    said: dict[str, Any] = {"hook_name": hook, "hf_hook_name": reads}
    if hook.endswith("hook_mlp_in"):
        said["site"] = f"mlp_in@{hook.split('.')[1]}"
    if out is not None and out != hook:
        said |= {"hook_name_out": out, "hf_hook_name_out": writes, "architecture": "jumprelu_transcoder"}
    return said


def _hook(module: object) -> str | None:
    found = re.fullmatch(r"model\.layers\.(\d{1,4})(\.[\w.]+)", module) if isinstance(module, str) else None
    hooks = {inside: hook for hook, inside in SITES.values()}
    return f"blocks.{found[1]}.{hooks[found[2]]}" if found and found[2] in hooks else None
