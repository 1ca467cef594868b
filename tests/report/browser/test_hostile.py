"""A hostile model on a hostile corpus: everything is shown, as text; nothing of it runs, loads or moves the page."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from sae_tools.runs.tensors import load_tensors
from tests.report.browser.accessibility import violations
from tests.report.browser.hostile import CARD, CLOSING, LONG, TOKENS
from tests.report.browser.layout import trouble
from tests.report.browser.reports import Report

_INJECTED = """() => {
  const known = new Set(["application/octet-stream", ""]);
  const elements = [...document.querySelectorAll("*")];
  return [
    ...elements.filter((e) => ["IMG", "IFRAME", "OBJECT", "EMBED", "BASE", "FORM", "AUDIO", "VIDEO"].includes(e.tagName)
      && !(e.tagName === "FORM" && e.closest("dialog"))),
    ...elements.filter((e) => e.tagName === "SCRIPT" && (e.src || !known.has(e.type))),
    ...elements.filter((e) => e.tagName === "STYLE" || (e.tagName === "META" && /refresh/i.test(e.httpEquiv))).slice(1),
    ...elements.filter((e) => [...e.attributes].some((a) => /^on/i.test(a.name) || /^\\s*javascript:/i.test(a.value))),
    ...elements.filter((e) => e.tagName === "A" && !e.getAttribute("href").startsWith("#")),
  ].map((e) => e.outerHTML.slice(0, 200));
}"""


def check_inert(page: Page) -> None:
    assert page.evaluate("() => window.canary") is None
    assert page.evaluate(_INJECTED) == []
    # What would reorder or hide its neighbours is never set as it is, but in the card, which stands there as written.
    texts = page.evaluate(
        "() => [...document.querySelectorAll('body *:not(script, pre)')].flatMap((e) => [...e.childNodes])"
        ".filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data)"
    )
    assert not set("\u202e\u2066\u2028\u200b\x00\x1b") & set("".join(texts))


def address(report: Report, wanted: str) -> str:
    """Of a feature with that token in a context of its page."""
    tokens = load_tensors(report.files / "corpus-0.safetensors")[0]["tokens"].numpy()
    number = json.loads((report.files / "vocabulary-0.json").read_text())["tokens"].index(wanted)
    for id, arrays in report.truth.items():
        meta = report.meta[id]
        for i in range(len(arrays["fires"])):
            for e in range(*arrays["example_start"][i : i + 2]):
                context, position = divmod(int(arrays["example_token"][e]), meta["length"])
                if number in tokens[context, max(0, position - meta["before"]) : position + meta["after"] + 1]:
                    return f"#/feature/{id}/{i}"
    raise AssertionError(f"no feature has {wanted!r} in its contexts")


@pytest.mark.parametrize("width", [390, 1600])
def test_every_view_is_inert(width: int, look, hostile: Report):
    page = look(hostile.page, width=width)
    for view in ("run", "spaces", "density", "features"):
        page.locator(f"nav a[data-view={view}]").click()
        expect(page.get_by_test_id(f"view-{view}")).to_be_visible()
        for summary in page.locator("main details > summary").all():
            summary.click()
        check_inert(page)
        assert not trouble(page)
    page.evaluate("(to) => { location.hash = to; }", address(hostile, CLOSING))
    expect(page.get_by_test_id("context").first).to_be_visible()
    check_inert(page)
    assert not trouble(page)
    assert not violations(page)


@pytest.mark.parametrize("token", TOKENS, ids=["closing", "comment", "reversed", "long", "attribute"])
def test_tokens_are_shown_as_text(token: str, look, hostile: Report):
    """In a context every character of them stands there to be read, those without a glyph by their number."""
    page = look(hostile.page, address(hostile, token))
    visible = "".join({" ": "·"}.get(c, c if c.isprintable() else f"⟨U+{ord(c):04X}⟩") for c in token)
    found = page.get_by_test_id("context").locator(".token", has_text=visible)
    expect(found.first).to_be_visible()
    assert visible in found.first.inner_text()
    check_inert(page)
    if token is LONG:
        assert not trouble(page)


def test_special_bytes_and_controls_are_shown(look, hostile: Report):
    """Single bytes that are no text are shown as escapes, controls by their number."""
    page = look(hostile.page, address(hostile, "\x1b"))
    expect(page.get_by_test_id("context").locator(".token", has_text="⟨U+001B⟩").first).to_be_visible()
    page.evaluate("(to) => { location.hash = to; }", address(hostile, "\\xE2"))
    expect(page.get_by_test_id("context").locator(".token", has_text="\\xE2").first).to_be_visible()


def test_the_card_and_the_names_are_text(look, hostile: Report):
    page = look(hostile.page)
    panel = page.get_by_test_id("panel-run")
    panel.locator("summary", has_text="Model card").click()
    expect(panel.locator("pre", has_text="# Card")).to_be_visible()
    shown = panel.locator("pre", has_text="# Card").evaluate("(pre) => pre.textContent")
    assert CLOSING in shown and "](javascript:window.canary=1)" in shown and len(shown) >= len(CARD) - 10
    expect(panel).to_contain_text("<img src=x onerror=window.canary=1>&{{7*7}}")
    check_inert(page)


def test_addresses_and_searches_are_text(look, hostile: Report):
    page = look(hostile.page, f"#/features?q={CLOSING}")
    expect(page.get_by_test_id("search")).to_have_value(CLOSING)
    expect(page.get_by_test_id("count")).to_be_visible()
    check_inert(page)
    for to in ("#/feature/<img src=x onerror=window.canary=1>/1", f"#/density?d={CLOSING}"):
        page.evaluate("(to) => { location.hash = to; }", to)
        expect(page.locator("main")).to_contain_text("onerror")
        check_inert(page)


def test_the_canary_would_sing(browser, hostile: Report, tmp_path):
    """The same texts in a page that does not escape them: the tests above would see it."""
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html><body>{CLOSING}</body>")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.wait_for_function("() => window.canary === 1")
        with pytest.raises(AssertionError):
            check_inert(page)
