"use strict";
/** Features like this one: in direction, in when they fire, and in the other dictionaries. */
{
  const { h } = sae.dom;
  const { format, figures, blobs } = sae;

  sae.panel({
    id: "neighbours",
    view: "feature",
    column: "side",
    title: "Neighbours",
    render: async (root, ctx) => {
      const { dictionary, feature } = ctx;
      const { neighbours } = await ctx.blob(`features/${dictionary.id}/${Math.floor(feature / ctx.meta.chunk)}`);
      if (!neighbours) return root.append(figures.nothing("None were computed."));
      const inside = feature % ctx.meta.chunk;
      const here = await sae.list.open(dictionary);
      const row = (key) => (neighbours[key] ? [...blobs.row(neighbours[key], inside)] : []);
      const signed = (x) => format.signed(x, 3);
      const peaks = (list, index) => {
        const [id] = blobs.row(list.features.peak_token, index);
        return id === sae.list.NONE || id == null
          ? h("span", { class: "quiet" }, "–")
          : sae.tokens.chip(list.vocabulary.text[id] ?? "?");
      };
      const link = (id, index, of) =>
        figures.feature(id, index, id, {
          "data-value-of": `neighbours.${of}`,
          "data-value": String(index),
          "data-index": String(feature),
        });
      const number = (x, of) =>
        x == null || Number.isNaN(x)
          ? "–"
          : sae.dom.value(x, `neighbours.${of}`, { index: String(feature), format: signed });
      const group = (title, about, heads, rows, label = title) =>
        h(
          "div",
          { class: "neighbour-group" },
          h("h3", { title: about }, title),
          rows.length
            ? h(
                "table",
                { class: "plain slim", "aria-label": label },
                h(
                  "thead",
                  {},
                  h(
                    "tr",
                    {},
                    ["Feature", "Fires at", ...heads].map((text) => h("th", { scope: "col" }, text)),
                  ),
                ),
                h(
                  "tbody",
                  {},
                  rows.map(([first, ...rest]) =>
                    h(
                      "tr",
                      {},
                      h("th", { scope: "row" }, first),
                      rest.map((cell) => h("td", {}, cell)),
                    ),
                  ),
                ),
              )
            : h("p", { class: "quiet" }, "none"),
        );

      const nearest = row("nearest_feature");
      const cosines = row("nearest_cosine");
      const correlated = row("correlated_feature");
      const correlations = row("correlated_value");
      const antipode = neighbours.antipode_feature?.[inside] ?? -1;
      const groups = [
        group(
          "Nearest in direction",
          "By the cosine of decoder rows",
          ["cosine"],
          nearest
            .map((index, k) => [index, k])
            .filter(([index]) => index >= 0)
            .map(([index, k]) => [
              link(dictionary.id, index, "nearest_feature"),
              peaks(here, index),
              number(cosines[k], "nearest_cosine"),
            ]),
        ),
        group(
          "Antipode",
          "The most negative cosine of decoder rows",
          ["cosine"],
          antipode < 0
            ? []
            : [
                [
                  link(dictionary.id, antipode, "antipode_feature"),
                  peaks(here, antipode),
                  number(neighbours.antipode_cosine[inside], "antipode_cosine"),
                ],
              ],
        ),
        group(
          "Fire together",
          "Pearson correlation of activations",
          ["correlation"],
          correlated
            .map((index, k) => [index, k])
            .filter(([index]) => index >= 0)
            .map(([index, k]) => [
              link(dictionary.id, index, "correlated_feature"),
              peaks(here, index),
              number(correlations[k], "correlated_value"),
            ]),
        ),
      ];
      const [matches, values, also] = [row("match_feature"), row("match_value"), row("match_cosine")];
      const each = dictionary.matches.length ? matches.length / dictionary.matches.length : 0;
      for (const [d, id] of dictionary.matches.entries()) {
        const other = ctx.meta.dictionaries.find((one) => one.id === id);
        if (!other) continue;
        const list = await sae.list.open(other);
        const rows = [];
        for (let k = d * each; k < (d + 1) * each; k++) {
          if (matches[k] >= 0)
            rows.push([
              link(id, matches[k], "match_feature"),
              peaks(list, matches[k]),
              number(values[k], "match_value"),
              number(also[k], "match_cosine"),
            ]);
        }
        groups.push(
          group(
            h("span", {}, "In ", figures.key(ctx.meta.dictionaries.indexOf(other)), id),
            `Features of ${id} that fire on the same tokens`,
            ["correlation", "cosine"],
            rows,
            `Matches in ${id}`,
          ),
        );
      }
      root.append(
        h("div", { class: "neighbours" }, groups),
        h(
          "p",
          { class: "note" },
          "Correlations: Pearson, of activations on all held-out tokens, over all features. Cosines here: of decoder rows in the dictionary's own space; across dictionaries: of what they add to the residual stream.",
        ),
      );
    },
  });
}
