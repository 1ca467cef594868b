"use strict";
/** Light or dark: what the system prefers, until the reader chooses. Colours live in style.css as custom properties. */
{
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("sae-theme");
  } catch {
    // Some browsers keep no storage for files; then the choice lasts as long as the page.
  }

  const listeners = new Set();
  const apply = () => {
    if (chosen) document.documentElement.dataset.theme = chosen;
    else delete document.documentElement.dataset.theme;
    for (const listener of listeners) listener();
  };

  const theme = {
    /** "light" or "dark". */
    now: () => chosen ?? (dark.matches ? "dark" : "light"),

    /** Turns to the other one, and remembers. */
    toggle: () => {
      chosen = theme.now() === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("sae-theme", chosen);
      } catch {
        // As above.
      }
      apply();
    },

    /** Calls back after every change. */
    onChange: (listener) => listeners.add(listener),

    /** The value of a custom property, e.g. for a canvas. */
    color: (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim(),
  };
  dark.addEventListener("change", apply);
  apply();
  sae.theme = theme;
}
