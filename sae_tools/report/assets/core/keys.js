"use strict";
/** Keys that work everywhere, and the note that lists them. */
{
  const { h } = sae.dom;
  const help = [
    ["←  →", "the feature before and after, in the list you came from"],
    ["/", "search features"],
    ["r", "a random feature"],
    ["↑  ↓  Home  End", "rows of the features table"],
    ["←  →  in a context", "its tokens, with their figures (Tab reaches a context)"],
    ["?", "this list"],
    ["Esc", "close; leave a context or the search"],
  ];
  let dialog = null;

  const keys = {
    /** Opens the list of keys. */
    help: () => {
      dialog ??= document.body.appendChild(
        h(
          "dialog",
          { class: "help", "aria-labelledby": "help-title" },
          h("h2", { id: "help-title" }, "Keys"),
          h(
            "dl",
            {},
            help.map(([key, text]) =>
              h(
                "div",
                {},
                h(
                  "dt",
                  {},
                  key.split("  ").map((one) => h("kbd", {}, one)),
                ),
                h("dd", {}, text),
              ),
            ),
          ),
          h("form", { method: "dialog" }, h("button", {}, "Close")),
        ),
      );
      if (!dialog.open) dialog.showModal();
    },

    /** Starts listening; `actions`: {flip(step), search(), random(), leave()}. */
    listen: (actions) => {
      addEventListener("keydown", (event) => {
        if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || dialog?.open) return;
        const typing = event.target.closest?.(
          "input:not([type=checkbox], [type=button]), select, textarea, [contenteditable]",
        );
        if (event.key === "Escape") {
          sae.tip.hide();
          actions.leave();
          return;
        }
        if (typing) return;
        const does = {
          ArrowLeft: () => actions.flip(-1),
          ArrowRight: () => actions.flip(1),
          "/": actions.search,
          r: actions.random,
          "?": keys.help,
        }[event.key];
        if (does && does() !== false) event.preventDefault();
      });
    },
  };
  sae.keys = keys;
}
