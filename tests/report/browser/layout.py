"""What must hold of the layout of any view at any width."""

from __future__ import annotations

from playwright.sync_api import Page

_TROUBLE = """() => {
  const found = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth) {
    const widest = [...document.querySelectorAll("main *")]
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
      .map((e) => `${e.tagName}.${e.getAttribute("class") ?? ""}`);
    found.push(`the page scrolls sideways: ${root.scrollWidth} > ${innerWidth}: ${widest.slice(0, 5)}`);
  }
  const scrolls = (e) => {
    for (let at = e.parentElement; at; at = at.parentElement) {
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return true;
    }
    return false;
  };
  const controls = "header a, nav a, button, select, input:not([type=range]), label, summary, h1, h2, h3, th";
  for (const e of document.querySelectorAll(controls)) {
    const style = getComputedStyle(e);
    const box = e.getBoundingClientRect();
    if (!box.width || style.visibility === "hidden" || e.closest("[hidden], .skip, .unseen")) continue;
    const name = `${e.tagName} ${JSON.stringify(e.textContent.slice(0, 40))}`;
    if (style.overflowX !== "visible" && e.tagName !== "INPUT" && e.scrollWidth > e.clientWidth + 1) {
      found.push(`${name} is cut: ${e.scrollWidth} > ${e.clientWidth}`);
    }
    if (!scrolls(e) && (box.left < -1 || box.right > innerWidth + 1)) {
      found.push(`${name} lies outside: ${box.left} to ${box.right} of ${innerWidth}`);
    }
  }
  return found;
}"""


def trouble(page: Page) -> list[str]:
    """One line for each way in which the page scrolls sideways, or a control's text is cut or lies outside."""
    return page.evaluate(_TROUBLE)
