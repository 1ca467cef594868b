"""The table of features: sorted, filtered and searched as numpy does it on the same columns; figures lead to lists."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from sae_tools.runs.density import read_windows
from tests.report.browser.reports import Report

ID = "resid_update"
N = 400
"""Features."""
ULTRA_RARE, RARE, DENSE = 1e-4, 1e-3, 0.1
"""Bounds of the classes: those of a job's `fidelity` section, and one of the report's own."""
COLUMNS = ["maximum", "mean_active", "projection", "b_enc", "cosine", "decoder_norm", "logit_norm"]
"""Those that stand in the feature files as they are."""
CLASSES = ["dead", "ultra-rare", "rare", "normal", "dense"]


def shown_rows(page: Page, count: int) -> list[int]:
    """Numbers of the features in the table from top to bottom, all of them, by scrolling through it."""
    expect(page.get_by_test_id("count")).to_contain_text(re.compile(rf"^{count:,} of "))
    rows = page.evaluate(
        """async () => {
          const box = document.querySelector("[data-testid=features-row]")?.closest("table").parentElement;
          const found = new Map();
          if (!box) return [];
          for (let top = 0; ; top += box.clientHeight) {
            box.scrollTop = top;
            await new Promise(requestAnimationFrame);
            for (const row of box.querySelectorAll("[data-testid=features-row]")) {
              found.set(Number(row.getAttribute("aria-rowindex")), Number(row.dataset.row));
            }
            if (top >= box.scrollHeight) break;
          }
          box.scrollTop = 0;
          return [...found.entries()].sort((a, b) => a[0] - b[0]);
        }"""
    )
    assert [at for at, _ in rows] == list(range(2, len(rows) + 2))  # row 1 is the header
    assert len(rows) == count
    return [row for _, row in rows]


def ends(page: Page) -> tuple[list[int], list[int]]:
    """Features of the rows in sight at the top, and of those at the bottom."""
    read = """async (end) => {
      const box = document.querySelector("[data-testid=features-row]").closest("table").parentElement;
      box.scrollTop = end ? box.scrollHeight : 0;
      await new Promise(requestAnimationFrame);
      await new Promise(requestAnimationFrame);
      return [...box.querySelectorAll("[data-testid=features-row]")].map((row) => Number(row.dataset.row));
    }"""
    return page.evaluate(read, False), page.evaluate(read, True)


def columns(report: Report, id: str) -> dict[str, np.ndarray]:
    """What each heading sorts by, computed from the feature files; NaN is missing."""
    arrays = report.truth[id]
    texts = json.loads((report.files / "vocabulary-0.json").read_text())["tokens"]
    # By text without leading white space, upper and lower case alike, as UTF-16 compares; equal ones by number.
    white = "\t\n\v\f\r \u00a0\u2028\u2029\u3000\ufeff"
    order = sorted(
        range(len(texts)), key=lambda t: (texts[t].lstrip(white).lower().encode("utf-16-be", "surrogatepass"), t)
    )
    rank = np.empty(len(texts))
    rank[order] = np.arange(len(texts))
    return {
        "id": np.arange(len(arrays["fires"])),
        "density": arrays["fires"] / report.meta[id]["tokens"],
        **{key: arrays[key] for key in COLUMNS},
        "best_match": np.maximum(arrays["match_value"][:, :, 0].max(1), 0),
        "logit_top": rank[arrays["logit_top_token"][:, 0]],
        "logit_bottom": rank[arrays["logit_bottom_token"][:, 0]],
    }  # fmt: skip


def ordered(values: np.ndarray, direction: str) -> list[int]:
    return np.argsort(-values if direction == "desc" else values, kind="stable").tolist()


def kinds(share: np.ndarray) -> np.ndarray:
    return np.select([share == 0, share < ULTRA_RARE, share < RARE, share <= DENSE], [0, 1, 2, 3], 4)


def test_every_heading_sorts_both_ways(look, synthetic: Report):
    truth = columns(synthetic, ID)
    page = look(synthetic.page, f"#/features?d={ID}")
    assert shown_rows(page, N) == list(range(N))
    headings = page.locator("th[data-column]:has(button)")
    keys = [key for key in headings.evaluate_all("heads => heads.map((head) => head.dataset.column)") if key in truth]
    assert {"id", "density", "maximum", "mean_active", "projection", "b_enc", "best_match", "logit_top"} <= set(keys)
    for key in keys:
        heading = page.locator(f"th[data-column={key}]")
        directions = set()
        for _ in range(2):
            heading.locator("button").click()
            aria = heading.get_attribute("aria-sort")
            direction = {"ascending": "asc", "descending": "desc"}[aria or ""]
            expected = ordered(truth[key], direction)
            top, bottom = ends(page)
            assert top == expected[: len(top)] and bottom == expected[-len(bottom) :], (key, direction)
            assert len(top) >= 10 and len(bottom) >= 10
            directions.add(direction)
        assert directions == {"asc", "desc"}
    # And by address, whole, for one with ties.
    page.evaluate("(to) => { location.hash = to; }", f"#/features?d={ID}&sort=decoder_norm&dir=desc")
    assert shown_rows(page, N) == ordered(truth["decoder_norm"], "desc")


def test_peak_tokens_sort_with_the_missing_last(look, synthetic: Report):
    arrays = synthetic.truth[ID]
    live = arrays["fires"] > 0
    page = look(synthetic.page, f"#/features?d={ID}&sort=peak_token")
    ascending = shown_rows(page, N)
    page.evaluate("(to) => { location.hash = to; }", f"#/features?d={ID}&sort=peak_token&dir=desc")
    expect(page.locator("th[data-column=peak_token]")).to_have_attribute("aria-sort", "descending")
    descending = shown_rows(page, N)
    for rows in (ascending, descending):
        assert live[rows[: live.sum()]].all() and not live[rows[live.sum() :]].any()
    assert ascending != descending


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str, look, synthetic: Report):
    """By the control, and by its address; the features that never fired are there as any others."""
    share = columns(synthetic, ID)["density"]
    expected = np.flatnonzero(kinds(share) == CLASSES.index(name)).tolist()
    assert expected
    page = look(synthetic.page, f"#/features?d={ID}")
    page.get_by_test_id(f"class-{name}").check()
    assert shown_rows(page, len(expected)) == expected
    assert page.url.endswith(f"class={name}")
    page.get_by_test_id("features-row").first.locator("a").click()
    expect(page.get_by_test_id("feature-title")).to_contain_text(f"Feature {expected[0]}")
    if name == "dead":
        expect(page.get_by_test_id("dead")).to_be_visible()
        expect(page.get_by_test_id("panel-logits").locator("li").first).to_be_visible()
        expect(page.get_by_test_id("context")).to_have_count(0)
    else:
        expect(page.get_by_test_id("context").first).to_be_visible()
    page.go_back()
    assert shown_rows(page, len(expected)) == expected


def test_random_ones_of_a_class(look, synthetic: Report):
    share = columns(synthetic, ID)["density"]
    page = look(synthetic.page, f"#/features?d={ID}")
    for button, kind in (
        ("random-dead", 0),
        ("random-ultra-rare", 1),
        ("random-rare", 2),
        ("random-dense", 4),
        ("random", None),
    ):
        page.evaluate("(to) => { location.hash = to; }", f"#/features?d={ID}")
        page.get_by_test_id(button).click()
        expect(page.get_by_test_id("feature-title")).to_be_visible()
        feature = int(page.url.rsplit("/", 1)[1])
        assert kind is None or kinds(share)[feature] == kind


@pytest.mark.parametrize(("low", "high"), [(0.001, 0.01), (0.05, None), (None, 0.002)])
def test_ranges_of_density(low: float | None, high: float | None, look, synthetic: Report):
    share = columns(synthetic, ID)["density"]
    inside = (share >= (low or 0)) & (share < (high or np.inf))
    page = look(synthetic.page, f"#/features?d={ID}&min={low or ''}&max={high or ''}&sort=density&dir=desc")
    expected = [i for i in ordered(share, "desc") if inside[i]]
    assert shown_rows(page, len(expected)) == expected


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("self", "all"),
        ("self", "peak"),
        ('"the"', "all"),
        ('" the"', "all"),
        ('"·the"', "peak"),
        ('" The"', "top"),
        ("re", "top"),
        ("RE", "bottom"),
        ("⏎", "all"),
        (r"\n", "all"),
        (r'"\n"', "peak"),
        (r"\t", "bottom"),
        ("</script>", "all"),
        ("no such token", "all"),
    ],
)
def test_search_for_a_token(query: str, where: str, look, synthetic: Report):
    arrays = synthetic.truth[ID]
    texts = json.loads((synthetic.files / "vocabulary-0.json").read_text())["tokens"]
    wanted = query.replace("⏎", "\n").replace(r"\n", "\n").replace(r"\t", "\t").replace("·", " ")
    if wanted.startswith('"'):
        hits = {t for t, text in enumerate(texts) if wanted[1:-1] == text}
    else:
        hits = {t for t, text in enumerate(texts) if wanted.lower() in text.lower()}
    looked = {"top": [arrays["logit_top_token"]], "bottom": [arrays["logit_bottom_token"]]}
    looked["all"] = [*looked["top"], *looked["bottom"]]
    expected = {i for table in looked.get(where, []) for i in range(len(table)) if hits & set(table[i].tolist())}
    if where in ("all", "peak"):  # and the commonest tokens at the peaks of the top contexts
        expected |= {i for i, tokens in enumerate(peak_tokens(synthetic)) if hits & set(tokens)}
    page = look(synthetic.page, f"#/features?d={ID}")
    page.get_by_test_id("search").fill(query)
    if where != "peak":  # the place where it begins
        page.get_by_label("in", exact=True).select_option(where)
    assert shown_rows(page, len(expected)) == sorted(expected)
    if not expected:
        return
    marked = page.get_by_test_id("features-row").evaluate_all(
        """rows => rows.map((row) => [Number(row.dataset.row), [...row.querySelectorAll(".chip.found")]
          .map((chip) => [chip.dataset.valueOf, Number(chip.dataset.value)])])"""
    )
    for i, chips in marked:  # in every row what was found is marked, though it be the tenth token
        assert chips and {token for _, token in chips} <= hits
        for of, token in chips:
            if of != "features.peak_token":
                assert token in arrays[f"{of.removeprefix('features.')}_token"][i]


def peak_tokens(report: Report) -> list[list[int]]:
    from sae_tools.runs.tensors import load_tensors

    arrays = report.truth[ID]
    tokens = load_tensors(report.files / "corpus-0.safetensors")[0]["tokens"].numpy().reshape(-1)
    found = []
    for i in range(len(arrays["fires"])):
        at = slice(*arrays["example_start"][i : i + 2])
        top = tokens[arrays["example_token"][at][arrays["example_group"][at] == 0]].tolist()
        found.append(sorted(set(top), key=lambda token: (-top.count(token), token))[:3])
    return found


def test_search_for_a_number(look, synthetic: Report):
    page = look(synthetic.page, f"#/features?d={ID}")
    page.get_by_test_id("search").fill("231")
    assert shown_rows(page, 1) == [231]
    page.get_by_test_id("search").press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("feature-title")).to_contain_text("231")


def test_filters_combine(look, synthetic: Report):
    truth = columns(synthetic, ID)
    wanted = (kinds(truth["density"]) == 3) & (truth["density"] >= 0.004)
    expected = [i for i in ordered(truth["b_enc"], "asc") if wanted[i]]
    page = look(synthetic.page, f"#/features?d={ID}&class=normal&min=0.004&sort=b_enc&dir=asc")
    assert shown_rows(page, len(expected)) == expected


@pytest.mark.parametrize("window", [None, 3])
def test_a_bar_lists_its_features(window: int | None, look, synthetic: Report):
    """Every bar says how many features it stands for, and leads to exactly those: on held-out text, or in a window."""
    heldout = columns(synthetic, ID)["density"]
    if window is None:
        share, address = columns(synthetic, ID)["density"], f"#/density?d={ID}"
    else:
        counts = read_windows(synthetic.runs[0] / ID / "density")[window]
        share, address = counts.fires.numpy() / counts.tokens, f"#/density?d={ID}&w={window}"
    page = look(synthetic.page, address)
    bars = page.get_by_test_id("panel-density").locator(".bars a")
    said = bars.evaluate_all("bars => bars.map((bar) => [bar.getAttribute('href'), bar.getAttribute('aria-label')])")
    assert sum(int(label.split()[0].replace(",", "")) for _, label in said) == N
    lists = []
    for at, (_, label) in enumerate(said):
        if at not in (0, len(said) // 2, len(said) - 1):
            continue
        bars.nth(at).click()
        rows = shown_rows(page, int(label.split()[0]))
        bounds = re.search(r"min=([^&]*)&max=([^&]*)", page.url.replace("%2B", "+")) or re.search(
            r"min=([^&]*)()", page.url
        )
        if "class=dead" in page.url:
            assert at == 0 and set(rows) == set(np.flatnonzero(share == 0).tolist())
        else:
            assert bounds
            low, high = (float(bound) if bound else np.inf for bound in bounds.groups())
            assert set(rows) == set(np.flatnonzero((share >= low * (1 - 1e-6)) & (share < high * (1 - 1e-6))).tolist())
            assert heldout[rows].tolist() == sorted(heldout[rows])
        lists.append(set(rows))
        page.go_back()
        expect(page.get_by_test_id("view-density")).to_be_visible()
    assert ("class=dead" in said[0][0]) == bool((share == 0).any())
    assert len(lists) == 3 and not (lists[0] & lists[1] or lists[1] & lists[2])


@pytest.mark.parametrize("window", [None, 23])
def test_a_class_of_the_density_view_lists_its_features(window: int | None, look, synthetic: Report):
    if window is None:
        share, address = columns(synthetic, ID)["density"], f"#/density?d={ID}"
    else:
        counts = read_windows(synthetic.runs[0] / ID / "density")[window]
        share, address = counts.fires.numpy() / counts.tokens, f"#/density?d={ID}&w={window}"
    page = look(synthetic.page, address)
    for kind, name in enumerate(CLASSES):
        expected = set(np.flatnonzero(kinds(share) == kind).tolist())
        entry = page.locator(".class-counts a").nth(kind)
        assert int(entry.locator("[data-value]").get_attribute("data-value") or -1) == len(expected)
        entry.click()
        assert set(shown_rows(page, len(expected))) == expected, name
        page.go_back()
        expect(page.get_by_test_id("view-density")).to_be_visible()


def test_the_slider_moves_through_training(look, synthetic: Report):
    windows = read_windows(synthetic.runs[0] / ID / "density")
    page = look(synthetic.page, f"#/density?d={ID}")
    slider = page.get_by_role("slider", name="Time of training")
    slider.focus()
    page.keyboard.press("Home")
    for window in windows[:3]:
        dead = page.locator(".class-counts [data-value]").first
        expect(dead).to_have_attribute("data-value", str(int((window.fires == 0).sum())))
        page.keyboard.press("ArrowRight")
    assert "w=3" in page.url
