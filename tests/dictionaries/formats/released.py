"""Small files in the layouts of releases, with weights at random, in the names that repositories on the hub have."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F = 12, 64
NORM_FACTOR = 2.5
"""Of Llama Scope's own files; the registry says others."""


class Example(NamedTuple):
    """A real name in SAELens's registry, and what stands in for it."""

    release: str
    sae_id: str
    repository: str
    path: str
    loader: str
    write: Callable[[Path], None]
    """Given the local path that stands for the repository's `path`."""
    heads: int = 1
    """SAELens wants rows of so many heads."""


def weights(seed: int = 3) -> dict[str, Tensor]:
    """encoder [F, D], b_enc, W_dec [F, D], b_dec, threshold [F], skip [D, D]; decoder norms all differ."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "encoder": draw(F, D) / D**0.5,
        "b_enc": 0.3 * draw(F),
        "W_dec": draw(F, D) * torch.linspace(0.3, 3, F).unsqueeze(1),
        "b_dec": 0.5 * draw(D),
        "threshold": 0.5 * draw(F).abs(),
        "skip": draw(D, D) / D**0.5,
    }


def gemma_scope(path: Path, **changes: Any) -> None:
    w = weights()
    arrays = {"W_enc": w["encoder"].T, "b_enc": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    arrays |= {"threshold": w["threshold"]}
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / "params.npz", **{name: array.numpy() for name, array in arrays.items()}, **changes)


def gemma_scope_2(site: str, affine: bool = False, config: bool = True) -> Callable[[Path], None]:
    inside = {
        "resid_post": "output",
        "attn_out": "self_attn.o_proj.input",
        "mlp_out": "post_feedforward_layernorm.output",
    }

    def write(path: Path) -> None:
        w = weights()
        tensors = {"w_enc": w["encoder"].T, "b_enc": w["b_enc"], "w_dec": w["W_dec"], "b_dec": w["b_dec"]}
        tensors |= {"threshold": w["threshold"]} | ({"affine_skip_connection": w["skip"]} if affine else {})
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "params.safetensors")
        layer = f"model.layers.{path.name.split('_')[1]}."
        reads = layer + inside.get(site, "pre_feedforward_layernorm.output")
        cfg = {
            "hf_hook_point_in": reads,
            "hf_hook_point_out": layer + inside["mlp_out"] if site == "transcoder" else reads,
            "width": F,
            "model_name": "gemma-v3-270m-pt",
            "architecture": "jump_relu",
            "l0": 20,
            "affine_connection": affine,
        }
        if config:
            (path / "config.json").write_text(json.dumps(cfg))

    return write


def linear(names: tuple[str, str, str, str]) -> dict[str, Tensor]:
    w = weights()
    tensors = (w["encoder"], w["b_enc"], w["W_dec"].T, w["b_dec"])
    return {name: tensor.contiguous() for name, tensor in zip(names, tensors, strict=True)}


LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def llama_scope(path: Path) -> None:
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file(linear(LINEAR), path / "checkpoints" / "final.safetensors")
    cfg = {
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.35,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": math.sqrt(D) / NORM_FACTOR, "out": math.sqrt(D) / NORM_FACTOR},
        "apply_decoder_bias_to_pre_encoder": False,
        "d_model": D,
        "d_sae": F,
    }
    (path / "hyperparams.json").write_text(json.dumps(cfg))


def llama_scope_r1(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    hook = "blocks.15.hook_resid_post"
    norm = {f"dataset_average_activation_norm.{hook}": torch.tensor(math.sqrt(D) / NORM_FACTOR)}
    threshold = {"log_jumprelu_threshold": weights()["threshold"].log()}
    save_file(linear(LINEAR) | threshold | norm, path / "sae_weights.safetensors")
    cfg = {"hook_point_in": hook, "hook_point_out": hook, "d_model": D, "expansion_factor": F / D}
    cfg |= {"act_fn": "jumprelu", "sae_type": "sae", "norm_activation": "dataset-wise"}
    (path / "config.json").write_text(json.dumps(cfg))


def saved(tensors: dict[str, Tensor]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(OrderedDict(tensors), path)

    return write


def qwen_transcoder(path: Path) -> None:
    w = weights()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"W_enc": w["encoder"], "b_enc": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}, path)
    run = {"d_model": {"value": D}, "d_feature": {"value": F}, "batch_size": {"value": 2048}}
    (path.parent / "wandb-config.yaml").write_text(json.dumps(run))
    (path.parent / "config.yaml").write_text("model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\n")


def hook_z(path: Path) -> None:
    w = weights()
    saved({"W_enc": w["encoder"].T, "b_enc": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]})(path)
    cfg = {"act_size": D, "dict_size": F, "act_name": "blocks.5.attn.hook_z"}
    path.with_name(path.name.removesuffix(".pt") + "_cfg.json").write_text(json.dumps(cfg))


GOODFIRE_NAMES = ("encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")
GOODFIRE = saved(linear(GOODFIRE_NAMES))
DEEPSEEK = saved(linear(LINEAR))
QWEN = saved(linear(("W_enc", "b_enc", "W_dec", "b_dec")))


def _examples() -> list[Example]:
    found = []

    def add(loader: str, release: str, sae_id: str, repository: str, path: str, write: Any, heads: int = 1) -> None:
        found.append(Example(release, sae_id, repository, path, loader, write, heads))

    for site, short in (("resid_post", "res"), ("attn_out", "att"), ("mlp_out", "mlp")):
        name = f"layer_{9 if short == 'res' else 12}_width_16k_l0_big"
        release = f"gemma-scope-2-270m-pt-{short}"
        add("gemma_3", release, name, "google/gemma-scope-2-270m-pt", f"{site}/{name}", gemma_scope_2(site))
    for affine in (False, True):
        name = "layer_5_width_16k_l0_small" + affine * "_affine"
        release, repository = "gemma-scope-2-4b-it-transcoders-all", "google/gemma-scope-2-4b-it"
        add("gemma_3", release, name, repository, f"transcoder_all/{name}", gemma_scope_2("transcoder", affine, False))
    for short in ("res", "att", "mlp"):
        sae_id = {"res": "layer_20/width_16k/canonical"}.get(short, "layer_0/width_16k/canonical")
        path = {"res": "layer_20/width_16k/average_l0_71", "att": "layer_0/width_16k/average_l0_104"}
        release, repository = f"gemma-scope-2b-pt-{short}-canonical", f"google/gemma-scope-2b-pt-{short}"
        there = path.get(short, "layer_0/width_16k/average_l0_119")
        add("gemma_2", release, sae_id, repository, there, gemma_scope, 4 if short == "att" else 1)
    name = "embedding/width_4k/average_l0_6"
    add("gemma_2", "gemma-scope-2b-pt-res", name, "google/gemma-scope-2b-pt-res", name, gemma_scope)
    name, repository = "layer_0/width_16k/average_l0_76", "google/gemma-scope-2b-pt-transcoders"
    add("gemma_2_transcoder", "gemma-scope-2b-pt-transcoders", name, repository, name, gemma_scope)
    repository = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    add("qwen_scope", "qwen-scope-3-1.7b-base-w32k-l50", "layer4", repository, "layer4.sae.pt", QWEN)
    name = "Llama3_1-8B-Base-L15R-8x"
    add("llama_scope", "llama_scope_lxr_8x", "l15r_8x", "fnlp/Llama3_1-8B-Base-LXR-8x", name, llama_scope)
    name, repository = "400M-Slimpajama-400M-OpenR1-Math-220k/L15R", "fnlp/Llama-Scope-R1-Distill"
    sae_id = "l15r_400m_slimpajama_400m_openr1_math"
    add("llama_scope_r1_distill", "llama_scope_r1_distill", sae_id, repository, name, llama_scope_r1)
    name, repository = "layer_3.safetensors", "mwhanna/qwen3-4b-transcoders"
    add("mwhanna_transcoder", "mwhanna-qwen3-4b-transcoders", "layer_3", repository, name, qwen_transcoder)
    name, repository = "Llama-3.1-8B-Instruct-SAE-l19.pth", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
    add("goodfire", "goodfire-llama-3.1-8b-instruct", "layer_19", repository, name, GOODFIRE)
    name, repository = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19"
    release = "deepseek-r1-distill-llama-8b-qresearch"
    add("deepseek_r1", release, "blocks.19.hook_resid_post", repository, name, DEEPSEEK)
    name = "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds49152_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt"
    repository = "ckkissane/attn-saes-gpt2-small-all-layers"
    add("connor_rob_hook_z", "gpt2-small-hook-z-kk", "blocks.5.hook_z", repository, name, hook_z, 4)
    return found


EXAMPLES = _examples()
