"""Configurations from YAML and `key.path=value` overrides, and back to YAML with everything resolved."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from sae_tools import config_yaml
from sae_tools.config import Section
from sae_tools.config_yaml import Key, shown
from sae_tools.errors import UserError

C = TypeVar("C", bound=Section)

_MAX_BYTES = 1_000_000


def load_config(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """The configuration in a YAML file, changed by overrides such as `training.tokens=5e6`.

    Raises UserError, one sentence with file and line (or the override), for anything that is wrong with it.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES} bytes, which no configuration is.")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a YAML file, but it is not text.") from None
    except OSError as error:
        raise UserError(f"{path}: the configuration cannot be read ({error.strerror}).") from None
    return parse_config(kind, text, str(path), overrides)


def parse_config(kind: type[C], text: str, source: str = "config", overrides: Sequence[str] = ()) -> C:
    """As load_config, from YAML text; `source` stands in messages where the file name would."""
    tree, lines = config_yaml.parse(text, source)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected settings as `key: value`, found {shown(tree)}.")
    origin = _Origin(source, lines)
    for override in overrides:
        _apply(kind, tree, override, origin)
    _refuse_unknown(kind, kind, tree, (), origin)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(_sentence(kind, tree, error, origin)) from None


def dump_config(config: Section) -> str:
    """The whole tree as YAML, defaults included; load_config reads it back equal."""
    return config_yaml.dump(config.model_dump(mode="json"))


def config_differences(a: Section, b: Section) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configurations differ, by dotted key; a setting that one lacks counts as null."""
    left, right = dict(_leaves(a.model_dump(mode="json"))), dict(_leaves(b.model_dump(mode="json")))
    keys = [*left, *(key for key in right if key not in left)]
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def first_difference(asked: Section, own: Section, ignore: Sequence[str] = ()) -> str | None:
    """For "… cannot be resumed with this configuration: …": the first setting that differs, or None.

    ignore: dotted keys, each with all below it.
    """
    for key, (here, there) in config_differences(asked, own).items():
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in ignore):
            return f"{key} is {shown(here)}, but the run has {shown(there)}"
    return None


def settings(kind: type[Section]) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, documentation) of every setting; `*` stands for any name, `...` for a required value."""
    return _settings(kind, ())


def _leaves(tree: Any, key: Key = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, (*key, name))
    else:
        yield _dotted(key), tree


def _settings(kind: type[Section], key: Key) -> Iterator[tuple[str, Any, str]]:
    for name, field in kind.model_fields.items():
        options, mapped = _sections(field.annotation)
        if options:
            for option in options:
                yield from _settings(option, (*key, name, "*") if mapped else (*key, name))
        else:
            default = field.get_default(call_default_factory=True) if not field.is_required() else ...
            yield _dotted((*key, name)), default, " ".join((field.description or "").split())


# ---------------------------------------------------------------------------------------------------- the tree's types


def _sections(annotation: Any) -> tuple[list[type[Section]], bool]:
    """The sections a field may hold (several: a union told apart by `kind`), and whether under names of their own."""
    if get_origin(annotation) is Annotated:
        return _sections(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return _sections(get_args(annotation)[1])[0], True
    if get_origin(annotation) in (Union, types.UnionType):
        return [section for part in get_args(annotation) for section in _sections(part)[0]], False
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation], False
    return [], False


def _kinds(options: Sequence[type[Section]]) -> dict[str, type[Section]]:
    return {option.model_fields["kind"].default: option for option in options}


def _choose(options: Sequence[type[Section]], value: Any) -> type[Section] | None:
    """Which of a union's sections a value means, by its `kind`, the first by default; None: no such kind."""
    if len(options) == 1 or not isinstance(value, dict) or "kind" not in value:
        return options[0]
    kind = value["kind"]
    return _kinds(options).get(kind) if isinstance(kind, str) else None


def _scalar_types(annotation: Any) -> set[type]:
    if get_origin(annotation) is Annotated:
        return _scalar_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(_scalar_types(part) for part in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation} if isinstance(annotation, type) else {get_origin(annotation)}


# ------------------------------------------------------------------------------------------------------------ messages


