"""Numbers on pages are those of the analysis files: every marked number of features drawn at random, 200 at least."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from sae_tools.runs.density import read_windows
from sae_tools.runs.tensors import load_tensors
from tests.report.browser.reports import Report
from tests.report.browser.shown import Shown, cells, numbers, says

FEATURES = 10
"""Pages looked at for each report."""
PER_ROW = ("logit_top", "logit_bottom", "peak_token")

Expected = dict[str, list[float]]
"""By panel.array, what a page should show, in the order in which it shows it."""


def summary(arrays: dict[str, np.ndarray], i: int, tokens: int) -> Expected:
    """The figures of the feature's head, in files other than those the page's own panels read."""
    live = arrays["fires"][i] > 0
    expected = {"features.fires": [arrays["fires"][i] / tokens]}
    expected |= {f"features.{key}": [arrays[key][i]] for key in ("projection", "cosine", "b_enc", "decoder_norm")}
    if live:
        expected |= {f"features.{key}": [arrays[key][i]] for key in ("maximum", "mean_active")}
        expected["activations.maximum"] = [arrays["maximum"][i]]
    if arrays["match_value"].shape[1] and arrays["match_value"][i, :, 0].max() > 0:  # otherwise a dash
        expected["features.best_match"] = [max(0, arrays["match_value"][i, :, 0].max())]
    if "logit_norm" in arrays:
        expected |= {key: [arrays["logit_norm"][i]] for key in ("features.logit_norm", "logits.norm")}
        expected |= {f"logits.{side}_value": list(arrays[f"logit_{side}_value"][i]) for side in ("top", "bottom")}
    return expected


def neighbours(arrays: dict[str, np.ndarray], i: int) -> Expected:
    expected: Expected = {}
    for feature, *values in (
        ("nearest_feature", "nearest_cosine"),
        ("antipode_feature", "antipode_cosine"),
        ("correlated_feature", "correlated_value"),
        ("match_feature", "match_value", "match_cosine"),
    ):
        there = np.ravel(arrays[feature][i])
        expected[f"neighbours.{feature}"] = [float(x) for x in there[there >= 0]]
        for name in values:
            found = np.ravel(arrays[name][i])[there >= 0]
            expected[f"neighbours.{name}"] = [float(x) for x in found if not np.isnan(x)]
    return expected


def examples(arrays: dict[str, np.ndarray], i: int) -> tuple[Expected, slice]:
    shown = slice(*arrays["example_start"][i : i + 2])
    windows = slice(*arrays["window_start"][[shown.start, shown.stop]])
    return {
        "contexts.example_value": list(arrays["example_value"][shown]),
        "contexts.window_value": list(arrays["window_value"][windows]),
    }, shown


def check(found: list[Shown], expected: Expected, quantum: float) -> int:
    """All of it, and nothing else; `quantum` is the step to which activations in windows are rounded."""
    by_array: dict[str, list[Shown]] = defaultdict(list)
    for one in found:
        by_array[one.of].append(one)
    assert sorted(by_array) == sorted(of for of, values in expected.items() if values)
    for of, values in expected.items():
        shown = by_array[of]
        assert len(shown) == len(values), of
        for one, value in zip(shown, values, strict=True):
            if of == "contexts.window_value":  # a token on its coloured ground: its text is the token
                assert abs(one.value - value) <= quantum * 1.0001, (one, value)
                continue
            if of == "features.fires":  # a share is divided there and here
                assert one.value == pytest.approx(value, rel=1e-12)
            else:
                assert one.value == value, (one, value)
            if not of.endswith("_feature"):  # whose text is a name
                assert says(one.text, one.value), one
    return len(found)


def chosen_features(report: Report, id: str, count: int, rng: np.random.Generator) -> list[int]:
    """At random, and one that never fires if there is one."""
    fires = report.truth[id]["fires"]
    dead = np.flatnonzero(fires == 0)[:1]
    return [int(i) for i in (*rng.choice(len(fires), count - len(dead), replace=False), *dead)]


def check_contexts(page: Page, report: Report, id: str, i: int) -> None:
    """The tokens of every context, and the effects where some were measured."""
    arrays, meta = report.truth[id], report.meta[id]
    corpus = load_tensors(report.files / f"corpus-{meta['corpus']}.safetensors")[0]["tokens"].numpy()
    vocabulary = json.loads((report.files / f"vocabulary-{meta['corpus']}.json").read_text())["tokens"]
    shown = range(*arrays["example_start"][i : i + 2])
    read = """rows => rows.map((row) => [...row.querySelectorAll(".token")]
      .map((token) => [token.textContent, token.dataset.effect ?? null]))"""
    contexts = page.get_by_test_id("context").evaluate_all(read)
    assert len(contexts) == len(shown)
    effects = [arrays["effect_value"][slice(*arrays["effect_start"][e : e + 2])] for e in shown]
    step = max((np.abs(values).max() for values in effects if len(values)), default=0) / 32767
    for e, values, tokens in zip(shown, effects, contexts, strict=True):
        context, position = divmod(int(arrays["example_token"][e]), meta["length"])
        first, stop = max(0, position - meta["before"]), min(meta["length"], position + meta["after"] + 1)
        assert len(tokens) == stop - first
        for token, (text, _) in zip(corpus[context, first:stop], tokens, strict=True):
            plain = vocabulary[token].replace(" ", "·").replace("\n", "⏎").replace("\t", "→")
            if plain.replace("·", "").replace("⏎", "").replace("→", "").isascii() and plain.isprintable():
                assert text == plain
        expected = np.zeros(stop - first)
        expected[arrays["effect_offset"][slice(*arrays["effect_start"][e : e + 2])]] = values
        if not arrays["effect_measured"][e]:
            expected[:] = 0
        for value, (_, effect) in zip(expected, tokens, strict=True):
            if effect is None:
                assert abs(value) < 0.001 + step
            else:
                assert abs(float(effect) - value) <= step and abs(value) > 0.001 - step


@pytest.mark.parametrize("which", ["real", "synthetic"])
def test_pages_of_features(which: str, look, request: pytest.FixtureRequest):
    report: Report = request.getfixturevalue(which)
    rng = np.random.default_rng(0)
    page = look(report.page)
    total: Counter[str] = Counter()
    for id, arrays in report.truth.items():
        for i in chosen_features(report, id, -(-FEATURES // len(report.truth)), rng):
            page.evaluate("(hash) => { location.hash = hash; }", f"#/feature/{id}/{i}")
            expect(page.get_by_test_id("feature-title")).to_contain_text(str(i))
            expect(page.get_by_test_id("feature-title")).to_contain_text(id)
            expected = {**summary(arrays, i, report.meta[id]["tokens"]), **neighbours(arrays, i)}
            contexts, shown = examples(arrays, i)
            quantum = float(arrays["maximum"][i]) / 65535
            found = numbers(page)
            total[id] += check(found, {**expected, **contexts}, quantum)
            check_contexts(page, report, id, i)
    assert total.total() >= 200 and all(total[id] for id in report.truth)


@pytest.mark.parametrize("which", ["real", "synthetic"])
def test_histograms_and_history(which: str, look, request: pytest.FixtureRequest):
    """The tables under the figures of a feature's page."""
    report: Report = request.getfixturevalue(which)
    id = next(iter(report.truth))
    arrays = report.truth[id]
    i = int(np.argmax(arrays["fires"]))
    page = look(report.page, f"#/feature/{id}/{i}")

    def rows(panel: str) -> list[list[str]]:
        section = page.get_by_test_id(f"panel-{panel}")
        section.locator("details > summary").click()
        expect(section.locator("details table")).to_be_visible()
        return cells(section.locator("details tbody tr"))

    counts = [int(count.replace(",", "")) for _, count in rows("activations")]
    assert counts == arrays["histogram"][i].tolist()
    windows = read_windows(report.runs[0] / id / "density")
    history = rows("history")
    assert len(history) == len(windows)
    for window, (tokens, fired, of, density) in zip(windows, history, strict=True):
        assert [int(text.replace(",", "")) for text in (tokens, fired, of)] == [
            window.end,
            window.fires[i],
            window.tokens,
        ]
        assert says(density, float(window.fires[i] / window.tokens))


def test_the_table(look, synthetic: Report):
    """Every number in the rows in sight, of a random order."""
    id = list(synthetic.truth)[1]
    arrays = synthetic.truth[id]
    page = look(synthetic.page, f"#/features?d={id}&sort=maximum&dir=desc")
    found = [one for one in numbers(page) if one.of.startswith("features.") and one.of.split(".")[1] not in PER_ROW]
    assert len(found) >= 100
    arrays = {**arrays, "best_match": np.maximum(arrays["match_value"][:, :, 0].max(1), 0)}
    for one in found:
        key, i = one.of.removeprefix("features."), int(one.index or -1)
        value = arrays[key][i] / (synthetic.meta[id]["tokens"] if key == "fires" else 1)
        assert one.value == pytest.approx(value, rel=1e-12) and says(one.text, one.value), one
