"""Releases in layouts of their own where nothing but a file is there: no registry, no names of folders, no SAELens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_tools.dictionaries.formats.read import load_dictionary, read_dictionary
from sae_tools.errors import UserError
from tests.dictionaries.formats import released
from tests.dictionaries.formats.examples import close, rows
from tests.dictionaries.formats.released import D, weights


def test_a_renamed_folder_of_gemma_scope_lacks_model_and_hook(tmp_path: Path) -> None:
    released.gemma_scope(tmp_path / "mine")
    read, said = read_dictionary(tmp_path / "mine" / "params.npz", fold_decoder_norm=False)  # the file stands for it
    w, x = weights(), rows(D)
    pre = x @ w["encoder"].T + w["b_enc"]
    with torch.no_grad():
        assert close(read(x), torch.where(pre > w["threshold"], pre, 0) @ w["W_dec"] + w["b_dec"])
    assert said["architecture"] == "jumprelu" and "hook_name" not in said and "model_name" not in said


def test_a_renamed_folder_of_gemma_scope_2_is_told_by_its_configuration(tmp_path: Path) -> None:
    released.gemma_scope_2("transcoder", affine=True)(tmp_path / "layer_7")
    read, said = read_dictionary(shutil.move(tmp_path / "layer_7", tmp_path / "mine"))
    assert said["model_name"] == "google/gemma-3-270m" and said["architecture"] == "jumprelu_skip_transcoder"
    assert (said["hook_name"], said["hook_name_out"]) == ("blocks.7.hook_mlp_in", "blocks.7.hook_mlp_out")
    assert said["site"] == "mlp_in@7"  # after the norm, as the configuration's module is
    w, x = weights(), rows(D)
    pre = x @ w["encoder"].T + w["b_enc"]
    with torch.no_grad():
        output = torch.where(pre > w["threshold"], pre, 0) @ w["W_dec"] + w["b_dec"] + x @ w["skip"]
        assert close(read(x), output)
    assert read.W_skip is not None


@pytest.mark.parametrize("write", [released.llama_scope, released.llama_scope_r1])
def test_llama_scope_by_its_own_norm(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    read, said = read_dictionary(tmp_path)
    w, s, x = weights(), released.NORM_FACTOR, rows(D)
    pre = x * s @ w["encoder"].T + w["b_enc"]  # of what the dictionary was trained on
    threshold = 0.35 * s if write is released.llama_scope else w["threshold"]
    with torch.no_grad():
        assert close(read(x), (torch.where(pre > threshold, pre, 0).relu() @ w["W_dec"] + w["b_dec"]) / s)
    assert said["hook_name"] == "blocks.15.hook_resid_post" and "model_name" not in said


def test_qwen_scope_needs_the_folders_name(tmp_path: Path) -> None:
    released.QWEN(tmp_path / "layer4.sae.pt")
    with pytest.raises(UserError, match="how many features fire on a row is not in the file"):
        load_dictionary(tmp_path / "layer4.sae.pt")
    folder = tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_65"
    folder.mkdir()
    shutil.copy(tmp_path / "layer4.sae.pt", folder)
    with pytest.raises(UserError, match="has 64 features, and its folder's name says that 65 of them fire"):
        load_dictionary(folder / "layer4.sae.pt")
    read = load_dictionary(shutil.copytree(folder, tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_9") / "layer4.sae.pt")
    assert (read.encode(rows(D)) > 0).sum(1).max() == 9 and read.metadata["model_name"] == "Qwen/Qwen3-8B-Base"


@pytest.mark.parametrize(
    ("write", "name"), [(released.QWEN, "layer4.sae.pt"), (released.qwen_transcoder, "layer_3.safetensors")]
)
def test_a_folder_of_files_names_one(write: Any, name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    (tmp_path / "README.md").touch()
    with pytest.raises(UserError, match=rf"holds 1 of a release's files: name one, such as .*/{name}\.$"):
        load_dictionary(tmp_path)


def test_a_file_of_layers_alone_is_no_release(tmp_path: Path) -> None:
    """Anybody's file may be called layer_3.safetensors: the run's configuration has to be beside it."""
    path = tmp_path / "layer_3.safetensors"
    released.qwen_transcoder(path)
    assert load_dictionary(path).metadata["model_name"] == "Qwen/Qwen3-4B"
    (tmp_path / "wandb-config.yaml").unlink()
    with pytest.raises(UserError, match="is no dictionary"):
        load_dictionary(path)


def test_a_scaling_factor_that_is_not_one_is_refused(tmp_path: Path) -> None:
    released.gemma_scope(tmp_path / "a", scaling_factor=np.ones(released.F, dtype=np.float32))
    load_dictionary(tmp_path / "a")
    released.gemma_scope(tmp_path / "b", scaling_factor=np.full(released.F, 2, dtype=np.float32))
    with pytest.raises(UserError, match="scaling_factor is there, and is not supported unless it is 1"):
        load_dictionary(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"act_fn": "topk"}, "act_fn = 'topk' is not supported; expected 'jumprelu'"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder = true is not supported"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "only dictionaries of one site are read"),
        ({"d_sae": 128}, r"it says 128 features of width 12, and the encoder has \[64, 12\]"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold must be a positive number, and is -1"),
        ({"dataset_average_activation_norm": {}}, "dataset_average_activation_norm.in must be a positive number"),
    ],
    ids=str,
)
def test_configurations_of_llama_scope_that_are_not_read(changes: Any, sentence: str, tmp_path: Path) -> None:
    released.llama_scope(tmp_path)
    cfg = json.loads((tmp_path / "hyperparams.json").read_text())
    (tmp_path / "hyperparams.json").write_text(json.dumps({**cfg, **changes}))
    with pytest.raises(UserError, match=sentence):
        load_dictionary(tmp_path)


def test_r1_distill_without_a_norm_is_refused(tmp_path: Path) -> None:
    released.llama_scope_r1(tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("dataset")}
    save_file(kept, tmp_path / "sae_weights.safetensors")
    with pytest.raises(UserError, match="the mean norm of activations, tensor .* is missing"):
        load_dictionary(tmp_path)