class _Origin:
    """Where each value came from: a line of the file or an override."""

    def __init__(self, source: str, lines: dict[Key, int]):
        self.source, self.lines, self.overrides = source, lines, dict[Key, str]()

    def of(self, key: Key, whole: bool = False) -> str:
        """`whole`: it is about several settings at `key` together, of which an override may have set one."""
        for length in range(len(key), 0, -1):
            if whole and length == len(key):
                below = [text for other, text in self.overrides.items() if other[:length] == key]
                if below:
                    return f"override {below[-1]!r}"
            if key[:length] in self.overrides:
                return f"override {self.overrides[key[:length]]!r}"
            if key[:length] in self.lines:
                return f"{self.source}, line {self.lines[key[:length]]}"
        return self.source


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _refuse_unknown(
    root: type[Section],
    kind: type[Section],
    tree: dict,
    key: Key,
    origin: _Origin,
    siblings: Sequence[type[Section]] = (),
) -> None:
    """Raise for the first key that is no setting; an empty section (`training:` and nothing) becomes `{}`."""
    for name, value in list(tree.items()):
        here = (*key, name)
        if name not in kind.model_fields:
            raise UserError(f"{origin.of(here)}: {_unknown(root, kind, key, name, siblings)}")
        options, mapped = _sections(kind.model_fields[name].annotation)
        if not options:
            continue
        if value is None and type(None) in get_args(kind.model_fields[name].annotation):
            continue
        if value is None:
            tree[name] = value = {}
        for place, part in list(value.items()) if mapped and isinstance(value, dict) else [(None, value)]:
            there = here if place is None else (*here, place)
            if place is not None and part is None:
                value[place] = part = {}
            chosen = _choose(options, part)
            if chosen is None:
                raise UserError(
                    f"{origin.of((*there, 'kind'))}: {_dotted((*there, 'kind'))}: expected "
                    f"{_either([repr(k) for k in _kinds(options)])}, found {shown(part['kind'])}."
                )
            if isinstance(part, dict):
                _refuse_unknown(root, chosen, part, there, origin, options)


