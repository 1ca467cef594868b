"""The panels of the report, in the order in which they stand in their views.

A panel is `panels/<name>.py` here (where it has data of its own) and `assets/panels/<name>.js`, which draws it. The
Python file has up to three functions, whose arrays and JSON-able values go into the page under `<panel>.<key>` and
`<panel>` respectively:

    report(contents) -> dict                      once, read at the start
    dictionary(contents, shown) -> dict           per dictionary, read when it is looked at
    features(contents, shown, chunk) -> dict      per dictionary and slice of features, read when one of them is

So a new panel is two files and its name here.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

PANELS = [
    # the run
    "run",
    "curves",
    "fidelity",
    # spaces
    "spaces",
    "matches",
    # density
    "density",
    "classes",
    "scatter",
    # features
    "features",
    # a feature
    "summary",
    "contexts",
    "logits",
    "activations",
    "history",
    "neighbours",
]


def modules() -> dict[str, ModuleType]:
    """The panels that have data of their own, by name, in order; the others draw what these have."""
    found = {name: f"{__name__}.{name}" for name in PANELS}
    return {name: import_module(module) for name, module in found.items() if find_spec(module) is not None}
