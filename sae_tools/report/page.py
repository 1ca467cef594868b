"""The page: a shell with everything in it, which loads nothing from anywhere.

Style and scripts stand in the page itself, and its content security policy names them by their hashes: nothing else
runs, whatever the text that is shown says, and nothing is fetched. Data stand in <script> elements of a type that
browsers do not run, in base64.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from sae_tools.report.blobs import Blob
from sae_tools.report.contents import Contents
from sae_tools.report.marker import MARKER
from sae_tools.report.panels import PANELS

CORE = [
    "namespace",
    "format",
    "tokens",
    "dom",
    "blobs",
    "theme",
    "scales",
    "tip",
    "plot",
    "canvas",
    "classes",
    "windows",
    "list",
    "table",
    "routes",
    "figures",
    "keys",
    "app",
]
"""assets/core/<name>.js, in the order in which they run; assets/panels/<name>.js follow in the order of PANELS."""


def render(contents: Contents, blobs: Iterable[Blob]) -> Iterator[str]:
    """The page in pieces. blobs: what goes into it; of a folder's page none, its scripts load them from data/."""
    environment = Environment(
        loader=PackageLoader("sae_tools.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    css, js = style(), scripts()
    return environment.get_template("report.html.j2").generate(
        title=contents.title,
        marker=MARKER,
        policy=policy(css, js, contents.sharded),
        style=css,
        scripts=js,
        blobs=blobs,
    )


def policy(css: str, js: list[str], sharded: bool) -> str:
    """The content security policy. In a folder the page's own scripts may load others, which are its data."""
    run = [f"'sha256-{digest(text)}'" for text in js] + (["'strict-dynamic'"] if sharded else [])
    return (
        f"default-src 'none'; script-src {' '.join(run)}; style-src 'sha256-{digest(css)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def style() -> str:
    return inline("style.css")


def scripts() -> list[str]:
    return [inline(f"core/{name}.js") for name in CORE] + [inline(f"panels/{name}.js") for name in PANELS]


def inline(name: str) -> str:
    """An asset's text, as it can stand inside an element. ValueError if something in it would end that element."""
    text = files("sae_tools.report").joinpath("assets", name).read_text(encoding="utf-8").replace("\r\n", "\n")
    for word in ("</script", "</style", "<!--"):
        if word in text.lower():
            raise ValueError(f"assets/{name} has {word} in it, which would end the element it stands in")
    return text
