"""Without a mouse, and by address: keys, the order of Tab, the back button, links to a feature."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.report.browser.reports import Report

ID = "logit_update"


def title(page: Page, feature: int, id: str = ID) -> None:
    """The page shows this feature, in its heading and in its address."""
    expect(page.get_by_test_id("feature-title")).to_contain_text(f"Feature {feature}")
    expect(page.get_by_test_id("feature-title")).to_contain_text(id)
    assert page.url.endswith(f"#/feature/{id}/{feature}")


def test_arrows_turn_the_pages(look, synthetic: Report):
    page = look(synthetic.page, f"#/feature/{ID}/255")
    page.keyboard.press("ArrowRight")  # into the next chunk
    title(page, 256)
    page.keyboard.press("ArrowLeft")
    title(page, 255)
    page.keyboard.press("ArrowLeft")
    title(page, 254)
    page.evaluate("(to) => { location.hash = to; }", f"#/feature/{ID}/0")
    title(page, 0)
    page.keyboard.press("ArrowLeft")  # there is none before
    title(page, 0)
    page.evaluate("(to) => { location.hash = to; }", f"#/feature/{ID}/399")
    title(page, 399)
    page.keyboard.press("ArrowRight")
    title(page, 399)


def test_arrows_follow_the_list_one_came_from(look, synthetic: Report):
    order = np.argsort(-synthetic.truth[ID]["maximum"], kind="stable").tolist()
    page = look(synthetic.page, f"#/features?d={ID}&sort=maximum&dir=desc")
    page.get_by_test_id("features-row").nth(2).locator("a").click()
    title(page, order[2])
    for feature in (order[3], order[4]):
        page.keyboard.press("ArrowRight")
        title(page, feature)
    for feature in (order[3], order[2], order[1]):
        page.keyboard.press("ArrowLeft")
        title(page, feature)
    page.go_back()
    title(page, order[2])


def test_slash_searches_and_letters_typed_there_do_nothing_else(look, synthetic: Report):
    page = look(synthetic.page, f"#/feature/{ID}/7")
    page.keyboard.press("/")
    search = page.get_by_test_id("search")
    expect(search).to_be_focused()
    assert f"d={ID}" in page.url
    page.keyboard.type("r/?")
    expect(search).to_have_value("r/?")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(search).not_to_be_focused()


def test_question_mark_lists_the_keys(look, synthetic: Report):
    page = look(synthetic.page)
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("search")
    page.keyboard.press("ArrowRight")  # goes nowhere meanwhile
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Keys").click()
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)


def test_a_table_row_by_keys(look, synthetic: Report):
    page = look(synthetic.page, f"#/features?d={ID}")
    page.get_by_test_id("search").press("Enter")
    focused = page.locator("tr[data-row] a:focus")
    expect(focused).to_have_text("0")
    for key, row in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 399), ("Home", 0)):
        page.keyboard.press(key)
        expect(focused).to_have_text(str(row))
    page.keyboard.press("PageDown")
    expect(focused).not_to_have_text("0")
    row = int(focused.inner_text())
    page.keyboard.press("Enter")
    title(page, row)


def test_a_context_by_keys(look, synthetic: Report):
    """Tab reaches a context; arrows go through its tokens with their figures, said aloud too; Esc and Tab leave."""
    feature = int(np.argmax(synthetic.truth[ID]["fires"]))
    page = look(synthetic.page, f"#/feature/{ID}/{feature}")
    page.get_by_test_id("breaks").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_test_id("context").first).to_be_focused()
    tip = page.get_by_test_id("tip")
    expect(tip).to_be_visible()
    expect(tip).to_contain_text("activation")
    page.keyboard.press("Home")
    expect(page.get_by_test_id("context").first.locator(".token").first).to_have_class(
        __import__("re").compile("under")
    )
    page.keyboard.press("ArrowRight")
    expect(page.get_by_test_id("status")).to_contain_text("activation")
    title(page, feature)
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_test_id("feature-title")).to_contain_text(f"Feature {feature + 1}")


def test_lines_end_at_each_newline_of_a_token(look, synthetic: Report):
    """Indentation after a newline in the same token begins the next line; every token stays one element."""
    page = look(synthetic.page)
    lines = page.evaluate(
        r"""() => {
          const element = sae.tokens.into(document.createElement("span"), "a\n\n  \tb\r\nc", true);
          const lines = [""];
          for (const node of element.childNodes) {
            if (node.nodeName === "BR") lines.push("");
            else lines[lines.length - 1] += node.textContent;
          }
          return lines;
        }"""
    )
    assert lines == ["a⏎", "⏎", "··→b␍⏎", "c"]
    page.evaluate("(to) => { location.hash = to; }", f"#/feature/{ID}/{int(np.argmax(synthetic.truth[ID]['fires']))}")
    tokens = page.get_by_test_id("context").locator(".token")
    expect(tokens.first).to_be_visible()
    count = tokens.count()
    page.get_by_test_id("breaks").check()
    expect(page.get_by_test_id("context").locator(".token.broken > br").first).to_be_attached()
    assert tokens.count() == count


_REACHABLE = """() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex]")]
  .filter((e) => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({ visibilityProperty: true }))
  .filter((e) => e.type !== "radio" || e.checked)"""


@pytest.mark.parametrize("view", ["run", "spaces", "density", "features", "feature"])
def test_tab_reaches_everything(view: str, look, synthetic: Report):
    """Everything that can be used is reached, in the order in which it stands, and is seen to have the focus."""
    address = f"#/feature/{ID}/{int(np.argmax(synthetic.truth[ID]['fires']))}" if view == "feature" else f"#/{view}"
    page = look(synthetic.page, address, height=2000)
    wanted = page.evaluate(f"() => ({_REACHABLE})().map((e, i) => (e.dataset.tabOrder = i)).length")
    assert wanted > 10
    page.evaluate("() => { document.activeElement?.blur(); getSelection().removeAllRanges(); }")
    seen, unseen = [], []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        order, visible = page.evaluate(
            """() => {
              const e = document.activeElement, s = getComputedStyle(e);
              const outlined = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0;
              const bars = [...e.querySelectorAll(".bar")].map((bar) => getComputedStyle(bar).stroke);
              return [Number(e.dataset.tabOrder ?? -1), outlined || bars.some((stroke) => stroke !== "none")];
            }"""
        )
        seen.append(order)
        if not visible:
            unseen.append(order)
    assert seen == list(range(wanted))
    assert not unseen


def test_every_address_leads_back(look, synthetic: Report):
    """The way through the report and back again, as a reader goes it."""
    page = look(synthetic.page)
    page.locator("nav a[data-view=density]").click()
    expect(page.get_by_test_id("view-density")).to_be_visible()
    page.locator("nav a[data-view=features]").click()
    page.get_by_role("link", name=ID, exact=True).click()
    expect(page.get_by_test_id("features-row").first).to_be_visible()
    page.get_by_test_id("features-row").nth(5).locator("a").click()
    title(page, 5)
    page.get_by_test_id("panel-neighbours").locator("a").first.click()
    expect(page.get_by_test_id("feature-title")).not_to_contain_text("Feature 5 ")
    page.go_back()
    title(page, 5)
    page.go_back()
    expect(page.get_by_test_id("view-features")).to_be_visible()
    assert f"d={ID}" in page.url
    page.go_back()
    page.go_back()
    expect(page.get_by_test_id("view-density")).to_be_visible()
    page.go_back()
    expect(page.get_by_test_id("view-run")).to_be_visible()
    page.go_forward()
    expect(page.get_by_test_id("view-density")).to_be_visible()


def test_the_way_back_leads_to_the_place_in_the_list(look, synthetic: Report):
    page = look(synthetic.page, f"#/features?d={ID}")
    page.get_by_test_id("search").press("Enter")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    title(page, 399)
    page.go_back()
    expect(page.locator("tr[data-row='399']")).to_be_visible()


def test_links_to_a_feature(look, synthetic: Report):
    page = look(synthetic.page, f"#/feature/{ID}/123")
    title(page, 123)
    assert page.title().startswith("Feature 123")
    for link in page.get_by_test_id("panel-neighbours").locator("a").all():
        _, _, id, feature = (link.get_attribute("href") or "").split("/")
        assert id in synthetic.truth and 0 <= int(feature) < 400


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (f"#/feature/{ID}/400", "0 to 399"),
        (f"#/feature/{ID}/99999", "0 to 399"),
        ("#/feature/nobody/3", "nobody"),
        ("#/nowhere", "Not here"),
        (f"#/feature/{ID}/x", "Not here"),
        ("#/features?d=nobody", "nobody"),
    ],
)
def test_addresses_of_nothing(address: str, says: str, look, synthetic: Report):
    """They say so, and the way on is open."""
    page = look(synthetic.page, address)
    expect(page.locator("main")).to_contain_text(says)
    page.locator("nav a[data-view=run]").click()
    expect(page.get_by_test_id("view-run")).to_be_visible()


@pytest.mark.parametrize(
    "address",
    [
        "#/nowhere",
        "#",
        "#/feature/%ff/x",
        "#/density?w=1e9&sum=-3",
        "#/features?sort=toString&min=x",
        "#/features?class=__proto__",
    ],
)
def test_nonsense_in_the_address_breaks_nothing(address: str, look, synthetic: Report):
    page = look(synthetic.page, address)
    expect(page.locator("main h1")).to_be_visible()


def test_bars_are_one_stop_and_arrows_go_among_them(look, synthetic: Report):
    page = look(synthetic.page, f"#/density?d={ID}")
    bars = page.get_by_test_id("panel-density").locator(".bars a")
    bars.first.focus()
    page.keyboard.press("ArrowRight")
    expect(bars.nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(bars.last).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(".bars a:focus")).to_have_count(0)
    bars.last.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("view-features")).to_be_visible()