def _unknown(
    root: type[Section], kind: type[Section], key: Key, name: str, options: Sequence[type[Section]] = ()
) -> str:
    said = f"{_dotted((*key, name))!r} is no setting"
    if len(options) > 1:
        said += f" of kind {kind.model_fields['kind'].default!r}"
        others = [repr(word) for word, option in _kinds(options).items() if name in option.model_fields]
        if others:
            return f"{said} but of {_either(others)}."
    near = difflib.get_close_matches(name, kind.model_fields, n=1, cutoff=0.6)
    if near:
        return f"{said}; did you mean {_dotted((*key, near[0]))!r}?"
    elsewhere = [full for full, _, _ in _settings(root, ()) if full.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"{said}; did you mean {_either([repr(full) for full in dict.fromkeys(elsewhere)])}?"
    return f"{said}; the ones here are {', '.join(kind.model_fields)}."


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _sentence(root: type[Section], tree: dict, error: ValidationError, origin: _Origin) -> str:
    """One sentence for the first thing that pydantic found wrong, without pydantic's words for it."""
    found = error.errors(include_url=False)
    key = _own_key(root, found[0]["loc"], tree)
    same = [e for e in found if _own_key(root, e["loc"], tree) == key]
    first = same[0]
    if first["type"] == "missing" and isinstance(key[-1], int):
        return f"{origin.of(key)}: {_dotted(key[:-1])}: expected a list of more than {key[-1]} values."
    if first["type"] == "missing":
        return f"{origin.of(key)}: {_dotted(key)!r} is missing and has no default."
    if first["type"] == "value_error":
        return f"{origin.of(key, whole=True)}: {_dotted(key) + ': ' if key else ''}{first.get('ctx', {})['error']}."
    expected = _either(list(dict.fromkeys(_expected(e) for e in same)))
    hint = ""
    if first["type"] == "string_type" and isinstance(first["input"], (int, float)):
        hint = " (put it in quotes)"
    return f"{origin.of(key)}: {_dotted(key)}: expected {expected}, found {shown(first['input'])}{hint}."


def _own_key(kind: type[Section], loc: tuple[int | str, ...], tree: Any) -> Key:
    """pydantic's location without what it adds for unions (tags, type names) and keys (`[key]`)."""
    key: Key = ()
    section: type[Section] | None = kind
    rest = list(loc)
    while rest and section is not None:
        name = rest.pop(0)
        key = (*key, name)
        tree = tree.get(name) if isinstance(tree, dict) else None
        options, mapped = _sections(section.model_fields[str(name)].annotation)
        if options and mapped and rest:
            name = rest.pop(0)
            key = (*key, name)
            if rest == ["[key]"]:  # the name itself is at fault
                return key
            tree = tree.get(name) if isinstance(tree, dict) else None
        section = _choose(options, tree) if options else None
        if len(options) > 1 and rest:
            rest.pop(0)  # the union's tag
    return (*key, *(part for part in rest if isinstance(part, int)))


_WHAT = {
    "int_parsing": "an integer",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of less than 20 digits",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-' that starts with a letter or digit",
}


def _expected(error: Any) -> str:
    kind, ctx = error["type"], error.get("ctx", {})
    if kind in _WHAT:
        return _WHAT[kind]
    if kind == "literal_error":
        return ctx["expected"]
    for name, words in (
        ("greater_than_equal", "at least {ge}"),
        ("greater_than", "more than {gt}"),
        ("less_than_equal", "at most {le}"),
        ("less_than", "less than {lt}"),
        ("string_too_long", "at most {max_length} characters"),
        ("too_short", "at least {min_length} of them"),
        ("too_long", "at most {max_length} of them"),
    ):
        if kind == name:
            return words.format(**ctx)
    return error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


# ----------------------------------------------------------------------------------------------------------- overrides


def _apply(root: type[Section], tree: dict, override: str, origin: _Origin) -> None:
    """Set one `key.path=value` in the tree; the value is YAML (`null`, `[1, 2]`, `{kind: relu}`), or text as it is."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(f"override {override!r}: expected key.path=value, as in training.tokens=5e6.")
    value, _ = config_yaml.parse(text, f"override {override!r}")
    kind: type[Section] | None = root
    siblings: Sequence[type[Section]] = ()
    at, key, rest = tree, (), path.strip().split(".")
    while True:
        if kind is None:
            raise UserError(f"override {override!r}: {_dotted(key)!r} has no settings below it.")
        name, rest = rest[0], rest[1:]
        if name not in kind.model_fields:
            raise UserError(f"override {override!r}: {_unknown(root, kind, key, name, siblings)}")
        annotation = kind.model_fields[name].annotation
        options, mapped = _sections(annotation)
        key = (*key, name)
        if mapped and rest:
            at = _descend(at, name, key, override)
            name, rest = _named(at, rest, key, override)
            key = (*key, name)
        if not rest:
            if isinstance(value, (bool, int, float)) and not options:
                wanted = _scalar_types(annotation)
                value = text.strip() if str in wanted and type(value) not in wanted else value
            at[name] = value
            for known in [known for known in origin.lines if known[: len(key)] == key]:
                del origin.lines[known]
            origin.overrides[key] = override
            return
        if options:
            at = _descend(at, name, key, override)
            kind, siblings = _choose(options, at) or options[0], options
        else:
            kind = None


def _descend(at: dict, name: str, key: Key, override: str) -> dict:
    if at.get(name) is None:
        at[name] = {}
    if not isinstance(at[name], dict):
        raise UserError(f"override {override!r}: {_dotted(key)!r} is {shown(at[name])} in the file, not a mapping.")
    at[name] = dict(at[name])  # two sections may share one mapping through an alias
    return at[name]


def _named(at: dict, rest: list[str], key: Key, override: str) -> tuple[str, list[str]]:
    """The name that a path goes on with; names may contain dots. Only a whole new mapping makes a new name."""
    for length in range(len(rest), 0, -1):
        if ".".join(rest[:length]) in at:
            return ".".join(rest[:length]), rest[length:]
    if len(rest) == 1:
        return rest[0], []
    near = difflib.get_close_matches(rest[0], at, n=1, cutoff=0.5)
    there = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(at) or 'none'}."
    raise UserError(f"override {override!r}: the file has no {_dotted((*key, rest[0]))!r}; {there}")
