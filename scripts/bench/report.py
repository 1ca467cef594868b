"""How quick the report is in headless Chromium, and how large.

    python scripts/bench/report.py [REPORT] [--features 100000] [--repetitions 7] [--json]

On REPORT, the quickstart's page (runs/quickstart/report.html), and on a made-up report of many features (all of the
real formats, tests/report/synthetic.py), which is a folder of shards:

    first view      from the start of the navigation, with an empty cache, until the first view is usable and painted
    flip            from the key press until the next feature's page is painted, features in a row and at random
    sort            from the click on a column's heading until the table is painted, each time on a fresh page, since
                    a page keeps an order that it has once made
    filter, search  from the choice of a class, or the last letter of a token, until the table is painted
    bytes           of the compressed data, by what they are for

Medians and maxima of the repetitions; the median must keep within the limit, else the exit status is 1. The sizes are
held against 2.5 KB (2,500 bytes) a feature plus 5 MB.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for the tests' browser and generator

from sae_tools.report.write import write_report  # noqa: E402
from tests.report.browser.chromium import HOW, chromium, find_chromium  # noqa: E402
from tests.report.synthetic import synthetic_contents, synthetic_run  # noqa: E402

FIRST_VIEW, TABLE = 2000.0, 100.0
"""Limits in milliseconds."""
BYTES_PER_FEATURE, BYTES_BESIDE = 2500, 5_000_000
CLASSES = ["dead", "ultra-rare", "rare", "normal", "dense"]
QUERIES = ["self", '"the"', "e", "no such token"]

_PAINTED = "const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
_FIRST = """new MutationObserver((_, observer) => {
  if (!document.documentElement?.dataset.ready) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => { globalThis.firstView = performance.now(); }));
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-ready"] });"""
_FLIP = """async (key) => {
  const was = document.querySelector("[data-testid=feature-title]");
  const start = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  while (was.isConnected) await new Promise((done) => setTimeout(done));
  await painted();
  return performance.now() - start;
}"""
_SORT = """async (key) => {
  const button = document.querySelector(`th[data-column="${key}"] button`);
  const start = performance.now();
  button.click();
  await painted();
  const ms = performance.now() - start;
  if (!button.closest("th").hasAttribute("aria-sort")) throw new Error(`not sorted by ${key}`);
  return ms;
}"""
_CHOOSE = """async (testid) => {
  const input = document.querySelector(`[data-testid="${testid}"]`);
  const start = performance.now();
  input.click();
  await painted();
  return performance.now() - start;
}"""
_SEARCH = """async (text) => {
  const input = document.querySelector("[data-testid=search]");
  input.value = text;
  const start = performance.now();
  input.dispatchEvent(new Event("input", { bubbles: true }));
  await painted();
  return performance.now() - start;
}"""


class Figures:
    """Measured times, and whether they keep within the limits."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self.failed = False

    def times(self, report: str, what: str, ms: list[float], limit: float | None) -> None:
        median = statistics.median(ms)
        passed = limit is None or median <= limit
        self.failed |= not passed
        verdict = "" if limit is None else f"{'pass' if passed else 'FAIL'} ({limit:,.0f} ms)"
        line = {
            "report": report,
            "what": what,
            "n": len(ms),
            "median_ms": round(median, 1),
            "max_ms": round(max(ms), 1),
        }
        self.line({**line, "limit_ms": limit, "pass": passed},
                  f"{report:10} {what:34} {len(ms):4} {median:9,.1f} {max(ms):9,.1f}  {verdict}")  # fmt: skip

    def size(self, report: str, what: str, size: int, features: int, limit: float | None = None) -> None:
        passed = limit is None or size <= limit
        self.failed |= not passed
        verdict = "" if limit is None else f"{'pass' if passed else 'FAIL'} ({limit:,.0f} bytes)"
        self.line({"report": report, "what": what, "bytes": size, "features": features, "limit": limit, "pass": passed},
                  f"{report:10} {what:34} {size:12,} bytes {size / features:11,.1f} a feature  {verdict}")  # fmt: skip

    def line(self, values: dict[str, Any], text: str) -> None:
        print(json.dumps(values) if self.as_json else text, flush=True)


def opened(browser: Browser, page_file: Path, route: str = "") -> Page:
    """The report in a context of its own, ready."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(_FIRST)
    context.add_init_script(_PAINTED.replace("const painted", "globalThis.painted"))
    page = context.new_page()
    page.goto(page_file.resolve().as_uri() + route)
    page.wait_for_function("() => globalThis.firstView")
    return page


def first_views(browser: Browser, page_file: Path, repetitions: int) -> Iterator[float]:
    for _ in range(repetitions):
        page = opened(browser, page_file)
        yield page.evaluate("() => globalThis.firstView")
        page.context.close()


