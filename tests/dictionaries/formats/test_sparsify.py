"""sparsify's folders, made here as it saves them, and what its SparseCoder would do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.errors import UserError
from tests.dictionaries.formats.examples import close, rows

D, M, K = 12, 48, 6


def saved(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Tensor]:
    cfg: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": 4,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
        **changes,
    }
    g = torch.Generator().manual_seed(5)
    shapes = {"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}
    shapes |= {"W_skip": (D, D)} if cfg["skip_connection"] else {}
    tensors = {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return {name: tensor.float() for name, tensor in tensors.items()}


def theirs(t: dict[str, Tensor], x: Tensor, transcode: bool) -> tuple[Tensor, Tensor]:
    """(dense activations, output)."""
    pre = ((x if transcode else x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    top = pre.topk(K, dim=-1, sorted=False)
    f = torch.zeros_like(pre).scatter(-1, top.indices, top.values)
    return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_their_coder_does_what_is_read(dtype: torch.dtype, transcode: bool, skip: bool, tmp_path: Path) -> None:
    tensors = saved(tmp_path / "layers.3", dtype, transcode=transcode, skip_connection=skip, multi_topk=True)
    (tmp_path / "config.json").write_text(json.dumps({"model": "gpt2", "dataset": "text", "ctx_len": 64}))
    read = load_dictionary(tmp_path / "layers.3")
    f, output = theirs(tensors, rows(D), transcode)
    with torch.no_grad():
        assert close(read.encode(rows(D)), f) and close(read(rows(D)), output)
    assert torch.allclose(read.decoder_norms, tensors["W_dec"].norm(dim=-1))  # TopK: norms are not folded
    said = read.metadata
    assert "decoder row as it is" in said["activation_unit"]
    assert (said["model_name"], said["dataset_path"], said["context_size"]) == ("gpt2", "text", 64)
    assert said["hook_name_out" if transcode else "hook_name"] == "blocks.3.hook_resid_post"
    assert said["sparsify"]["multi_topk"] is True
    assert ("transcoder" in said["architecture"]) == transcode


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax' is not supported; expected 'topk'"),
        ({"signed": True}, "signed activations are not supported"),
        ({"num_latents": 47}, r"encoder.weight has shape \[48, 12\], and cfg.json says \[47, 12\]"),
        ({"expansion_factor": 10**12}, "encoder.weight has shape"),
        ({"k": 49}, "k = 49 is larger than the number of latents, 48"),
        ({"k": True}, "'k' must be a positive integer"),
        ({"d_in": None}, "'d_in' must be a positive integer"),
        ({"transcode": "yes"}, "transcode = 'yes' is not supported"),
        ({"skip_connection": 1}, "skip_connection = 1 is not supported"),
        ({"metadata": []}, "'metadata' must be an object"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**cfg, **changes}))
    with pytest.raises(UserError, match=sentence):
        load_dictionary(tmp_path)
