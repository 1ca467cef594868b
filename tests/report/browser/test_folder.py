"""A report that is a folder of shards: opened from the disk and from `sae-report --serve`, it is the same report."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect

from tests.report.browser.reports import Report
from tests.report.browser.test_views import VIEWS, check_view


@contextmanager
def served(report: Report) -> Iterator[str]:
    """The address at which the command itself serves the report."""
    command = [sys.executable, "-m", "sae_tools.cli.report", str(report.page.parent), "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line
            yield address[0]
        finally:
            process.kill()


@contextmanager
def reached(how: str, report: Report) -> Iterator[str]:
    if how == "file":
        yield report.page.as_uri()
    else:
        with served(report) as address:
            yield address


@pytest.mark.parametrize("how", ["file", "serve"])
def test_every_view(how: str, look, sharded: Report):
    with reached(how, sharded) as address:
        page: Page = look(address)
        check_view(page, "run")
        for view in VIEWS[1:]:
            page.locator(f"nav a[data-view={view}]").click()
            check_view(page, view)
        page.get_by_test_id("features-row").locator("a").first.click()
        check_view(page, "feature")
        page.evaluate("(to) => { location.hash = to; }", "#/feature/resid_update/256")
        expect(page.get_by_test_id("feature-title")).to_contain_text("Feature 256")
        for before in (255, 254):
            page.keyboard.press("ArrowLeft")
            expect(page.get_by_test_id("feature-title")).to_contain_text(f"Feature {before}")


def test_data_are_loaded_when_they_are_looked_at(look, sharded: Report):
    page: Page = look(sharded.page.parent)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    page.evaluate("(to) => { location.hash = to; }", "#/feature/resid_update/299")
    expect(page.get_by_test_id("feature-title")).to_contain_text("Feature 299")
    assert "features-resid_update-1.js" in asked
    assert not [name for name in asked if name.startswith("features-mlp_acts")]
    assert len(asked) == len(set(asked))


def test_a_file_that_is_missing_is_named(browser, sharded: Report, tmp_path):
    """What cannot be drawn says so, and the rest is there."""
    import shutil

    copy = shutil.copytree(sharded.page.parent, tmp_path / "report")
    (copy / "data" / "features-mlp_acts-0.js").unlink()
    with browser.new_context() as context:
        page = context.new_page()
        page.goto((copy / "index.html").as_uri() + "#/feature/mlp_acts/3")
        expect(page.get_by_test_id("view-feature")).to_contain_text("features-mlp_acts-0.js")
        expect(page.get_by_test_id("panel-summary").locator("[data-value]").first).to_be_visible()
