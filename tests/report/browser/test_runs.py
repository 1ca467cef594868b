"""Several runs side by side: every dictionary is there under its own name, and leads to its own features."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from tests.report.browser.reports import Report
from tests.report.browser.shown import numbers
from tests.report.browser.test_views import VIEWS, check_view


def test_every_view(look, several: Report):
    page = look(several.page)
    check_view(page, "run")
    for view in VIEWS[1:]:
        page.locator(f"nav a[data-view={view}]").click()
        check_view(page, view)
    page.get_by_test_id("features-row").locator("a").first.click()
    check_view(page, "feature")


def test_each_dictionary_has_its_own_figures(look, several: Report):
    page = look(several.page)
    assert len(several.truth) == 8 and all("--" in id for id in several.truth)
    shown = numbers(page.get_by_test_id("panel-fidelity"))
    kl = {one.index: one.value for one in shown if one.of == "fidelity.kl"}
    expected = {}
    for run in several.runs:
        for name, entry in json.loads((run / "analysis" / "fidelity.json").read_text()).items():
            expected[f"{run.name}--{name}"] = entry["kl"]
    assert kl == expected and len(set(kl.values())) == 8
    for id, arrays in several.truth.items():
        page.evaluate("(to) => { location.hash = to; }", f"#/feature/{id}/1")
        expect(page.get_by_test_id("feature-title")).to_contain_text(id)
        found = {one.of: one.value for one in numbers(page)}
        assert found["features.projection"] == arrays["projection"][1]


def test_columns_measured_on_different_text_are_not_compared(look, several: Report, synthetic: Report):
    """One model throughout: other counts of tokens, or another cross-entropy of that model, mean other text."""
    for report in (several, synthetic):
        entries = [
            entry
            for run in report.runs
            for entry in json.loads((run / "analysis" / "fidelity.json").read_text()).values()
        ]
        texts = {(entry["tokens"], round(entry["ce"]["original"], 3)) for entry in entries}
        panel = look(report.page).get_by_test_id("panel-fidelity")
        expect(panel.get_by_text("measured on different text")).to_have_count(int(len(texts) > 1))
        expect(panel.get_by_role("rowheader", name="Dead features on the tokens counted below")).to_be_visible()


def test_features_of_one_run_are_found_in_the_other(look, several: Report):
    """Matches lead across runs, since both were read on one text."""
    id = "first--update"
    feature = int(several.truth[id]["fires"].argmax())
    page = look(several.page, f"#/feature/{id}/{feature}")
    links = page.get_by_test_id("panel-neighbours").locator("a")
    hrefs = links.evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    others = {href.split("/")[2] for href in hrefs}
    assert others == set(several.truth)
    index = next(k for k, href in enumerate(hrefs) if href.startswith("#/feature/second--update/"))
    target = hrefs[index].rsplit("/", 1)[1]
    links.nth(index).click()
    expect(page.get_by_test_id("feature-title")).to_contain_text(f"Feature {target}")
    expect(page.get_by_test_id("feature-title")).to_contain_text("second--update")
