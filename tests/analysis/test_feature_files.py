from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_tools.analysis.feature_files import LOGITS, SCHEMA, FeatureFile, save_features
from sae_tools.errors import UserError
from sae_tools.runs.tensors import save_tensors

SIZES = {"N": 4, "E": 6, "W": 9, "F": 3, "L": 2, "H": 40, "K": 5, "C": 5, "D": 2, "M": 3}


def made_up() -> dict[str, Tensor]:
    def size(dim: str | int) -> int:
        return dim if isinstance(dim, int) else SIZES[dim[0]] + dim.endswith("+1")

    tensors = {
        name: torch.zeros([size(dim) for dim in dims], dtype=getattr(torch, dtype))
        for name, (dtype, dims) in SCHEMA.items()
    }
    tensors["example_start"] = torch.tensor([0, 2, 2, 5, 6])
    tensors["window_start"] = torch.tensor([0, 1, 1, 4, 6, 8, 9])
    tensors["effect_start"] = torch.tensor([0, 1, 1, 1, 3, 3, 3])
    tensors["window_value"] = torch.arange(9.0)
    tensors["effect_offset"] = torch.arange(3).byte()
    return tensors


def test_written_and_read(tmp_path: Path):
    path = tmp_path / "it.safetensors"
    save_features(path, made_up(), {"id": "it"})
    file = FeatureFile.load(path)
    assert file.meta == {"id": "it", "format": 1} and file.d_sae == 4 and file.has_logits
    assert file.examples(2) == slice(2, 5) and file.examples(1) == slice(2, 2)
    assert file.window(2)[1].tolist() == [1, 2, 3] and file.window(1)[0].tolist() == []
    assert file.effect(3)[0].tolist() == [1, 2]


def test_without_logit_weights(tmp_path: Path):
    tensors = {name: tensor for name, tensor in made_up().items() if name not in LOGITS}
    save_features(tmp_path / "a", tensors, {})
    assert not FeatureFile.load(tmp_path / "a").has_logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fires": None}, "fires is missing"),
        ({"logit_norm": None}, "logit_norm is missing"),
        ({"maximum": torch.zeros(5)}, r"maximum is torch.float32 \[5\] instead of float32 \[N\]"),
        ({"cosine": torch.zeros(4, dtype=torch.float64)}, "cosine is torch.float64"),
        ({"example_token": torch.zeros(7, dtype=torch.int32)}, r"example_group is torch.uint8 \[6\]"),
        (
            {"histogram": torch.zeros(4, 43, dtype=torch.int32)},
            r"histogram is torch.int32 \[4, 43\] instead of int32 \[N, 44\]",
        ),
        ({"example_start": torch.tensor([0, 2, 1, 5, 6])}, "example_start does not rise"),
        ({"window_start": torch.tensor([0, 1, 1, 4, 6, 8, 8])}, "window_start does not rise"),
        ({"more": torch.zeros(4)}, "more is unknown"),
    ],
)
def test_what_does_not_fit_is_neither_written_nor_read(tmp_path: Path, change: dict[str, Tensor | None], message: str):
    tensors = {name: tensor for name, tensor in (made_up() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        save_features(tmp_path / "a", tensors, {})
    assert not (tmp_path / "a").exists()
    save_tensors(tmp_path / "a", tensors, {"format": 1})
    with pytest.raises(UserError, match=f"is no file of features: {message}"):
        FeatureFile.load(tmp_path / "a")


def test_another_version(tmp_path: Path):
    save_tensors(tmp_path / "a", made_up(), {"format": 2})
    with pytest.raises(UserError, match="it is of another version"):
        FeatureFile.load(tmp_path / "a")
