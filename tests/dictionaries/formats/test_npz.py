"""NumPy's archives, against NumPy's own reader, and those that must not be opened."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_tools.dictionaries.formats.npz import NpzFile
from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.errors import UserError


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_numpy_reads(save, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    arrays = {
        "matrix": rng.normal(size=(5, 7)).astype(np.float32),
        "by columns": np.asfortranarray(rng.normal(size=(5, 7)).astype(np.float32)),
        "three": np.asfortranarray(rng.normal(size=(2, 3, 4))),
        "half": rng.normal(size=9).astype(np.float16),
        "scalar": np.float32(3.5),
        "integers": np.arange(6, dtype=np.int64),
        "larger": rng.normal(size=(5000, 1000)).astype(np.float32),  # than a chunk
    }
    save(tmp_path / "a.npz", **arrays)
    file = NpzFile(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as theirs:
        assert set(file.declared()) == set(theirs.files)
        for name, said in file.declared().items():
            assert said.shape == list(theirs[name].shape)
            assert torch.equal(file.read(name), torch.from_numpy(np.array(theirs[name])))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_headers(version: tuple[int, int], tmp_path: Path) -> None:
    content = io.BytesIO()
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.lib.format.write_array(content, array, version=version)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue())
    assert torch.equal(NpzFile(tmp_path / "a.npz").read("x"), torch.from_numpy(array))


def test_an_archive_of_zeros_is_not_unpacked(tmp_path: Path) -> None:
    """Everything in it fits together; it is only far larger than weights of its size could be."""
    width, features = 500, 100_000
    shapes = {"W_enc": (width, features), "W_dec": (features, width), "b_enc": (features,), "b_dec": (width,)}
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape in {**shapes, "threshold": (features,)}.items():
            text = (header % (shape,)).encode()
            with archive.open(f"{name}.npy", "w") as file:
                file.write(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
                left = 4 * int(np.prod(shape))
                while left:
                    left -= file.write(bytes(min(left, 2**20)))
    assert (tmp_path / "params.npz").stat().st_size < 4_000_000
    tracemalloc.start()
    with pytest.raises(UserError, match="entries far larger than the file can hold"):
        load_dictionary(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
