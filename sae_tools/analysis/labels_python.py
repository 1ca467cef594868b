"""What Python's own tokenizer says about each character of a source: class, quotes, brackets, indentation."""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
import warnings

import numpy as np

CLASSES = ("layout", "keyword", "name", "number", "operator", "string", "comment")
"""`layout`: line ends, indentation and other whitespace between tokens."""
UNKNOWN = 255
_BY_TYPE = {tokenize.NUMBER: "number", tokenize.OP: "operator", tokenize.STRING: "string", tokenize.COMMENT: "comment"}
_F_START, _F_MIDDLE, _F_END = (getattr(tokenize, f"FSTRING_{part}", None) for part in ("START", "MIDDLE", "END"))
"""Python 3.12 and later take f-strings apart."""
DEEPEST = 3
"""Indentation of this many levels and more is one class."""


def is_python(text: str) -> bool:
    """Whether it parses, and is more than a word or a number (prose hardly ever parses)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return any(not isinstance(node, ast.Expr) for node in ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def python_labels(text: str) -> dict[str, np.ndarray]:
    """By task, for every character and one position past the last: 1, 0, or UNKNOWN behind what does not tokenise."""
    n = len(text) + 1
    kind = np.full(n, UNKNOWN, np.uint8)
    quoted, triple, brackets, depth = (np.zeros(n, np.uint8) for _ in range(4))
    starts = [0]
    for line in io.StringIO(text):
        starts.append(starts[-1] + len(line))

    def index(place: tuple[int, int]) -> int:
        row, column = place
        return min(starts[min(row, len(starts)) - 1] + column, n)

    at = level = nesting = 0
    f_strings: list[str] = []  # openings of those that enclose this place
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            first, stop = max(index(token.start), at), index(token.end)
            if token.type == tokenize.INDENT:
                level += 1
            elif token.type == tokenize.DEDENT:
                level -= 1
            if token.type == tokenize.ERRORTOKEN:
                break
            kind[at:first] = 0  # whitespace before it
            within = slice(at, max(stop, first))
            depth[within], brackets[within] = min(level, DEEPEST), nesting > 0
            quoted[within], triple[within] = bool(f_strings), any(len(o) == 3 for o in f_strings)
            kind[first:stop] = CLASSES.index(_class(token))
            if token.type == tokenize.STRING:
                prefix = len(token.string) - len(token.string.lstrip("rRbBuUfF"))
                opening = 3 if token.string[prefix : prefix + 3] in ('"""', "'''") else 1
                quoted[first + prefix + opening : stop] = 1
                triple[first + prefix + opening : stop] = opening == 3
            elif token.type == _F_START:
                f_strings.append(token.string.lstrip("rRbBuUfFtT"))
            elif token.type == _F_END:
                f_strings.pop()
            elif token.string in ("(", "[", "{") and token.type == tokenize.OP:
                nesting += 1
            elif token.string in (")", "]", "}") and token.type == tokenize.OP:
                nesting -= 1
            at = max(at, stop)
    except (tokenize.TokenError, SyntaxError, IndexError):
        pass
    known = kind != UNKNOWN
    found = {f"class: {name}": (kind == number) for number, name in enumerate(CLASSES)}
    found |= {"inside quotes": quoted > 0, "inside triple quotes": triple > 0, "inside brackets": brackets > 0}
    found |= {f"indentation {level}{'+' if level == DEEPEST else ''}": depth == level for level in range(DEEPEST + 1)}
    return {task: np.where(known, yes, UNKNOWN).astype(np.uint8) for task, yes in found.items()}


def _class(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if token.type in (_F_START, _F_MIDDLE, _F_END):
        return "string"
    return _BY_TYPE.get(token.type, "layout")
