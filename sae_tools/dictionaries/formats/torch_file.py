"""State dicts that `torch.save` wrote, read without running anything in them.

Such a file is a zip archive: `<name>/data.pkl`, a pickle that says which tensors there are, and `<name>/data/<key>`,
their numbers. The pickle is taken as a list of instructions of which only those that torch writes for a dictionary of
tensors are known here, and none of which calls anything: stricter than `torch.load(weights_only=True)`, which believes
the number of elements that the pickle declares.
"""

from __future__ import annotations

import pickletools
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_tools.dictionaries.formats.files import Declared, one_line, size_of, untrusted
from sae_tools.errors import UserError

LARGEST_PICKLE = 2**20
"""Bytes; that of a dictionary is some kilobytes."""
KIND = "archive of tensors as torch.save writes"
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
}
ORDERED_DICT, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
GLOBALS = {*STORAGES, ORDERED_DICT, TENSOR, PARAMETER}


class Name(NamedTuple):
    """A name in the pickle, which stays a name."""

    name: str


class Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    elements: int


class View(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """A state dict on disk: names to tensors."""

    def __init__(self, path: Path):
        self.path = path
        size = size_of(path)
        with untrusted(path, KIND):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                self._entries = {entry.filename: entry for entry in entries}
                if len(self._entries) != len(entries):
                    raise ValueError("two entries of one name")
                for entry in entries:
                    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                        raise ValueError("compressed entries")
                if sum(entry.file_size for entry in entries) > size:
                    raise ValueError("entries larger than the file")
                pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
                if len(pickles) != 1:
                    raise ValueError("no data.pkl")
                self._folder = pickles[0].removesuffix("data.pkl")
                if self._entries[pickles[0]].file_size > LARGEST_PICKLE:
                    raise ValueError("a data.pkl of more than 1 MiB")
                order = self._entries.get(f"{self._folder}byteorder")
                if order is not None and (order.file_size > 10 or archive.read(order) != b"little"):
                    raise ValueError("not in little-endian order")
                found = interpret(archive.read(pickles[0]), path)
            if not isinstance(found, dict):
                raise ValueError("no dictionary of tensors")
            self._views = {name: self._checked(name, view) for name, view in found.items()}

    def _checked(self, name: object, view: object) -> View:
        if not isinstance(name, str) or not isinstance(view, View):
            raise ValueError("something else than tensors by name")
        storage, strides = view.storage, view.stride
        entry = self._entries.get(f"{self._folder}data/{storage.key}")
        if entry is None or entry.file_size != storage.elements * storage.dtype.itemsize:
            raise ValueError("numbers that are missing or of another size than declared")
        integers = (view.offset, *view.shape, *strides)
        if any(type(i) is not int or i < 0 for i in integers) or len(view.shape) != len(strides):
            raise ValueError("a tensor of impossible shape")
        elements, last = 1, view.offset
        for length, stride in zip(view.shape, strides, strict=True):
            elements, last = elements * length, last + (length - 1) * stride
        if not 1 <= elements <= storage.elements or last >= storage.elements:
            raise ValueError("a tensor larger than its numbers")
        return view

    def declared(self) -> dict[str, Declared]:
        return {name: Declared(view.storage.dtype, list(view.shape)) for name, view in self._views.items()}

    def read(self, name: str) -> Tensor:
        view = self._views[name]
        with untrusted(self.path, KIND):
            with zipfile.ZipFile(self.path) as archive:  # which compares checksums
                numbers = bytearray(archive.read(self._entries[f"{self._folder}data/{view.storage.key}"]))
            flat = torch.frombuffer(numbers, dtype=view.storage.dtype)
            return flat.as_strided(view.shape, view.stride, view.offset).clone(memory_format=torch.contiguous_format)


def interpret(pickle: bytes, path: Path) -> Any:
    """What the pickle describes: dicts, lists, tuples, strings, numbers, `View`s. Raises UserError where it names code,
    ValueError and others for what torch does not write."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, argument, _ in pickletools.genops(BytesIO(pickle)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS":
                items = since_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _dict(stack[-1])[key] = value
            case "SETITEMS":
                items = since_mark()
                _dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(str(argument), path))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_known(f"{module} {name}", path))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_made(function, arguments))
            case "BUILD":
                stack.pop()  # attributes of the dictionary: versions of modules
                _dict(stack[-1])
            case "STOP":
                (found,) = stack
                return found
            case _:
                raise UserError(f"{path}: its pickle holds more than tensors ({opcode.name}), and was not run.")
    raise ValueError("its pickle does not end")


def _known(name: str, path: Path) -> Name:
    if name not in GLOBALS:
        raise UserError(
            f"{path}: its pickle names code ({one_line(name, 60)!r}), and was not run; expected nothing but tensors."
        )
    return Name(name)


def _storage(said: Any) -> Storage:
    kind, name, key, _, elements = said
    if kind != "storage" or type(key) is not str or type(elements) is not int or elements < 0:
        raise ValueError("a storage that torch does not write")
    return Storage(STORAGES[name.name], key, elements)


def _made(function: Any, arguments: Any) -> Any:
    """What torch would make of its two functions and of OrderedDict()."""
    if function == Name(ORDERED_DICT) and arguments == ():
        return {}
    if function == Name(TENSOR):
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple):
            return View(storage, offset, shape, stride)
    if function == Name(PARAMETER) and isinstance(arguments[0], View):
        return arguments[0]
    raise ValueError("a call that torch does not write")


def _dict(found: Any) -> dict[Any, Any]:
    if not isinstance(found, dict):
        raise ValueError("items of something that is no dictionary")
    return found


def _list(found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError("items of something that is no list")
    return found
