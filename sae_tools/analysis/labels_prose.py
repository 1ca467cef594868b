"""What prose says about each of its characters without a reader: capitals, punctuation, digits, quotation marks."""

from __future__ import annotations

import unicodedata

import numpy as np

OPENING, CLOSING, STRAIGHT = "“«„", "”»", '"'


def prose_labels(text: str) -> dict[str, np.ndarray]:
    """By task, for every character and one position past the last: 1 or 0.

    `capitalised`: the first letter of a word, in upper case. `inside quotation marks`: behind an opening mark, up to
    and with the closing one; a blank line closes what is open. `line end`: a newline.
    """
    n = len(text) + 1
    names = ("capitalised", "punctuation", "digit", "inside quotation marks", "line end")
    found = {name: np.zeros(n, np.uint8) for name in names}
    inside = False
    before = " "
    for i, character in enumerate(text):
        found["capitalised"][i] = character.isupper() and not before.isalpha()
        found["punctuation"][i] = unicodedata.category(character).startswith("P")
        found["digit"][i] = character.isdigit()
        found["line end"][i] = character == "\n"
        found["inside quotation marks"][i] = inside
        if character == "\n" and before == "\n":
            inside = False
        elif character in OPENING:
            inside = True
        elif character in CLOSING:
            inside = False
        elif character in STRAIGHT:
            inside = not inside
        before = character
    return found