def flips(browser: Browser, page_file: Path, repetitions: int) -> tuple[list[float], list[float]]:
    """(features one after another, features at random, whose data are mostly not there yet), milliseconds."""
    page = opened(browser, page_file)
    id = page.evaluate("async () => (await sae.blobs.get('report')).meta.dictionaries[0].id")
    page.evaluate("(to) => { location.hash = to; }", f"#/feature/{id}/0")
    page.get_by_test_id("feature-title").wait_for()
    found = [page.evaluate(_FLIP, "ArrowRight") for _ in range(max(30, repetitions))]
    jumps = [page.evaluate(_FLIP, "r") for _ in range(max(30, repetitions))]
    page.context.close()
    return found, jumps


def table(browser: Browser, page_file: Path, repetitions: int) -> dict[str, list[float]]:
    """Milliseconds by what was done to the table; every repetition has a fresh page."""
    found: dict[str, list[float]] = {}
    for _ in range(repetitions):
        page = opened(browser, page_file, "#/features")
        page.get_by_test_id("features-row").first.wait_for()
        page.evaluate("painted")
        keys = page.locator("th[data-column]:has(button)").evaluate_all("all => all.map((head) => head.dataset.column)")
        for key in keys:
            found.setdefault(f"sort by {key}", []).append(page.evaluate(_SORT, key))
        for name in CLASSES:
            found.setdefault(f"filter {name}", []).append(page.evaluate(_CHOOSE, f"class-{name}"))
        found.setdefault("filter all", []).append(page.evaluate(_CHOOSE, "class-all"))
        for query in QUERIES:
            found.setdefault(f"search {query}", []).append(page.evaluate(_SEARCH, query))
        page.context.close()
    return found


def blob_sizes(page_file: Path) -> dict[str, int]:
    """Bytes as they stand in the page, or in the files beside it, by kind of data; `page`: everything else."""
    sizes: dict[str, int] = {}
    text = page_file.read_text(encoding="utf-8")
    for name, content in re.findall(r'data-blob="([^"]+)">([A-Za-z0-9+/=]+)<', text):
        kind = name.split("/")[0]
        sizes[kind] = sizes.get(kind, 0) + len(content)
    sizes["page"] = page_file.stat().st_size - sum(sizes.values())
    for file in (page_file.parent / "data").glob("*.js") if page_file.name == "index.html" else ():
        kind = file.name.split("-")[0].removesuffix(".js")
        sizes[kind] = sizes.get(kind, 0) + file.stat().st_size
    return sizes


def features_of(browser: Browser, page_file: Path) -> int:
    page = opened(browser, page_file)
    count = page.evaluate(
        "async () => (await sae.blobs.get('report')).meta.dictionaries.reduce((sum, one) => sum + one.d_sae, 0)"
    )
    page.context.close()
    return count


def look(figures: Figures, browser: Browser, name: str, page_file: Path, repetitions: int) -> None:
    """What is measured on any report."""
    features = features_of(browser, page_file)
    figures.times(name, "first view", list(first_views(browser, page_file, repetitions)), FIRST_VIEW)
    in_a_row, at_random = flips(browser, page_file, repetitions)
    figures.times(name, "flip, in a row", in_a_row, None)
    figures.times(name, "flip, at random", at_random, None)
    sizes = blob_sizes(page_file)
    for kind, size in sizes.items():
        figures.size(name, f"bytes of {kind}", size, features)
    figures.size(name, "bytes in all", sum(sizes.values()), features, BYTES_PER_FEATURE * features + BYTES_BESIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path, default=ROOT / "runs" / "quickstart" / "report.html")
    parser.add_argument("--features", type=int, default=100_000, help="of the made-up report")
    parser.add_argument("--repetitions", type=int, default=7, help="at least 5")
    parser.add_argument("--json", action="store_true", help="one object per line instead of a table")
    args = parser.parse_args()
    executable = find_chromium()
    if executable is None or args.repetitions < 5 or not args.report.exists():
        sys.exit(HOW if executable is None else f"{args.report} must exist, and --repetitions be at least 5.")
    figures = Figures(args.json)
    with chromium(executable) as browser, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if not args.json:
            print(f"Chromium {browser.version}\n{'':10} {'':34} {'n':>4} {'median ms':>9} {'max ms':>9}")
        page_file = args.report / "index.html" if args.report.is_dir() else args.report
        look(figures, browser, "report", page_file, args.repetitions)
        run = synthetic_run(Path(folder), features=args.features, dictionaries=1, windows=20)
        made = write_report(synthetic_contents([run], sharded=True), Path(folder) / "report")
        name = f"{args.features:,}"
        look(figures, browser, name, made, args.repetitions)
        for what, ms in table(browser, made, args.repetitions).items():
            figures.times(name, what, ms, TABLE)
    sys.exit(figures.failed)


if __name__ == "__main__":
    main()
