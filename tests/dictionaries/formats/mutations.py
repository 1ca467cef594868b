"""Good folders of every format, and structurally broken copies of them: 200 for each, drawn from a seed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_tools.dictionaries.formats.write import write_dictionary
from tests.dictionaries.formats.examples import example

METADATA = {"model_name": "tiny", "hook_name": "blocks.2.hook_mlp_out"}
KINDS = {
    "saelens": ["relu", "topk", "jumprelu", "gated"],
    "dictionary-learning": ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"],
    "sparsify": ["topk"],
}
FILES = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "dictionary-learning": ("config.json", "ae.pt"),
    "sparsify": ("cfg.json", "sae.safetensors"),
}
Mutation = Callable[[Path, random.Random, Path], str]
"""Breaks the folder (given a place where code would leave a trace), and says how."""


def good_folders(root: Path, where: str) -> list[Path]:
    folders = [root / kind for kind in KINDS[where]]
    for kind, folder in zip(KINDS[where], folders, strict=True):
        write_dictionary(example(kind), folder, where, METADATA)  # type: ignore[arg-type]
    return folders


def mutations(where: str, count: int = 200) -> Iterator[tuple[int, Mutation]]:
    """(seed, mutation), every kind about as often."""
    cfg, weights = FILES[where]
    makers: list[Mutation] = [*_of_json(cfg, where), *of_files(cfg, weights)]
    makers += of_torch(weights) if weights.endswith(".pt") else of_safetensors(weights)
    for number in range(count):
        yield number, makers[number % len(makers)]


class Code:
    """A pickle that leaves a file behind where it is run."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def of_files(cfg: str, weights: str) -> list[Mutation]:
    def truncated(folder: Path, rng: random.Random, trace: Path) -> str:
        content = (folder / weights).read_bytes()
        at = rng.choice([0, 1, 7, 8, 9, len(content) - 1, rng.randrange(len(content))])
        (folder / weights).write_bytes(content[:at])
        return f"truncated at {at} of {len(content)}"

    def truncated_cfg(folder: Path, rng: random.Random, trace: Path) -> str:
        content = (folder / cfg).read_bytes().rstrip()
        at = rng.randrange(len(content))
        (folder / cfg).write_bytes(content[:at])
        return f"{cfg} truncated at {at}"

    def missing(folder: Path, rng: random.Random, trace: Path) -> str:
        (folder / weights).unlink()
        return "no weights"

    def odd_file(folder: Path, rng: random.Random, trace: Path) -> str:
        path = folder / rng.choice([cfg, weights])
        path.unlink()
        kind = rng.choice(["folder", "loop", "dangling", "pipe", "empty"])
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.touch()
        return f"{path.name} is a {kind}"

    def noise(folder: Path, rng: random.Random, trace: Path) -> str:
        (folder / weights).write_bytes(rng.randbytes(rng.randrange(1, 3000)))
        return "noise"

    def started_with(folder: Path, rng: random.Random, trace: Path) -> str:
        content = (folder / weights).read_bytes()
        first = rng.choice([b"PK\x05\x06", b"\x80\x04", b"\x7fELF", b"{" * 8, struct.pack("<Q", 2**62), b"\xff" * 8])
        (folder / weights).write_bytes(first + content[len(first) :])
        if weights.endswith(".pt"):  # what a zip archive starts with decides nothing, its end does
            with (folder / weights).open("r+b") as file:
                file.truncate(len(content) - 4)
        return f"starts with {first!r}"

    return [truncated, truncated_cfg, missing, odd_file, noise, started_with, truncated]


