"""One browser for all tests here, reports to look at, and a page that is watched while a test looks at it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.report.browser import reports
from tests.report.browser.chromium import HOW, chromium, find_chromium
from tests.report.browser.reports import Report, Workshop
from tests.report.browser.watching import Watch, address


def executable_or_skip() -> str:
    """The browser; without one the test is skipped, but on CI, where nobody would notice, it fails."""
    executable = find_chromium()
    if executable is None:
        (pytest.fail if os.environ.get("CI", "").lower() in ("1", "true") else pytest.skip)(HOW)
    return executable


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium(executable_or_skip()) as browser:
        yield browser


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the whole run
    folder = base / "reports"
    folder.mkdir(exist_ok=True)
    return Workshop(folder)


@pytest.fixture(scope="session")
def synthetic(workshop: Workshop) -> Report:
    return workshop.make("synthetic", reports.synthetic)


@pytest.fixture(scope="session")
def sharded(workshop: Workshop) -> Report:
    return workshop.make("sharded", reports.sharded)


@pytest.fixture(scope="session")
def real(workshop: Workshop) -> Report:
    return workshop.make("real", reports.real)


@pytest.fixture(scope="session")
def several(workshop: Workshop) -> Report:
    return workshop.make("several", reports.several)


@pytest.fixture(scope="session")
def hostile(workshop: Workshop) -> Report:
    return workshop.make("hostile", reports.hostile)


Open = Callable[..., Page]


@pytest.fixture
def look(browser: Browser) -> Iterator[Open]:
    """`look(report, "#/features", dark=True, width=390)`: a page that shows it, ready.

    When the test is over, none of its pages may have asked for anything, nor said anything on the console.
    """
    opened: list[tuple[Watch, Page]] = []

    def look(report: Path | str, route: str = "", *, dark: bool = False, width: int = 1200, height: int = 900) -> Page:
        url = report if isinstance(report, str) else address(report)
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(8_000)
        watch = Watch(context, url)
        page = context.new_page()
        opened.append((watch, page))
        page.goto(url + route)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield look
    for watch, page in opened:
        page.context.close()
        watch.check()
