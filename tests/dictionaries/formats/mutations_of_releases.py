"""Good files in the layouts of releases, and structurally broken copies of them, as `mutations.py` has of formats."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.dictionaries.formats.mutations import (
    Code,
    Mutation,
    changed_tensors,
    dump,
    of_files,
    of_safetensors,
    of_torch,
    repack,
)
from tests.dictionaries.formats.released import EXAMPLES

LAYOUTS = ("gemma_2", "gemma_3", "llama_scope", "llama_scope_r1_distill", "mwhanna_transcoder", "state dicts")
STATE_DICTS = ("qwen_scope", "goodfire", "deepseek_r1", "connor_rob_hook_z")
CONFIGS: dict[str, str] = {
    "gemma_3": "config.json",
    "llama_scope": "hyperparams.json",
    "llama_scope_r1_distill": "config.json",
}
DECIDE: dict[str, tuple[str, ...]] = {
    "gemma_3": ("architecture", "width"),
    "llama_scope": ("d_model", "d_sae", "jump_relu_threshold", "dataset_average_activation_norm"),
    "llama_scope_r1_distill": ("d_model", "expansion_factor"),
}
FLAGS: dict[str, tuple[str, ...]] = {
    "gemma_3": ("architecture", "affine_connection"),
    "llama_scope": ("act_fn", "norm_activation", "apply_decoder_bias_to_pre_encoder", "hook_point_out"),
    "llama_scope_r1_distill": ("act_fn", "sae_type", "use_glu_encoder", "hook_point_out"),
}


def good(root: Path, where: str) -> list[Path]:
    """Paths that are read. Examples without a config.json are left out: there is less to break."""
    loaders = STATE_DICTS if where == "state dicts" else (where,)
    found = []
    for number, example in enumerate(e for e in EXAMPLES if e.loader in loaders):
        path = root / str(number) / example.repository / example.path
        example.write(path)
        if where != "gemma_3" or (path / "config.json").exists():
            found.append(path)
    return found


def mutations(where: str, path: Path, count: int = 200) -> Iterator[tuple[int, Mutation]]:
    """(seed, mutation of a folder), every kind about as often. path: of a good one."""
    weights = {
        "gemma_2": "params.npz",
        "gemma_3": "params.safetensors",
        "llama_scope": "checkpoints/final.safetensors",
        "llama_scope_r1_distill": "sae_weights.safetensors",
    }.get(where, path.name)
    cfg = CONFIGS.get(where, weights)  # what breaks a configuration breaks the weights where there is none
    makers = of_files(cfg, weights)
    if where in CONFIGS:
        makers = [m for m in makers if where != "gemma_3" or m.__name__ != "odd_file"] + _of_json(cfg, where)
    if where == "gemma_2":
        makers += _of_npz(weights)
    elif where == "state dicts":
        makers += of_torch(weights, elements=768, stride=64)
    else:
        makers += of_safetensors(weights)
    makers += _of_yaml() if where == "mwhanna_transcoder" else []
    for number in range(count):
        yield number, makers[number % len(makers)]


def _of_json(cfg: str, where: str) -> list[Mutation]:
    bad: list[Any] = [None, True, "12", "", 0, -3, 1e300, 10**15, 10**4000, [], {}, [12], "a\nb", float("nan")]

    def wrong(folder: Path, rng: random.Random, trace: Path) -> str:
        said = json.loads((folder / cfg).read_text())
        key = rng.choice(DECIDE[where])
        said[key] = rng.choice(bad)
        dump(folder / cfg, said)
        return f"{key} = {str(said[key])[:40]!r}"

    def wrong_flag(folder: Path, rng: random.Random, trace: Path) -> str:
        said = json.loads((folder / cfg).read_text())
        key = rng.choice(FLAGS[where])
        said[key] = rng.choice(["yes", 1, [], {"a": 1}, "layer_norm", 0.5])
        dump(folder / cfg, said)
        return f"{key} = {said[key]!r}"

    def no_json(folder: Path, rng: random.Random, trace: Path) -> str:
        contents = [b"", b"[" * 200_000, b"[1, 2]", b"null", b"\x00" * 100, b" " * (17 << 20), b"\xe9{}"]
        content = rng.choice(contents)
        (folder / cfg).write_bytes(content)
        return f"{cfg} is {content[:10]!r}"

    return [wrong, wrong_flag, no_json, wrong]


def _of_yaml() -> list[Mutation]:
    def no_text(folder: Path, rng: random.Random, trace: Path) -> str:
        content = rng.choice([b"# " + b"x" * 70_000, b"\xff\xfe model_name: x"])
        (folder / "config.yaml").write_bytes(content)
        return f"config.yaml is {content[:10]!r}"

    return [no_text]


def _of_npz(weights: str) -> list[Mutation]:
    def tensors(folder: Path, rng: random.Random, trace: Path) -> str:
        with np.load(folder / weights) as arrays:
            found = {name: torch.from_numpy(arrays[name]).contiguous() for name in arrays.files}
        changed, how = changed_tensors(found, rng)
        (folder / weights).unlink()
        with zipfile.ZipFile(folder / weights, "w") as archive:
            for name, tensor in changed.items():
                archive.writestr(f"{name}.npy", npy(tensor.numpy()))
        return how

    def objects(folder: Path, rng: random.Random, trace: Path) -> str:
        """Arrays of objects are pickles; so is a file that is no archive but may be taken for one by NumPy."""
        how = rng.choice(["array", "instead", "more", "numbers"])
        array = np.array([Code(trace)], dtype=object)
        if how == "instead":
            (folder / weights).write_bytes(pickle.dumps(Code(trace)))
        elif how == "numbers":
            repack(folder / weights, lambda name, content: pickle.dumps(Code(trace)) if "b_enc" in name else content)
        else:
            with np.load(folder / weights) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            np.savez(folder / weights, **{**found, "b_enc" if how == "array" else "more": array})
        return f"objects: {how}"

    def header(folder: Path, rng: random.Random, trace: Path) -> str:
        """Of one array: what it says is not what there is, or not what NumPy says."""
        with zipfile.ZipFile(folder / weights) as archive:
            chosen = rng.choice(archive.namelist())
        mkdir = f"__import__('os').mkdir('{trace}')"
        texts = [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999, 999999999999999, 9, 9), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-12, 64), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 64), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (12, 64), }",
            "{'descr': '>f4', 'fortran_order': False, 'shape': (12, 64), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (12, 64), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (12, 64), }",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': " + mkdir + ", }",
            mkdir,
            "(" * 5000,
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 2000 + "), }",
            "",
        ]
        text = rng.choice(texts)

        def change(name: str, content: bytes) -> bytes:
            if name != chosen:
                return content
            length = struct.unpack("<H", content[8:10])[0]
            new = text.encode() + b"\n"
            return content[:8] + struct.pack("<H", len(new)) + new + content[10 + length :]

        repack(folder / weights, change)
        return f"header of {chosen}: {text[:60]}"

    def start(folder: Path, rng: random.Random, trace: Path) -> str:
        """Of one array: magic, version, length of the header, too few or too many numbers."""
        with zipfile.ZipFile(folder / weights) as archive:
            chosen = rng.choice(archive.namelist())
        how = rng.choice(["magic", "version", "length", "short", "long", "none", "empty"])
        changes: dict[str, Callable[[bytes], bytes | None]] = {
            "magic": lambda c: b"\x93NUMPX" + c[6:],
            "version": lambda c: c[:6] + b"\x09" + c[7:],
            "length": lambda c: c[:8] + rng.choice([b"\x00\x00", b"\xff\xff", b"\x01\x00"]) + c[10:],
            "short": lambda c: c[: -rng.choice([1, 4, 100])],
            "long": lambda c: c + bytes(rng.choice([1, 4, 100])),
            "none": lambda c: None,
            "empty": lambda c: b"",
        }
        repack(folder / weights, lambda name, content: changes[how](content) if name == chosen else content)
        return f"{chosen}: {how}"

    def zipped(folder: Path, rng: random.Random, trace: Path) -> str:
        how = rng.choice(["bomb", "huge", "bzip2", "twice", "many", "other", "empty", "sizes"])
        path = folder / weights
        if how == "bomb":  # as large as its header says, of zeros
            zeros = npy(np.zeros((12, 2**18), dtype=np.float32))
            repack(folder / weights, lambda name, c: zeros if name == "W_enc.npy" else c, zipfile.ZIP_DEFLATED)
        elif how == "huge":  # says 4 GB of itself, in both directories
            _patched(path, lambda b, at: b[:at] + struct.pack("<I", 2**32 - 2) + b[at + 4 :])
        elif how == "bzip2":
            repack(folder / weights, lambda name, content: content, zipfile.ZIP_BZIP2)
        elif how == "twice":
            content = npy(np.ones(64, dtype=np.float32))
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("b_enc.npy", content)
        elif how == "many":
            with zipfile.ZipFile(path, "a") as archive:
                for number in range(300):
                    archive.writestr(f"{number}.npy", b"")
        elif how == "other":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("more.txt", b"x")
        elif how == "empty":
            with zipfile.ZipFile(path, "w"):
                pass
        else:
            _patched(path, lambda b, at: b[:at] + struct.pack("<I", 10) + b[at + 4 :])
        return how

    def flipped(folder: Path, rng: random.Random, trace: Path) -> str:
        content = bytearray((folder / weights).read_bytes())
        start = content.index(b"W_dec.npy") + 9 + 200
        content[start + rng.randrange(2000)] ^= 0xFF
        (folder / weights).write_bytes(bytes(content))
        return "a byte of numbers"

    return [tensors, objects, header, start, zipped, tensors, flipped, header, start]


def npy(array: np.ndarray) -> bytes:
    """Without pickle."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array) if array.shape else array, allow_pickle=False)
    return file.getvalue()


def _patched(path: Path, change: Callable[[bytes, int], bytes]) -> None:
    """The uncompressed size of the first entry of the archive's directory, changed."""
    content = path.read_bytes()
    path.write_bytes(change(content, content.index(b"PK\x01\x02") + 24))
