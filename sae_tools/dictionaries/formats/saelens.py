"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, written so that `sae_lens.SAE.load_from_disk` reads them.

What is written is the dictionary folded into the coordinates of its site: SAELens then picks the same features, with
the same activations, and reconstructs what `Space.lift` makes of our reconstruction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.batchtopk import BatchTopKDictionary
from sae_tools.dictionaries.jumprelu import JumpReLUDictionary
from sae_tools.dictionaries.relu import ReLUDictionary
from sae_tools.dictionaries.topk import TopKDictionary
from sae_tools.errors import UserError
from sae_tools.runs.atomic import replacing, write_text
from sae_tools.spaces.space import Space

SAE_LENS_VERSION = "6.54.12"
"""The version whose format is written; without one a folder is taken for an old one and converted."""
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LARGEST_CFG = 16 * 2**20
"""Bytes; a cfg.json is some kilobytes."""
CHUNK = 4096
"""Features that are folded at once."""
FLAT = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "context_size",
    "prepend_bos",
    "dataset_path",
    "model_from_pretrained_kwargs",
)
"""What SAELens before version 6 kept beside the weights' own settings, without a `metadata`."""


@torch.no_grad()
def fold(dictionary: Dictionary, space: Space | None) -> dict[str, Tensor]:
    """The dictionary's parameters in the coordinates of its site, float32 on the CPU, in SAELens's names and layouts.

    With forward(x) = x F + f and lift(z) = z B + b (`Space.affine`): W_dec' = W_dec B, b_dec' = b_dec B + b,
    W_enc' = F W_enc, and b_enc' takes up what is left of (z - b_dec) W_enc + b_enc when (x - b_dec') W_enc' is
    subtracted, so that pre-activations are the same on every row. Features of a free decoder are first rescaled to
    decoder norm 1 in their own space, so activations always have that unit. space None: no change of coordinates.
    Where features fire above a threshold, `threshold` [d_sae] is among them.
    """
    forward = lift = None
    b_dec, rest = dictionary.b_dec.double(), torch.zeros_like(dictionary.b_dec, dtype=torch.float64)
    if space is not None:
        forward, lift = space.affine()
        b_dec = lift(b_dec)
        rest = forward(b_dec) - dictionary.b_dec
    threshold = thresholds(dictionary)
    d_sae, d_in = dictionary.d_sae, len(b_dec)
    shapes = {"b_enc": (d_sae,), "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)}
    folded = {name: torch.empty(shape) for name, shape in shapes.items()}
    for rows in (slice(start, start + CHUNK) for start in range(0, d_sae, CHUNK)):  # float64 copies stay small
        encoder, b_enc, W_dec = (t[rows].double() for t in (dictionary.encoder, dictionary.b_enc, dictionary.W_dec))
        if not dictionary.unit_decoder:
            norms = W_dec.norm(dim=-1, keepdim=True)
            norms = torch.where(norms > 0, norms, 1.0)
            encoder, b_enc, W_dec = encoder * norms, b_enc * norms.squeeze(1), W_dec / norms
            if threshold is not None:
                threshold[rows] *= norms.squeeze(1)
        folded["b_enc"][rows] = (b_enc + encoder @ rest).float().cpu()
        folded["W_enc"][:, rows] = (encoder if forward is None else forward.pull_back(encoder)).T.float().cpu()
        folded["W_dec"][rows] = (W_dec if lift is None else lift.linear(W_dec)).float().cpu()
    if threshold is not None:
        folded["threshold"] = threshold.float().cpu()
    return {**folded, "b_dec": b_dec.float().cpu()}


def thresholds(dictionary: Dictionary) -> Tensor | None:
    """float64 [d_sae], a copy: above which pre-activation each feature fires; None where that is not what decides."""
    if isinstance(dictionary, BatchTopKDictionary | JumpReLUDictionary):
        return dictionary.threshold.detach().double().expand(dictionary.d_sae).clone()
    return None


@torch.no_grad()
def unfold(dictionary: Dictionary, space: Space) -> Dictionary:
    """The inverse of `fold`: a dictionary that acts on the activations of `space`'s site, in the space's coordinates.

    W_dec = F applied to W_dec', b_dec = forward(b_dec'), W_enc = W_enc' seen through lift, b_enc = b_enc'; float32, on
    the CPU. Pre-activations are the same on every row, and lift of the reconstruction is the reconstruction; what was
    folded comes back up to what no activation can show (parts in null directions of the space) and float32 rounding.
    Raises ValueError for a space that is not foldable, and for a dictionary of another width.
    """
    forward, lift = space.affine()
    if dictionary.d_in != space.mean.shape[0]:
        raise ValueError(
            f"a dictionary of width {dictionary.d_in} does not act on activations of {space.mean.shape[0]}"
        )
    encoder, W_dec = [], []
    for rows in torch.arange(dictionary.d_sae).split(CHUNK):
        encoder.append(lift.pull_back(dictionary.encoder[rows]).float().cpu())
        W_dec.append(forward.linear(dictionary.W_dec[rows]).float().cpu())
    b_dec = forward(dictionary.b_dec.double()).float().cpu()
    tensors = (torch.cat(encoder), dictionary.b_enc.detach().float().cpu().clone(), torch.cat(W_dec), b_dec)
    if isinstance(dictionary, TopKDictionary):
        return TopKDictionary(
            *tensors, k=dictionary.k, aux_k=dictionary.aux_k, aux_coefficient=dictionary.aux_coefficient
        )
    if isinstance(dictionary, BatchTopKDictionary):
        return BatchTopKDictionary(
            *tensors,
            k=dictionary.k,
            aux_k=dictionary.aux_k,
            aux_coefficient=dictionary.aux_coefficient,
            threshold_rate=dictionary.threshold_rate,
            threshold=dictionary.threshold.item(),
        )
    if isinstance(dictionary, JumpReLUDictionary):
        return JumpReLUDictionary(
            *tensors,
            dictionary.threshold.detach().float().cpu().clone(),
            bandwidth=dictionary.bandwidth,
            penalty=dictionary.penalty,
            target_l0=dictionary.target_l0,
        )
    return ReLUDictionary(*tensors, form="unit-norm")  # fold has brought free decoders to norm 1


def export_saelens(dictionary: Dictionary, space: Space, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write the folder `path` (made if it is missing; existing files are replaced). UserError where no space is left.

    metadata: JSON-able, goes into cfg.json's `metadata` as it is; give `model_name`, `context_size` and `prepend_bos`,
    which SAELens's activation store asks for, and whatever else is known (`tokens`, …).

    Spaces with ln `mean` are folded with the σ̄ of positions >= 1. Spaces with ln `token` are another map at every
    token and are not folded: the weights stay in the space's coordinates, `metadata.coordinates` says "space", and
    `hook_name` is null, so that nobody applies them to the site's activations by mistake.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    foldable = space.foldable
    tensors = fold(dictionary, space if foldable else None)
    architecture: dict[str, Any] = {"architecture": "standard"}
    if isinstance(dictionary, TopKDictionary):
        architecture = {"architecture": "topk", "k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    elif "threshold" in tensors:
        architecture = {"architecture": "jumprelu"}
    known = {
        "sae_lens_version": SAE_LENS_VERSION,
        "hook_name": space.site.hook_name if foldable else None,
        "hook_head_index": None,
        "coordinates": "site" if foldable else "space",
        "activation_unit": "the feature's own space (metadata.space), decoder row of norm 1 there",
        "site": space.site.name,
        "site_hook_name": space.site.hook_name,
        "space": space.describe(),
        "training_architecture": _describe(dictionary),
    }
    if not foldable:
        known["note"] = (
            "Weights act on the space's coordinates ((x M) / sigma_t - centre) / scale, with the final norm's scale "
            "sigma_t at each token, which no fixed weights on the site's activations can express."
        )
    cfg = {
        **architecture,
        "d_in": tensors["W_enc"].shape[0],
        "d_sae": tensors["W_enc"].shape[1],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**metadata, **known},
    }
    with replacing(path / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_text(path / CFG, json.dumps(cfg, indent=2, allow_nan=False) + "\n")


def _describe(dictionary: Dictionary) -> dict[str, Any]:
    if isinstance(dictionary, TopKDictionary | BatchTopKDictionary):
        return {
            "kind": "topk" if isinstance(dictionary, TopKDictionary) else "batchtopk",
            "k": dictionary.k,
            "aux_k": dictionary.aux_k,
            "aux_coefficient": dictionary.aux_coefficient,
        }
    if isinstance(dictionary, JumpReLUDictionary):
        return {
            "kind": "jumprelu",
            "bandwidth": dictionary.bandwidth,
            "penalty": dictionary.penalty,
            "target_l0": dictionary.target_l0,
        }
    assert isinstance(dictionary, ReLUDictionary)
    return {"kind": "relu", "form": dictionary.form}


def load_saelens(path: str | Path, *, fold_decoder_norm: bool | None = None) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) from a SAELens folder of architecture `topk`, `jumprelu` or `standard`, whoever wrote it.

    The dictionary acts on the site's activations (or on the space's, where metadata.coordinates is "space"), float32,
    on the CPU, and does what SAELens would do with the folder: `rescale_acts_by_decoder_norm` and
    `apply_b_dec_to_input: false` are folded into the weights. metadata is cfg.json's own, with `architecture`, `d_in`
    and `d_sae` beside it. A `jumprelu` folder that we wrote for a BatchTopK dictionary comes back as one.

    fold_decoder_norm: rescale the features of a `standard` or `jumprelu` dictionary, thresholds with them, to decoder
    rows of norm 1. None: do it unless we wrote the folder ourselves; SAELens leaves such decoders as training left
    them, so their activations have no unit.

    Raises UserError, one sentence, for whatever is missing, damaged, too large for its file or not supported. Nothing
    is allocated that the file does not hold.
    """
    path = Path(path)
    cfg = _read_cfg(path / CFG)
    metadata = cfg.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError(f"{path / CFG}: 'metadata' must be an object.")
    metadata = {key: cfg[key] for key in FLAT if key in cfg} | metadata
    architecture = _supported(cfg, path / CFG)
    tensors = _read_weights(path / WEIGHTS, cfg, architecture)
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if cfg.get("apply_b_dec_to_input", True) is False:
        b_enc = b_enc + b_dec @ W_enc
    ours = metadata.get("training_architecture") if isinstance(metadata.get("space"), dict) else None
    fold_norms = cfg.get("rescale_acts_by_decoder_norm", False) is True
    if architecture != "topk":
        fold_norms = ours is None if fold_decoder_norm is None else fold_decoder_norm
    if fold_norms:
        norms = W_dec.norm(dim=-1)
        scaling = torch.where(norms > 0, norms, 1.0)
        W_enc, b_enc, W_dec = W_enc * scaling, b_enc * scaling, W_dec / scaling.unsqueeze(1)
        if "threshold" in tensors:
            tensors["threshold"] = tensors["threshold"] * scaling
    dictionary: Dictionary
    if architecture == "topk":
        dictionary = TopKDictionary(W_enc.T, b_enc, W_dec, b_dec, k=cfg["k"])
    elif architecture == "jumprelu":
        dictionary = _thresholded((W_enc.T, b_enc, W_dec, b_dec), tensors["threshold"], ours)
    else:
        dictionary = ReLUDictionary(W_enc.T, b_enc, W_dec, b_dec, form="decoder-norm")
    return dictionary, {**metadata, "architecture": architecture, "d_in": W_enc.shape[0], "d_sae": W_enc.shape[1]}


def _thresholded(parameters: tuple[Tensor, Tensor, Tensor, Tensor], threshold: Tensor, ours: Any) -> Dictionary:
    """ours: what we wrote of how it was trained, or None; a file may say anything there, which decides nothing."""
    k = ours.get("k") if isinstance(ours, dict) and ours.get("kind") == "batchtopk" else None
    if type(k) is int and 1 <= k <= len(threshold) and bool((threshold == threshold[0]).all()):
        return BatchTopKDictionary(*parameters, k=k, threshold=threshold[0].item())
    return JumpReLUDictionary(*parameters, threshold, unit_decoder=False)


def _read_cfg(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CFG:
            raise UserError(f"{path} is larger than {LARGEST_CFG >> 20} MiB, so it is no SAE's configuration.")
        cfg = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON.") from None
    if not isinstance(cfg, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(cfg).__name__}.")
    return cfg


def _supported(cfg: dict[str, Any], path: Path) -> str:
    """The architecture, after everything in cfg that would change what the weights mean has been looked at."""
    architecture = cfg.get("architecture", "standard")
    if architecture not in ("topk", "jumprelu", "standard"):
        raise UserError(
            f"{path}: architecture {architecture!r} is not supported; expected 'topk', 'jumprelu' or 'standard'."
        )
    for key in ("d_in", "d_sae", *(("k",) if architecture == "topk" else ())):
        value = cfg.get(key)
        if type(value) is not int or value < 1:
            raise UserError(f"{path}: '{key}' must be a positive integer, and is {str(value)[:50]!r}.")
    if architecture == "topk" and cfg["k"] > cfg["d_sae"]:
        raise UserError(f"{path}: k = {cfg['k']} is larger than d_sae = {cfg['d_sae']}.")
    plain = {
        "normalize_activations": (None, "none", False),
        "reshape_activations": (None, "none", "hook_z"),
        "activation_fn_str": (None, "relu"),
        "activation_fn": (None, "relu"),
        "finetuning_scaling_factor": (None, False),
        "rescale_acts_by_decoder_norm": (None, True, False),
        "apply_b_dec_to_input": (None, True, False),
    }
    for key, allowed in plain.items():
        if not any(cfg.get(key) is value or cfg.get(key) == value for value in allowed):
            raise UserError(f"{path}: {key} = {str(cfg[key])[:50]!r} is not supported.")
    return architecture


def _read_weights(path: Path, cfg: dict[str, Any], architecture: str) -> dict[str, Tensor]:
    d_in, d_sae = cfg["d_in"], cfg["d_sae"]
    shapes = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    if architecture == "jumprelu":
        shapes["threshold"] = [d_sae]
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(shapes):
                wrong = sorted(names ^ set(shapes))[0]
                found = "is missing" if wrong in shapes else "is not expected"
                raise UserError(f"{path}: tensor '{wrong[:50]}' {found} for this architecture.")
            for name, shape in shapes.items():
                found = list(file.get_slice(name).get_shape())
                if found != shape:
                    raise UserError(f"{path}: {name} has shape {found}, and {CFG} says {shape}.")
            # Copies: the file's own pages would be gone if somebody truncated it under us.
            tensors = {name: file.get_tensor(name).clone() for name in shapes}
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({str(error)[:100]}).") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name} holds something else than finite floating-point numbers.")
    return {name: tensor.float() for name, tensor in tensors.items()}