def _of_json(cfg: str, where: str) -> list[Mutation]:
    bad_values: list[Any] = [None, True, "12", "", 0, -3, 1.5, 1e300, 10**15, 10**4000, [], {}, [12], "\ud800", "a\nb"]

    def wrong(folder: Path, rng: random.Random, trace: Path) -> str:
        said = json.loads((folder / cfg).read_text())
        inside = said["trainer"] if where == "dictionary-learning" else said
        if where == "dictionary-learning":
            key = rng.choice(["dict_class", "activation_dim", "dict_size", *(["k"] if "k" in inside else [])])
        elif where == "sparsify":
            key = rng.choice(["d_in", "k", "num_latents", "activation"])
        else:
            key = rng.choice(["d_in", "d_sae", "architecture", *(["k"] if "k" in inside else [])])
        choices = [v for v in bad_values if not (key in ("k", "num_latents") and v is None)]
        if key == "num_latents":  # none of these says "take expansion_factor"
            choices = [v for v in choices if v or v == []]
            choices.remove([])
        inside[key] = rng.choice(choices)
        dump(folder / cfg, said)
        return f"{key} = {str(inside[key])[:40]!r}"

    def wrong_section(folder: Path, rng: random.Random, trace: Path) -> str:
        said = json.loads((folder / cfg).read_text())
        key = rng.choice(["trainer", "buffer", "metadata"]) if where == "dictionary-learning" else "metadata"
        said[key] = rng.choice([[], "x", 3, True, None, [{}]])
        dump(folder / cfg, said)
        return f"{key} = {said[key]!r}"

    def wrong_flag(folder: Path, rng: random.Random, trace: Path) -> str:
        said = json.loads((folder / cfg).read_text())
        keys = {
            "saelens": ["apply_b_dec_to_input", "normalize_activations", "reshape_activations", "sae_lens_version"],
            "dictionary-learning": ["trainer"],
            "sparsify": ["transcode", "skip_connection", "multi_topk", "signed"],
        }
        key = rng.choice(keys[where])
        target = said["metadata"] if key == "sae_lens_version" else said
        target[key] = rng.choice(["yes", 1, [], {"a": 1}, "layer_norm", 0.5]) if key != "trainer" else "yes"
        dump(folder / cfg, said)
        return f"{key} = {target[key]!r}"

    def no_json(folder: Path, rng: random.Random, trace: Path) -> str:
        contents = {
            "empty": b"",
            "deep": b"[" * 200_000,
            "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            "latin": '{"é": 1}'.encode("latin-1"),
            "utf-16": '{"a": 1}'.encode("utf-16"),
            "list": b"[1, 2]",
            "string": b'"cfg"',
            "number": b"12",
            "null": b"null",
            "zeros": b"\x00" * 100,
            "huge": b" " * (17 << 20),
            "digits": b'{"d_in": ' + b"9" * 10_000 + b"}",
            "empty object": b"{}" if where != "dictionary-learning" else b"{}}",
        }
        name = rng.choice(list(contents))
        (folder / cfg).write_bytes(contents[name])
        return name

    return [wrong, wrong_section, wrong_flag, no_json, wrong, wrong]


def changed_tensors(tensors: dict[str, Tensor], rng: random.Random) -> tuple[dict[str, Tensor], str]:
    """One of them missing, too many, or of another shape, type or kind of number."""
    tensors = dict(tensors)
    name = rng.choice([n for n, t in tensors.items() if t.dim() >= 1 and t.is_floating_point()])
    tensor = tensors[name].clone(memory_format=torch.contiguous_format)
    how = rng.choice(["missing", "extra", "shape", "rank", "integers", "bools", "complex", "nan", "inf", "-inf"])
    if how == "missing":
        del tensors[name]
    elif how == "extra":
        tensors[rng.choice(["W_more", "encoder.extra", "a\nb", "x" * 500])] = torch.ones(3)
    elif how == "shape":
        dim = rng.randrange(tensor.dim())
        size = tensor.shape[dim] + rng.choice([-1, 1, 7])
        shape = [size if i == dim else s for i, s in enumerate(tensor.shape)]
        tensors[name] = torch.ones(shape)
    elif how == "rank":
        tensors[name] = rng.choice([tensor.unsqueeze(0), tensor.unsqueeze(-1), tensor.flatten()[:1].squeeze()])
        tensors[name] = tensors[name].contiguous().clone()
    elif how in ("nan", "inf", "-inf"):
        tensor.flatten()[rng.randrange(tensor.numel())] = float(how)
        tensor.view(-1)[rng.randrange(tensor.numel())] = float(how)
        tensors[name] = tensor
    else:
        tensors[name] = tensor.to({"integers": torch.int64, "bools": torch.bool, "complex": torch.complex64}[how])
    return tensors, f"{name}: {how}"


