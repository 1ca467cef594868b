"""axe-core, run in the page; its script comes with the Python package and is read from there."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from playwright.sync_api import Page

SCRIPT = files("axe_playwright_python").joinpath("axe.min.js")


def violations(page: Page, *, contrast: bool = True) -> list[str]:
    """One line for each serious or critical thing that axe-core finds: rule, element, and what is wrong with it.

    contrast: whether to look at that of every text too, which takes most of the time. The script goes in by the
    debugger, which the page's content security policy does not concern.
    """
    if not page.evaluate("() => Boolean(globalThis.axe)"):
        page.evaluate(SCRIPT.read_text(encoding="utf-8") + "; undefined")
    found: list[dict[str, Any]] = page.evaluate(
        "async (rules) => (await axe.run(document, {resultTypes: ['violations'], rules})).violations",
        {"color-contrast": {"enabled": contrast}},
    )
    return [
        f"{violation['impact']} {violation['id']}: {node['html'][:200]} ({node['failureSummary']})"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
