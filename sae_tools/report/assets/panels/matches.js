"use strict";
/** How well the features of one dictionary are found again in another. */
{
  const { h } = sae.dom;
  const { format, figures } = sae;

  sae.panel({
    id: "matches",
    view: "spaces",
    title: "Features found again",
    when: (ctx) => ctx.meta.dictionaries.length > 1,
    render: async (root, ctx) => {
      const { ids, matches = {} } = (await ctx.blob("report")).spaces;
      if (!ids.some((id) => Object.keys(matches[id] ?? {}).length))
        return root.append(figures.nothing("No two of these dictionaries were read on the same text."));
      const name = (id) => h("span", {}, figures.key(ctx.meta.dictionaries.findIndex((one) => one.id === id)), id);
      const matrix = (key, show, label) =>
        h(
          "div",
          { class: "table-box", tabindex: "0", role: "region", "aria-label": label },
          h(
            "table",
            { class: "plain matrix" },
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                h("th", { scope: "col" }, "features of ↓  found in →"),
                ids.map((id) => h("th", { scope: "col" }, figures.breakable(id))),
              ),
            ),
            h(
              "tbody",
              {},
              ids.map((id) =>
                h(
                  "tr",
                  {},
                  h("th", { scope: "row" }, name(id)),
                  ids.map((other) => {
                    const x = matches[id]?.[other]?.[key];
                    return x == null
                      ? h("td", { class: "void" }, "·")
                      : figures.shaded(
                          sae.dom.value(x, `spaces.matches.${key}`, { index: `${id} ${other}`, format: show }),
                          x,
                        );
                  }),
                ),
              ),
            ),
          ),
        );
      root.append(
        h(
          "div",
          { class: "pair" },
          figures.figure({
            body: matrix("median", (x) => format.fixed(x, 3), "Median best correlation"),
            caption: [
              h("b", {}, "Median best correlation. "),
              "For each live feature of the row's dictionary, the greatest Pearson correlation of its activations with any feature of the column's, over the held-out tokens; the median over features.",
            ],
          }),
          figures.figure({
            body: matrix("above_half", (x) => format.percent(x), "Share with a match"),
            caption: [
              h("b", {}, "Share with a match. "),
              "Live features whose best correlation in the column's dictionary is above 0.5. Rows and columns differ: a feature may be split in two there, or be missing.",
            ],
          }),
        ),
      );
    },
  });
}