def of_safetensors(weights: str) -> list[Mutation]:
    def tensors(folder: Path, rng: random.Random, trace: Path) -> str:
        found, how = changed_tensors(load_file(folder / weights), rng)
        save_file(found, folder / weights)
        return how

    def header(folder: Path, rng: random.Random, trace: Path) -> str:
        content = (folder / weights).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        said = json.loads(content[8 : 8 + length])
        name = rng.choice([key for key in said if key != "__metadata__" and said[key]["shape"]])
        how = rng.choice(["dtype", "shape", "huge", "offsets", "backwards", "overlap", "name", "type", "negative"])
        entry = said[name]
        if how == "dtype":
            entry["dtype"] = rng.choice(["F64", "I8", "F8_E4M3", "X", 3])
        elif how == "shape":
            entry["shape"] = rng.choice([[1], [], [2**63, 4], "x", [2.5], [[1]]])
        elif how == "huge":
            entry["shape"], entry["data_offsets"] = [2**40, 2**20], [0, 2**62]
        elif how == "offsets":
            entry["data_offsets"] = rng.choice([[0, 1], [0], "x", [2**64, 2**65], None])
        elif how == "backwards":
            entry["data_offsets"] = entry["data_offsets"][::-1]
        elif how == "overlap":
            entry["data_offsets"] = [entry["data_offsets"][0] + 4, entry["data_offsets"][1] + 4]
        elif how == "name":
            said[name + "'"] = said.pop(name)
        elif how == "type":
            said[name] = rng.choice([[], 3, "x", None])
        else:
            entry["shape"] = [-s for s in entry["shape"]]
        changed = json.dumps(said).encode()
        (folder / weights).write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
        return f"header of {name}: {how}"

    def length(folder: Path, rng: random.Random, trace: Path) -> str:
        content = (folder / weights).read_bytes()
        said = struct.unpack("<Q", content[:8])[0]
        new = rng.choice([0, 1, said - 1, said + 1, 2**31, 2**40, 2**63, 2**64 - 1])
        (folder / weights).write_bytes(struct.pack("<Q", new) + content[8:])
        return f"header of {new} bytes"

    def pickled(folder: Path, rng: random.Random, trace: Path) -> str:
        torch.save({"W_enc": Code(trace)}, folder / weights)
        return "a pickle"

    return [tensors, header, tensors, header, length, tensors, pickled]


