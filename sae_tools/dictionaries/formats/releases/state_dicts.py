"""Releases of single files that `torch.save` wrote: Qwen Scope, Goodfire's SAEs, qresearch's of DeepSeek R1, and
Kissane and Connor's of GPT-2's attention.

Nothing in such a file says what it is for, the names do. Only the last subtract b_dec from what they encode.

Qwen Scope (arXiv 2605.11887), TopK: `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer0.sae.pt`, W_enc [d_sae, d_in], b_enc,
W_dec [d_in, d_sae], b_dec. k is in the name of the repository alone.
Goodfire, ReLU: `Llama-3.1-8B-Instruct-SAE-l19.pth`, encoder_linear.weight [d_sae, d_in] and so on.
qresearch, ReLU: `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`, encoder.weight [d_sae, d_in] and so on.
Kissane et al. (arXiv 2406.17759), ReLU: `gpt2-small_L0_Hcat_z_….pt`, W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in],
b_dec, of the heads' outputs side by side; `…_cfg.json` beside it says which layer.
"""

from __future__ import annotations

import re
from typing import Any

from sae_tools.dictionaries.formats.files import positive, read_json, shown
from sae_tools.dictionaries.formats.releases.source import LMSYS, Found, Layout, Source, named_tensors, parts_of, text
from sae_tools.dictionaries.formats.torch_file import TorchFile
from sae_tools.errors import UserError

QWEN = Layout("W_enc", "b_enc", "W_dec", "b_dec", True, False)
GOODFIRE = Layout(
    "encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias", True, False
)
DEEPSEEK = Layout("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", True, False)
HOOK_Z = Layout("W_enc", "b_enc", "W_dec", "b_dec", False, True)
QWEN_FILE = re.compile(r"(?:^|/)layer(\d+)\.sae\.pt$")
QWEN_REPOSITORY = re.compile(r"SAE-Res-(Qwen[\w.-]*?)-W\d+K-L0_(\d{1,9})(?!\d)")
GOODFIRE_FILE = re.compile(r"(?:^|/)(Llama-3\.[13]-\d+B-Instruct)-SAE-l(\d+)\.pth?$")
DEEPSEEK_FILE = re.compile(r"(?:^|/)(DeepSeek-R1-Distill-Llama-8B)-SAE-l(\d+)\.pt$")
HOOK_Z_FILE = re.compile(r"(?:^|/)gpt2-small_L\d+_Hcat_z_[\w.+-]*\.pt$")


def read_qwen(source: Source) -> Found:
    repository = QWEN_REPOSITORY.search(source.name)
    if repository is None:
        raise UserError(
            f"{source.path}: how many features fire on a row is not in the file; expected the folder's name that it "
            "has on the hub, such as SAE-Res-Qwen3-8B-Base-W64K-L0_50."
        )
    tensors = named_tensors(TorchFile(source.path), QWEN)
    k, d_sae = int(repository[2]), len(tensors["b_enc"])
    if not 1 <= k <= d_sae:
        raise UserError(f"{source.path}: it has {d_sae} features, and its folder's name says that {k} of them fire.")
    return Found(parts_of("topk", tensors, {"k": k}), about_qwen(source.name), source.path)


def about_qwen(name: str) -> dict[str, Any]:
    said: dict[str, Any] = {"architecture": "topk"}
    if repository := QWEN_REPOSITORY.search(name):
        said |= {"model_name": f"Qwen/{repository[1]}", "context_size": 1024, "prepend_bos": True}
    if layer := QWEN_FILE.search(name):
        said |= {"hook_name": f"blocks.{layer[1]}.hook_resid_post", "hf_hook_name": f"model.layers.{layer[1]}"}
    return said


def read_goodfire(source: Source) -> Found:
    tensors = named_tensors(TorchFile(source.path), GOODFIRE)
    return Found(parts_of("relu", tensors), about_goodfire(source.name), source.path)


def about_goodfire(name: str) -> dict[str, Any]:
    return _about(GOODFIRE_FILE, name, "meta-llama")


def read_deepseek(source: Source) -> Found:
    tensors = named_tensors(TorchFile(source.path), DEEPSEEK)
    return Found(parts_of("relu", tensors), about_deepseek(source.name), source.path)


def about_deepseek(name: str) -> dict[str, Any]:
    said = _about(DEEPSEEK_FILE, name, "deepseek-ai")
    return {**said, "context_size": 1024} if "hook_name" in said else said


def _about(file: re.Pattern[str], name: str, owner: str) -> dict[str, Any]:
    found = file.search(name)
    if found is None:
        return {"architecture": "standard"}
    hook = f"blocks.{found[2]}.hook_resid_post"
    return {"architecture": "standard", "model_name": f"{owner}/{found[1]}", "hook_name": hook, **LMSYS}


def read_hook_z(source: Source) -> Found:
    where = source.path.with_name(source.path.name.removesuffix(".pt") + "_cfg.json")
    cfg = read_json(where)
    tensors = named_tensors(TorchFile(source.path), HOOK_Z)
    for key, size in (("act_size", tensors["encoder"].shape[1]), ("dict_size", tensors["encoder"].shape[0])):
        if positive(cfg, key, where) != size:
            raise UserError(f"{where}: {key} is {shown(cfg[key])}, and the tensors of {source.path.name} say {size}.")
    return Found(parts_of("relu", tensors, subtract_b_dec=True), about_hook_z(cfg), source.path)


def about_hook_z(cfg: dict[str, Any]) -> dict[str, Any]:
    """What the configuration says; all of these are of one model."""
    said = {"architecture": "standard", "model_name": "gpt2-small", "dataset_path": "Skylion007/openwebtext"}
    hook = text(cfg.get("act_name"))
    return {**said, "context_size": 128, "prepend_bos": True, **({} if hook is None else {"hook_name": hook})}
