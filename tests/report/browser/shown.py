"""Numbers as the pages show them, read back from their text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Locator, Page

_UNITS = {"": 1.0, "%": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"([+−]?)([\d,]+(?:\.(\d+))?)(?:e([+−]?\d+))?\u202f?(%|k|M|G|)")


def parse(text: str) -> tuple[float, float]:
    """(number, half a unit of its last digit) of a text such as `1,204`, `−3.20e−5`, `12.1 %`, `131 k`."""
    match = _NUMBER.fullmatch(text.strip())
    assert match, f"{text!r} is no number"
    sign, digits, decimals, exponent, unit = match.groups()
    scale = _UNITS[unit] * 10.0 ** int((exponent or "0").replace("−", "-"))
    number = float(digits.replace(",", "")) * scale
    return (-number if sign == "−" else number), 0.5 * 10.0 ** -len(decimals or "") * scale


def says(text: str, number: float) -> bool:
    """Whether the text is the number, rounded."""
    shown, half = parse(text)
    return abs(shown - number) <= half * (1 + 1e-6) + 1e-12 * abs(number)


@dataclass(frozen=True)
class Shown:
    """One number on a page."""

    of: str
    """panel.array"""
    index: str | None
    value: float
    """Before rounding."""
    text: str


_READ = """(root) => [...root.querySelectorAll("[data-value-of][data-value]")].map((e) => ({
  of: e.dataset.valueOf, index: e.dataset.index ?? null, value: e.dataset.value, text: e.textContent}))"""


def numbers(where: Page | Locator) -> list[Shown]:
    """All marked numbers inside, in the order of the document."""
    root = where.locator("main") if isinstance(where, Page) else where
    found: list[dict[str, Any]] = root.evaluate(_READ)
    return [Shown(one["of"], one["index"], js_number(one["value"]), one["text"]) for one in found]


def js_number(text: str) -> float:
    """What JavaScript's String(x) wrote."""
    return math.inf if text == "Infinity" else -math.inf if text == "-Infinity" else float(text)


def cells(rows: Locator) -> list[list[str]]:
    """Texts of the cells of a table's rows."""
    return rows.evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