def repack(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> None:
    """Write a zip archive anew, every entry as `change(name, content)` has it; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            content = change(name, content)
            if content is not None:
                archive.writestr(name, content)


def of_torch(weights: str, elements: int = 480, stride: int = 40) -> list[Mutation]:
    """elements: of a matrix in it, and `stride` that of its rows where these are not 12 long."""

    def state(folder: Path) -> dict[str, Tensor]:
        return torch.load(folder / weights, weights_only=True)

    def tensors(folder: Path, rng: random.Random, trace: Path) -> str:
        found, how = changed_tensors(state(folder), rng)
        torch.save(OrderedDict(found), folder / weights)
        return how

    def code(folder: Path, rng: random.Random, trace: Path) -> str:
        how = rng.choice(["in the state dict", "instead of it", "bare", "legacy", "instead of data.pkl", "protocol 4"])
        if how == "in the state dict":
            torch.save({**state(folder), rng.choice(["k", "more"]): Code(trace)}, folder / weights)
        elif how == "instead of it":
            torch.save(Code(trace), folder / weights)
        elif how == "bare":
            (folder / weights).write_bytes(pickle.dumps(Code(trace)))
        elif how == "legacy":
            torch.save({"W": Code(trace)}, folder / weights, _use_new_zipfile_serialization=False)
        else:
            protocol = 4 if how == "protocol 4" else 2
            code = pickle.dumps(Code(trace), protocol=protocol)
            repack(folder / weights, lambda name, content: code if name.endswith("data.pkl") else content)
        return f"code {how}"

    def other_objects(folder: Path, rng: random.Random, trace: Path) -> str:
        things: list[Any] = [
            [1, 2],
            3,
            {"a": 1},
            {1: torch.ones(2)},
            {**state(folder), "k": 5, "more": "text"},
            {"state_dict": state(folder)},
            torch.ones(3),
            torch.nn.Linear(2, 2),
            {name: t.to_sparse() if t.dim() else t for name, t in state(folder).items()},
            {name: t.numpy() for name, t in state(folder).items()},
        ]
        thing = rng.choice(things)
        torch.save(thing, folder / weights)
        return f"a {type(thing).__name__}"

    def legacy(folder: Path, rng: random.Random, trace: Path) -> str:
        torch.save(state(folder), folder / weights, _use_new_zipfile_serialization=False)
        return "of before torch 1.6"

    def zipped(folder: Path, rng: random.Random, trace: Path) -> str:
        how = rng.choice(
            ["compressed", "bomb", "no pickle", "no numbers", "short numbers", "twice", "empty", "big-endian"]
        )
        with zipfile.ZipFile(folder / weights) as archive:
            numbers = [name for name in archive.namelist() if "/data/" in name]
        chosen = rng.choice(numbers)
        if how == "compressed":
            repack(folder / weights, lambda name, content: content, zipfile.ZIP_DEFLATED)
        elif how == "bomb":
            repack(
                folder / weights,
                lambda name, content: bytes(2 << 20) if name == chosen else content,
                zipfile.ZIP_DEFLATED,
            )
        elif how == "no pickle":
            repack(folder / weights, lambda name, content: None if name.endswith("data.pkl") else content)
        elif how == "no numbers":
            repack(folder / weights, lambda name, content: None if name == chosen else content)
        elif how == "short numbers":
            repack(folder / weights, lambda name, content: content[:-1] if name == chosen else content)
        elif how == "twice":
            with zipfile.ZipFile(folder / weights, "a") as archive:
                archive.writestr("other/data.pkl", pickle.dumps(Code(trace)))
        elif how == "empty":
            with zipfile.ZipFile(folder / weights, "w"):
                pass
        else:
            repack(folder / weights, lambda name, content: b"big" if name.endswith("byteorder") else content)
        return how

    def flipped(folder: Path, rng: random.Random, trace: Path) -> str:
        """A byte of some tensor, which the archive's checksum shows."""
        content = bytearray((folder / weights).read_bytes())
        with zipfile.ZipFile(folder / weights) as archive:
            entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        start = bytes(content).index(entry.filename.encode()) + len(entry.filename) + 200
        content[start + rng.randrange(entry.file_size - 400)] ^= 0xFF
        (folder / weights).write_bytes(bytes(content))
        return "a byte of numbers"

    def declared(folder: Path, rng: random.Random, trace: Path) -> str:
        """Other numbers in the pickle: sizes, strides, offsets, numbers of elements."""
        found: list[str] = []

        def change(name: str, content: bytes) -> bytes:
            if not name.endswith("data.pkl"):
                return content
            how = rng.choice(["elements", "strides", "cut", "name", "memo"])
            found.append(how)
            if how == "cut":
                return content[: rng.randrange(len(content))]
            if how == "name":
                return content.replace(b"FloatStorage", b"FlootStorage")
            if how == "memo":
                return content[:2] + b"r\xff\xff\xff\x7f" + content[2:]
            old = struct.pack("<BH", ord("M"), elements)
            assert old in content
            new = struct.pack("<BI", ord("J"), 2**31 - 1)
            if how == "elements":
                return content.replace(old, new)
            return content.replace(b"K\x0cK\x01\x86", b"K\xffK\x01\x86").replace(
                b"K%cK\x01\x86" % stride, b"K\xffK\x01\x86"
            )

        repack(folder / weights, change)
        return f"declared {found}"

    def bomb_in_the_pickle(folder: Path, rng: random.Random, trace: Path) -> str:
        """Opcodes that would make an unpickler allocate."""
        bombs = [
            b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b".",  # bytes of a terabyte
            b"\x80\x02\x8d" + struct.pack("<Q", 2**40) + b".",
            b"\x80\x02]r\xff\xff\xff\xff.",  # a memo of four billion
            b"\x80\x02(" + b"(" * 100_000 + b"t" * 100_000 + b".",
            b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
            b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
            b"\x80\x02I" + b"9" * 100_000 + b"\n.",
            b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
        ]
        bomb = rng.choice(bombs)
        repack(folder / weights, lambda name, content: bomb if name.endswith("data.pkl") else content)
        return f"pickle {bomb[:12]!r}"

    return [tensors, code, zipped, declared, tensors, other_objects, legacy, flipped, code, bomb_in_the_pickle]


def dump(path: Path, said: Any) -> None:
    """As json.dumps, but for integers that Python would not turn into text."""

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        path.write_text(json.dumps(said))
    finally:
        sys.set_int_max_str_digits(limit)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to
