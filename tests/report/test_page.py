"""The page: everything in it, nothing loaded from anywhere, nothing that it shows can run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from sae_tools.report import page as page_module
from sae_tools.report.blobs import Blob
from sae_tools.report.columns import decode, unpack
from sae_tools.report.marker import MARKER, MARKER_WITHIN, is_report
from sae_tools.report.page import render
from sae_tools.report.panels import PANELS
from sae_tools.report.write import write_report
from tests.report.synthetic import HOSTILE

ASSETS = files("sae_tools.report").joinpath("assets")


class Elements(HTMLParser):
    """(tag, attributes, text) of every element, in order."""

    def __init__(self, text: str):
        super().__init__()
        self._open: str | None = None
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.found[-1][2].append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


EXPECTED = {"html", "head", "meta", "title", "link", "style", "body", "div", "noscript", "script"}


def test_the_page_has_its_elements_and_no_others(page: Path):
    elements = Elements(page.read_text())
    assert {tag for tag, _, _ in elements.found} == EXPECTED
    assert [text for _, text in elements.of("title")] == ["Features of synthetic"]
    names = {attributes.get("name") for attributes, _ in elements.of("meta")}
    assert {"viewport", "color-scheme", "generator"} <= names
    assert elements.of("html")[0][0]["lang"] == "en" and elements.of("div")[0][0] == {"id": "sae"}


def test_nothing_is_loaded_from_anywhere(page: Path):
    elements = Elements(page.read_text())
    for tag, attributes, _ in elements.found:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "style" not in attributes, tag
        if "href" in attributes:
            assert attributes["href"] == "data:,", tag
    ((_, style),) = elements.of("style")
    assert "@import" not in style and not re.search(r"url\((?!['\"]?data:)", style)
    for _, script in elements.of("script"):
        for address in re.findall(r"(?:https?|wss?|ftp)://[^\s'\"`)]*", script):
            assert address.startswith("http://www.w3.org/"), address  # names of namespaces, which nobody loads


def test_the_policy_lets_exactly_what_stands_in_the_page_run(page: Path):
    text = page.read_text()
    elements = Elements(text)
    (policy,) = [a["content"] for a, _ in elements.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in (policy or "").split(";")}
    assert rules["default-src"] == ["'none'"] and rules["img-src"] == ["data:"]

    def digests(contents: list[str]) -> list[str]:
        raw = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        return [f"'sha256-{digest}'" for digest in raw]

    run = [content for attributes, content in elements.of("script") if "type" not in attributes]
    assert rules["script-src"] == digests(run) and len(run) == len(set(run))
    assert rules["style-src"] == digests([content for _, content in elements.of("style")])
    data = [attributes for attributes, _ in elements.of("script") if "type" in attributes]
    assert {a["type"] for a in data} == {"application/octet-stream"} and data[0]["data-blob"] == "report"


def test_hostile_text_is_nowhere_in_the_page_as_it_is(page: Path, blob):
    _, values = blob("corpus/0")
    assert set(HOSTILE) <= set(values["corpus"]["vocabulary"])
    data = re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL)  # without our own code
    for text in HOSTILE[:6]:
        assert text not in data
    assert "onerror" not in data and "alert(" not in data


def test_a_hostile_title_and_blob_name_stay_text(contents):
    title = "</title><script>alert(1)</script>'\"&"
    text = "".join(render(dataclasses.replace(contents, title=title), [Blob('x"><img src=x>', "QUJD")]))
    elements = Elements(text)
    assert {tag for tag, _, _ in elements.found} == EXPECTED
    assert [content for _, content in elements.of("title")] == [title]
    assert elements.of("script")[0][0]["data-blob"] == 'x"><img src=x>'


def test_an_asset_that_would_end_its_element_is_refused(monkeypatch, tmp_path: Path):
    (tmp_path / "assets" / "core").mkdir(parents=True)
    monkeypatch.setattr(page_module, "files", lambda package: tmp_path)
    for text in ('"</SCRIPT>"', "/* <!-- */", "x = '</style>'"):
        (tmp_path / "assets" / "core" / "dom.js").write_text(text)
        with pytest.raises(ValueError, match="dom.js has"):
            page_module.inline("core/dom.js")


def test_every_asset_is_in_the_page_and_every_script_named_exists(page: Path):
    core = {path.name.removesuffix(".js") for path in ASSETS.joinpath("core").iterdir() if path.name.endswith(".js")}
    panels = {
        path.name.removesuffix(".js") for path in ASSETS.joinpath("panels").iterdir() if path.name.endswith(".js")
    }
    assert core == set(page_module.CORE) and panels == set(PANELS)
    scripts = [content for attributes, content in Elements(page.read_text()).of("script") if "type" not in attributes]
    names = [f"core/{name}.js" for name in page_module.CORE] + [f"panels/{name}.js" for name in PANELS]
    assert scripts == [ASSETS.joinpath(*name.split("/")).read_text(encoding="utf-8") for name in names]


def test_the_same_contents_make_the_same_bytes(contents, page: Path, tmp_path: Path):
    again = write_report(contents, tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()
    later = dataclasses.replace(contents, created="2031-01-01T00:00:00Z")
    other = write_report(later, tmp_path / "later.html").read_text()
    blobs = [dict(re.findall(r'data-blob="([^"]+)">([A-Za-z0-9+/=]*)<', text)) for text in (page.read_text(), other)]
    assert {name for name in blobs[0] if blobs[0][name] != blobs[1][name]} == {"report"}
    before, after = (unpack(decode(found["report"]))[1] for found in blobs)
    assert before["meta"].pop("created") != after["meta"].pop("created") and before == after


def test_a_report_is_known_by_its_head(page: Path, tmp_path: Path):
    assert page.read_bytes().index(MARKER.encode()) < MARKER_WITHIN - len(MARKER)
    assert is_report(page) and not is_report(tmp_path) and not is_report(tmp_path / "none.html")
    (tmp_path / "other.html").write_text("<!doctype html><title>x</title>")
    assert not is_report(tmp_path / "other.html")


def test_sizes(page: Path):
    """Of 70 features on 24 contexts: the shell apart, well below the 2.5 KB a feature that a report may have."""
    text = page.read_text()
    data = re.findall(r'data-blob="features/[^"]+">([A-Za-z0-9+/=]*)<', text)
    assert sum(map(len, data)) / (3 * 70) < 2500
