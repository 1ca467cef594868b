"""Somebody else's SAE: a folder that SAELens wrote becomes a report by one command, and its numbers are SAELens's."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.report.browser.reports import Report, Workshop
from tests.report.browser.shown import numbers
from tests.report.browser.test_views import VIEWS, check_view

pytest.importorskip("sae_lens", reason="SAELens is not installed")

from tests.report.browser.foreign import FEATURES, HOOKS, by_saelens, foreign  # noqa: E402 (imports sae_lens)


@pytest.fixture(params=list(HOOKS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def report(kind: str, workshop: Workshop) -> Report:
    return workshop.make(kind, lambda folder: foreign(kind, folder))


def test_every_view(kind: str, look, report: Report):
    page = look(report.page)
    check_view(page, "run")
    expect(page.get_by_test_id("panel-run")).to_contain_text(HOOKS[kind])
    expect(page.get_by_test_id("panel-run")).to_contain_text("whether they were trained on is not known")
    expect(page.get_by_test_id("panel-fidelity")).to_contain_text("at the end of training; this one came without")
    for view in VIEWS[1:]:
        page.locator(f"nav a[data-view={view}]").click()
        check_view(page, view)
        if view == "spaces":
            expect(page.locator("main")).not_to_contain_text("Trained in × measured in")
            expect(page.locator("main")).to_contain_text("this one came without")
    (id,) = report.truth
    page.evaluate("(to) => { location.hash = to; }", f"#/feature/{id}/{report.truth[id]['fires'].argmax()}")
    check_view(page, "feature")
    expect(page.get_by_test_id("context").first).to_be_visible()


def test_numbers_are_those_of_saelens(kind: str, look, report: Report):
    truth = by_saelens(report, kind)
    (id,) = report.truth
    assert (truth["density"] == 0).sum() >= 3 and (truth["density"] > 0).sum() > FEATURES / 3
    page = look(report.page, f"#/features?d={id}", height=4500)
    expect(page.get_by_test_id("features-row")).to_have_count(FEATURES)
    shown: dict[str, dict[int, float]] = {}
    for one in numbers(page.get_by_test_id("panel-features")):
        shown.setdefault(one.of, {})[int(one.index or -1)] = one.value
    densities = np.array([shown["features.fires"][i] for i in range(FEATURES)])
    maxima = np.array([shown["features.maximum"][i] for i in range(FEATURES)])
    np.testing.assert_allclose(densities, truth["density"], atol=1.01 / truth["tokens"])  # one token on the edge
    assert (np.abs(densities - truth["density"]) > 1e-9).mean() < 0.05
    np.testing.assert_allclose(maxima, truth["maximum"], rtol=1e-4)
    if kind == "standard":  # whose decoder rows have any norm: activations are shown in units of rows of norm 1
        assert not np.allclose(truth["norm"], 1, atol=0.1)
    feature = int(truth["maximum"].argmax())
    page.evaluate("(to) => { location.hash = to; }", f"#/feature/{id}/{feature}")
    expect(page.get_by_test_id("feature-title")).to_contain_text(f"Feature {feature}")
    strongest = next(one for one in numbers(page) if one.of == "contexts.example_value")
    assert strongest.value == pytest.approx(truth["maximum"].max(), rel=1e-4)
