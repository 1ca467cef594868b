"""A Chromium for the tests: the system's own, since Playwright's would have to be downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOW = (
    "needs Chromium, and none of " + ", ".join(NAMES) + " is on the PATH: install one, or name its executable in "
    "SAE_TOOLS_CHROMIUM"
)
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever a page asks for by name does not exist: a request that no watcher sees would fail all the same.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def find_chromium() -> str | None:
    """The executable to use: what SAE_TOOLS_CHROMIUM names, or the first of NAMES on the PATH."""
    return os.environ.get("SAE_TOOLS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """A headless browser, closed at the end."""
    sandbox = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]  # Chromium refuses root without it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *sandbox])
        try:
            yield browser
        finally:
            browser.close()
