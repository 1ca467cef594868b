from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sae_tools.errors import UserError
from sae_tools.runs.tensors import load_tensors, read_meta, save_tensors


def test_every_dtype_layout_and_shape_comes_back(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "slice": base[1:3],
        "again": base,
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 5),
        "bf16": base.bfloat16(),
        "counts": torch.tensor([0, 2**32 - 1], dtype=torch.uint32),
        "mask": torch.tensor([True, False]),
        "steps": torch.tensor(-(2**40)),
        "gradient": torch.ones(3, requires_grad=True),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    save_tensors(tmp_path / "a", tensors, {"tokens": 3, "b": [None, "ä"]})
    loaded, meta = load_tensors(tmp_path / "a")
    assert meta == {"tokens": 3, "b": [None, "ä"]} == read_meta(tmp_path / "a")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert (
            loaded[name].reshape(-1).view(torch.uint8).equal(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
        )
    assert load_file(tmp_path / "a")["slice"].equal(base[1:3])  # an ordinary safetensors file
    assert os.listdir(tmp_path) == ["a"]


def test_equal_content_makes_equal_bytes_in_every_process(tmp_path):
    save_tensors(tmp_path / "a", {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int64)}, {"z": "ä\x7f\n"})
    content = (tmp_path / "a").read_bytes()
    order = [content.index(key) for key in (b'"__metadata__"', b'"meta"', b'"sae_tools"', b'"sha256"', b'"a"', b'"b"')]
    assert order == sorted(order)
    assert content[8:].startswith(b'{"__metadata__"') and int.from_bytes(content[:8], "little") % 8 == 0


def test_an_empty_array_of_numpy(tmp_path):
    """Its strides may be 0, so that torch cannot look at its bytes."""
    save_tensors(tmp_path / "a", {"x": torch.from_numpy(np.array([], np.float32))})
    assert load_tensors(tmp_path / "a")[0]["x"].equal(torch.empty(0))


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    save_tensors(tmp_path / "a", {"x": torch.ones(100_000)})
    loaded, _ = load_tensors(tmp_path / "a")
    os.truncate(tmp_path / "a", 10)
    assert loaded["x"].sum() == 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("tensors") / "a"
    save_tensors(path, {"x": torch.arange(10), "y": torch.ones(3)}, {"tokens": 5})
    return path.read_bytes()


@given(st.data())
def test_any_change_of_a_byte_is_noticed(tmp_path_factory, whole, data):
    path = tmp_path_factory.mktemp("changed") / "a"
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.integers(1, 255))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
    try:
        tensors, meta = load_tensors(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:  # white space in the header
        assert meta == {"tokens": 5} and tensors["x"].equal(torch.arange(10)) and tensors["y"].equal(torch.ones(3))


@given(st.data())
def test_any_truncation_is_noticed(tmp_path_factory, whole, data):
    path = tmp_path_factory.mktemp("cut") / "a"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    for read in (load_tensors, read_meta):
        with pytest.raises(UserError, match="is truncated or no safetensors file"):
            read(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(path)
    with pytest.raises(UserError):
        load_tensors(tmp_path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(UserError, match="was not written by sae_tools"):
        load_tensors(path)
    save_file({"x": torch.ones(2)}, path, metadata={"sae_tools": "2", "meta": "{}", "sha256": ""})
    with pytest.raises(UserError, match="has format 2, but this version of sae_tools reads 1"):
        load_tensors(path)


def test_declared_sizes_are_not_believed(tmp_path):
    huge = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "__metadata__": {"sae_tools": "1"}}
    header = json.dumps(huge).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        load_tensors(tmp_path / "a")
    (tmp_path / "a").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        load_tensors(tmp_path / "a")
