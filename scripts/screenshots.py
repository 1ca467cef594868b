"""Pictures of a report's views, for the README.

    python scripts/screenshots.py runs/quickstart/report.html reports/screenshots [--dictionary ID] [--feature INDEX]

The feature shown is, unless it is named, the one that reads best by its figures alone: of those that fire on one token
in 50 to 2,000, and of whose top contexts at least eight peak at the same token, the one with the largest share of its
activations in the upper half of its range. The choice needs only what is in the report.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' browser

from tests.report.browser.chromium import HOW, chromium, find_chromium  # noqa: E402

LARGEST = 200_000
"""Bytes of a picture."""
_CHOOSE = """async (id) => {
  const { meta } = await sae.blobs.get("report");
  const dictionary = meta.dictionaries.find((one) => one.id === id);
  const { features } = await sae.blobs.get(`dictionary/${id}`);
  const { corpus } = await sae.blobs.get(`corpus/${dictionary.corpus}`);
  const word = /^\\s?[A-Za-z_]{3,}$/;
  let best = [0, -1];
  for (let c = 0; c * meta.chunk < dictionary.d_sae; c++) {
    const { activations, contexts } = await sae.blobs.get(`features/${id}/${c}`);
    for (let i = c * meta.chunk; i < Math.min(dictionary.d_sae, (c + 1) * meta.chunk); i++) {
      const density = features.fires[i] / dictionary.tokens;
      if (density > 1 / 50 || density < 1 / 2000) continue;
      const inside = i - c * meta.chunk;
      const peaks = new Map();
      for (let e = contexts.example_start[inside]; e < contexts.example_start[inside + 1]; e++) {
        if (contexts.example_group[e]) continue;
        const token = corpus.tokens[contexts.example_token[e]];
        peaks.set(token, (peaks.get(token) ?? 0) + 1);
      }
      const [token, count] = [...peaks].sort((a, b) => b[1] - a[1])[0] ?? [0, 0];
      if (count < 8 || !word.test(corpus.vocabulary[token])) continue;
      const width = activations.histogram.length / (activations.maximum.length);
      const counts = activations.histogram.subarray(inside * width, (inside + 1) * width);
      const upper = counts.subarray(width / 2).reduce((sum, n) => sum + n, 0) / features.fires[i];
      if (upper > best[0]) best = [upper, i];
    }
  }
  return best[1];
}"""


def view(
    browser: Browser, report: Path, route: str, *, dark: bool = False, width: int = 1280, height: int = 800
) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(report.resolve().as_uri() + route)
    page.wait_for_selector("html[data-ready]", state="attached")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument("--dictionary", help="whose pictures; default: the first")
    parser.add_argument("--feature", type=int)
    args = parser.parse_args()
    executable = find_chromium()
    report = args.report / "index.html" if args.report.is_dir() else args.report
    if executable is None or not report.exists():
        sys.exit(HOW if executable is None else f"{report} is not there.")
    args.output.mkdir(parents=True, exist_ok=True)
    with chromium(executable) as browser:
        page = view(browser, report, "")
        names = page.evaluate("async () => (await sae.blobs.get('report')).meta.dictionaries.map((one) => one.id)")
        id = args.dictionary or names[0]
        if id not in names:
            sys.exit(f"{report} has the dictionaries {', '.join(names)}, and no {id}.")
        feature = page.evaluate(_CHOOSE, id) if args.feature is None else args.feature
        if feature < 0:
            sys.exit(f"No feature of {id} is as clear as the picture wants it; name one with --feature.")
        page.context.close()
        here = f"#/feature/{id}/{feature}"
        pictures = {
            "run": ("#/run", {}),
            "spaces": ("#/spaces", {"height": 900}),
            "density": (f"#/density?d={id}", {}),
            "features": (f"#/features?d={id}&sort=density&dir=desc", {}),
            "feature": (here, {"height": 960}),
            "feature-dark": (here, {"dark": True, "height": 960}),
            "phone": (here, {"width": 390, "height": 844}),
        }
        for name, (route, settings) in pictures.items():
            page = view(browser, report, route, **settings)
            file = args.output / f"{name}.png"
            size = len(page.screenshot(path=file))
            page.context.close()
            print(f"{file}: {size:,} bytes")
            if size > LARGEST:
                sys.exit(f"{file} is larger than {LARGEST:,} bytes.")


if __name__ == "__main__":
    main()
