"""Figures of whole runs on the pages are those of the run's JSON."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest
from playwright.sync_api import expect

from tests.report.browser.reports import Report
from tests.report.browser.shown import cells, numbers, parse, says


def walk(tree: dict, path: str) -> float:
    for key in path.split("."):
        tree = tree[key]
    return tree  # type: ignore[return-value]


@pytest.mark.parametrize("which", ["real", "synthetic"])
def test_fidelity_is_that_of_the_file(which: str, look, request: pytest.FixtureRequest):
    report: Report = request.getfixturevalue(which)
    file = json.loads((report.runs[0] / "analysis" / "fidelity.json").read_text())
    page = look(report.page)
    shown = numbers(page.get_by_test_id("panel-fidelity"))
    for one in shown:
        entry = file[one.index]
        key = one.of.removeprefix("fidelity.")
        assert one.value == (entry["fvu"][entry["space"]] if key == "fvu" else walk(entry, key)), one
        assert says(one.text, one.value), one
    per_dictionary = Counter(one.index for one in shown)
    assert set(per_dictionary) == set(file) and min(per_dictionary.values()) >= 12

    page.locator("nav a[data-view=spaces]").click()
    panel = page.get_by_test_id("panel-spaces")
    expect(panel).to_be_visible()
    spaces = {(one.of, one.index): one for one in numbers(panel)}
    for id, entry in file.items():
        expected = {f"spaces.fvu.{space}": value for space, value in entry["fvu"].items()}
        expected |= {f"spaces.ce_recovered.{part}": value for part, value in entry["ce_recovered"].items()}
        for of, value in {**expected, "spaces.kl": entry["kl"]}.items():
            one = spaces.pop((of, id))
            assert one.value == value and says(one.text, value)
    assert not spaces


@pytest.mark.parametrize("which", ["real", "synthetic"])
def test_curves_are_those_of_the_metrics(which: str, look, request: pytest.FixtureRequest):
    """Every value logged stands in the tables under the charts, to the digits shown; what never changed, in words."""
    report: Report = request.getfixturevalue(which)
    lines = [json.loads(line) for line in (report.runs[0] / "metrics.jsonl").read_text().splitlines()]
    logged: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        for name, values in line["dictionaries"].items():
            for key, value in values.items():
                if value is not None:
                    logged[key][name][line["tokens"]] = value
    before = dict(zip([line["tokens"] for line in lines], [0, *(line["tokens"] for line in lines)], strict=False))
    speeds = {line["tokens"]: (line["tokens"] - before[line["tokens"]]) / line["time"]["seconds"] for line in lines}
    page = look(report.page)
    panel = page.get_by_test_id("panel-curves")
    panel.locator("summary", has_text="Everything else").click()
    shown = set()
    for figure in panel.locator("figure:has(details)").all():
        key = figure.get_attribute("data-figure") or ""
        shown.add(key)
        expected = {report.runs[0].name: speeds} if key == "tokens_per_s" else logged[key]
        figure.locator("details > summary").click()
        expect(figure.locator("details table")).to_be_visible()
        names = figure.locator("thead th").all_inner_texts()[1:]
        assert sorted(names) == sorted(expected)
        rows = cells(figure.locator("tbody tr"))
        assert [parse(row[0])[0] for row in rows] == sorted({tokens for curve in expected.values() for tokens in curve})
        for tokens, *values in rows:
            for name, cell in zip(names, values, strict=True):
                value = expected[name].get(int(parse(tokens)[0]))
                assert (cell == "–") if value is None else says(cell, value), (key, name, tokens)
    assert "tokens_per_s" in shown and {"loss", "l0"} <= shown
    text = panel.inner_text()
    for key in set(logged) - shown - {"squared_error"}:  # without penalties the loss is the squared error
        (value,) = {value for curve in logged[key].values() for value in curve.values()}
        assert key.replace("_", " ") in text.lower() and f"{value:.3g}" in text


def test_facts_of_the_run(look, real: Report):
    page = look(real.page)
    panel = page.get_by_test_id("panel-run")
    last = json.loads((real.runs[0] / "metrics.jsonl").read_text().splitlines()[-1])
    shown = {(one.of, one.index): one for one in numbers(panel)}
    assert shown[("run.tokens", None)].value == last["tokens"]
    assert shown[("meta.counted", None)].value == next(iter(real.meta.values()))["tokens"]
    panel.locator("summary", has_text="Configuration").click()
    assert panel.locator("pre").first.inner_text().strip() == (real.runs[0] / "config.yaml").read_text().strip()
