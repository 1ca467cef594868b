"""YAML as configurations need it: every value knows its line, and what is written reads back as what it was.

The plain scalars are those of YAML 1.2, and not 1.1 as PyYAML has them: `3e-4` is a number, and `off`, `no` and
`2024-01-01` are text. A key that stands twice is refused. `<<: *name` takes over the settings of another mapping.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sae_tools.errors import UserError

Key = tuple[str | int, ...]
"""Where a value stands: ("dictionaries", "update", "d_sae")."""

_MERGE = "tag:yaml.org,2002:merge"
_MAX_VALUES = 100_000  # what aliases may unfold to


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
     "-+0123456789."),
    ("merge", r"<<", "<"),
):  # fmt: skip
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = node.value.replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    """PyYAML writes some line separators (U+0085) so that they do not read back, except in double quotes."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Dumper.add_representer(str, _text)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", "")))


def parse(text: str, source: str) -> tuple[Any, dict[Key, int]]:
    """The value of a YAML document, and the line (from 1) at which each of its values stands.

    `source` is the file's name for messages. Raises UserError, naming the line, for what is no YAML.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reading = _Reading(loader, source)
        return (None if node is None else reading.value(node, ())), reading.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deep for a configuration.") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Reading:
    """Turns PyYAML's nodes into values, remembering lines."""

    def __init__(self, loader: _Loader, source: str):
        self.loader, self.source = loader, source
        self.lines: dict[Key, int] = {}
        self.visited = 0  # nodes, each alias counted with all that it stands for
        self.above: list[yaml.Node] = []

    def where(self, node: yaml.Node) -> str:
        return f"{self.source}, line {node.start_mark.line + 1}"

    def value(self, node: yaml.Node, key: Key) -> Any:
        self.visited += 1
        if self.visited > _MAX_VALUES:
            raise UserError(f"{self.where(node)}: more than {_MAX_VALUES} values, too many for a configuration.")
        if any(node is other for other in self.above):
            raise UserError(f"{self.where(node)}: an alias that contains itself.")
        self.lines[key] = node.start_mark.line + 1
        self.above.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*key, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, key)
            return self.loader.construct_object(node)
        finally:
            self.above.pop()

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        taken_over: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if name_node.tag == _MERGE:
                value = self.value(value_node, key)
                for part in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(part, dict):
                        raise UserError(f"{self.where(name_node)}: `<<` takes over a mapping, not {shown(part)}.")
                    taken_over.update(part)
                continue
            name = self.loader.construct_object(name_node, deep=True)
            if not isinstance(name, str):
                raise UserError(f"{self.where(name_node)}: a key must be text, not {shown(name)} (put it in quotes).")
            if name in own:
                raise UserError(f"{self.where(name_node)}: the key {name!r} stands twice in one mapping.")
            own[name] = self.value(value_node, (*key, name))
            self.lines[(*key, name)] = name_node.start_mark.line + 1
        return taken_over | own


def dump(value: Any) -> str:
    """Block-style YAML in the given order that `parse` reads back as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)


def shown(value: Any) -> str:
    """A value as one short piece of a sentence."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
