"use strict";
/** What figures of all views share: a caption, the numbers behind them as a table, and controls above them. */
{
  const { h } = sae.dom;

  const figures = {
    /** A figure: `body` drawn, `caption` says what is shown and how it is defined, `data` is its table of numbers, `name` a handle for tests. */
    figure: ({ body, caption, data, name }) =>
      h("figure", { "data-figure": name }, body, h("figcaption", {}, caption), data),

    /** The numbers of a figure, folded away; made when it is opened. `label` names the figure, `rows()` answers arrays of cells. */
    numbers: (label, headers, rows) => {
      const details = h(
        "details",
        { class: "numbers" },
        h("summary", {}, "Numbers", h("span", { class: "unseen" }, `: ${label}`)),
      );
      details.addEventListener("toggle", () => {
        if (details.open && details.childElementCount === 1)
          details.append(figures.table(headers, rows(), { label: `Numbers: ${label}` }));
      });
      return details;
    },

    /** A plain table: the first cell of each row is its header. Numbers stand at the right. */
    table: (headers, rows, { label, className = "" } = {}) =>
      h(
        "div",
        { class: "table-box", tabindex: "0", role: "region", "aria-label": label ?? "Table of numbers" },
        h(
          "table",
          { class: `plain ${className}` },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              headers.map((text) => h("th", { scope: "col" }, text)),
            ),
          ),
          h(
            "tbody",
            {},
            rows.map((row) =>
              h(
                "tr",
                {},
                row.map((cell, c) => (c ? h("td", {}, cell) : h("th", { scope: "row" }, cell))),
              ),
            ),
          ),
        ),
      ),

    /** A choice with its label. `options`: [[value, text], …]. */
    choice: (label, options, value, onChange) => {
      const id = sae.dom.id("choice");
      const select = h(
        "select",
        { id, on: { change: (event) => onChange(event.target.value) } },
        options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
      );
      return h("span", { class: "control" }, h("label", { for: id }, label), select);
    },

    /** Links from one dictionary to the next, in the same view. */
    dictionaries: (ctx, params = {}) =>
      h(
        "nav",
        { class: "tabs", "aria-label": "Dictionary" },
        ctx.meta.dictionaries.map((dictionary, index) =>
          h(
            "a",
            {
              href: sae.routes.to(ctx.route.view, { ...params, d: dictionary.id }),
              "aria-current": dictionary.id === ctx.dictionary.id ? "true" : null,
            },
            figures.key(index),
            dictionary.id,
          ),
        ),
      ),

    /** The colour and dash of a dictionary, as a short stroke. */
    key: (index) => h("span", { class: `key colour-${index % 8} dash-${figures.dash(index)}`, "aria-hidden": "true" }),

    /** The dash pattern of the index-th series, so that colour is not all that tells them apart. */
    dash: (index) => index % 4,

    /** A definition list of facts: [[term, value], …]. */
    facts: (pairs, className = "facts") =>
      h(
        "dl",
        { class: className },
        pairs
          .filter(Boolean)
          .map(([term, value, about]) => h("div", {}, h("dt", { title: about }, term), h("dd", {}, value))),
      ),

    /** A link to a feature, named by its number, and by its dictionary where that is another one. */
    feature: (id, index, here, attributes = {}) =>
      h(
        "a",
        { href: sae.routes.feature(id, index), class: "feature-link", ...attributes },
        id === here ? `${index}` : `${id} ${index}`,
      ),

    /** A name that may be broken after its underscores and hyphens, for narrow columns. */
    breakable: (name) => name.split(/(?<=[_-])/).flatMap((part, i) => (i ? [h("wbr"), part] : [part])),

    /** A sentence in place of a panel's content. */
    nothing: (text) => h("p", { class: "nothing" }, text),
  };
  sae.figures = figures;
}
