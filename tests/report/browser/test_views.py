"""Every view and every panel, in light and dark, on a telephone and on a wide screen: drawn, legible, accessible."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from sae_tools.report.panels import PANELS
from tests.report.browser.accessibility import violations
from tests.report.browser.layout import trouble
from tests.report.browser.reports import Report

VIEWS = ["run", "spaces", "density", "features"]
LOOKS = [(dark, width) for dark in (False, True) for width in (390, 1600)]
ids = [f"{'dark' if dark else 'light'}-{width}" for dark, width in LOOKS]

_SLIPS = """() => [...document.querySelectorAll("body *:not(script)")].flatMap((element) => {
  const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data);
  return [...own, ...[...element.attributes].map((attribute) => `${attribute.name}=${attribute.value}`)]
    .filter((text) => /\\[object |\\bundefined\\b|\\bNaN\\b/.test(text) && !element.closest("pre, .token, .chip"));
})"""
"""Text and attributes in which a value was written that is none."""


def check_view(page: Page, view: str, *, contrast: bool = False) -> None:
    """All panels of the view are drawn, nothing is cut off, axe-core finds nothing."""
    root = page.get_by_test_id(f"view-{view}")
    expect(root).to_be_visible()
    sections = root.locator("section[data-testid^=panel-]").all()
    assert sections
    for section in sections:
        expect(section.locator(".body")).not_to_be_empty()
        for summary in section.locator("details > summary").all():
            summary.click()
    expect(root.get_by_text("could not be drawn")).to_have_count(0)
    assert not page.evaluate(_SLIPS)
    assert not trouble(page)
    assert not violations(page, contrast=contrast)


@pytest.mark.parametrize("address", ["#/density?w=1.5&sum=1.5", "#/features?w=1.5&sum=1.5&class=dead"])
def test_an_address_with_numbers_that_are_no_places(look, synthetic: Report, address: str):
    page = look(synthetic.page, address)
    expect(page.get_by_test_id("panel-density" if "density" in address else "count")).to_be_visible()
    assert not page.evaluate(_SLIPS)


@pytest.mark.parametrize(("dark", "width"), LOOKS, ids=ids)
def test_every_view(dark: bool, width: int, look, synthetic: Report):
    contrast = width == 1600  # which does not depend on the width
    page = look(synthetic.page, dark=dark, width=width)
    check_view(page, "run", contrast=contrast)
    for view in VIEWS[1:]:
        page.locator(f"nav a[data-view={view}]").click()
        check_view(page, view, contrast=contrast)
    page.get_by_test_id("features-row").locator("a").first.click()
    check_view(page, "feature", contrast=contrast)
    scheme = (
        page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        .removeprefix("rgb(")
        .split(",")
    )
    assert (int(scheme[0]) < 80) == dark


def test_every_panel_is_in_its_view(look, synthetic: Report):
    page = look(synthetic.page)
    found = []
    for view in [*VIEWS, "feature"]:
        page.evaluate("(to) => { location.hash = to; }", "#/feature/mlp_acts/3" if view == "feature" else f"#/{view}")
        expect(page.get_by_test_id(f"view-{view}")).to_be_visible()
        sections = page.locator("section[data-testid^=panel-]")
        found += sections.evaluate_all("sections => sections.map((one) => one.dataset.testid.replace('panel-', ''))")
    assert sorted(found) == sorted(PANELS)


def test_the_theme_is_switched_and_kept(look, synthetic: Report):
    page = look(synthetic.page, "#/density")
    background = "() => getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(background)
    assert dark != light
    check_view(page, "density", contrast=True)
    page.reload()
    expect(page.get_by_role("button", name="Light")).to_be_visible()
    assert page.evaluate(background) == dark
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(background) == light
