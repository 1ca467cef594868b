"use strict";
/** How faithful the dictionaries are, measured on held-out text, with every figure's definition beside it. */
{
  const { h } = sae.dom;
  const { format, figures } = sae;

  const rows = [
    ["l0", "L0", (e) => e.l0, (x) => format.fixed(x, 1)],
    ["fvu", "FVU, own space", (e) => e.fvu?.[e.space] ?? e.fvu_trained, (x) => format.fixed(x, 4)],
    ["fvu_trained", "FVU, as trained", (e) => e.fvu_trained, (x) => format.fixed(x, 4)],
    ["ce", "CE of the model (nats)", (e) => e.ce?.original, (x) => format.fixed(x, 4), "original"],
    ["ce", "CE with the reconstruction", (e) => e.ce?.reconstruction, (x) => format.fixed(x, 4), "reconstruction"],
    ["ce", "CE, mean-ablated", (e) => e.ce?.mean, (x) => format.fixed(x, 4), "mean"],
    ["ce", "CE, zero-ablated", (e) => e.ce?.zero, (x) => format.fixed(x, 4), "zero"],
    ["ablation_cost", "Cost of mean ablation", (e) => e.ablation_cost?.mean, (x) => format.fixed(x, 4), "mean"],
    ["ablation_cost", "Cost of zero ablation", (e) => e.ablation_cost?.zero, (x) => format.fixed(x, 4), "zero"],
    ["ce_recovered", "CE recovered, of mean", (e) => e.ce_recovered?.mean, (x) => format.percent(x), "mean"],
    ["ce_recovered", "CE recovered, of zero", (e) => e.ce_recovered?.zero, (x) => format.percent(x), "zero"],
    ["kl", "KL (nats per token)", (e) => e.kl, (x) => format.figures(x)],
    ["dead", "Dead features", (e) => e.dead, format.integer],
    ["ultra_rare", "Ultra-rare features", (e) => e.ultra_rare, format.integer],
    ["dense", "Dense features", (e) => e.dense, format.integer],
    ["tokens", "Tokens counted", (e) => e.tokens, format.integer],
    ["predictions", "Predictions counted", (e) => e.predictions, format.integer],
    ["training_tokens", "Tokens trained on", (e) => e.training_tokens, format.integer],
    ["text_passes", "Passes over the text", (e) => e.text_passes, (x) => format.figures(x)],
    ["tokens_per_s", "Tokens trained on per second", (e) => e.tokens_per_s, format.integer],
  ];

  sae.panel({
    id: "fidelity",
    view: "run",
    title: "Fidelity on held-out text",
    render: async (root, ctx) => {
      const { entries = {}, definitions = {} } = (await ctx.blob("report")).fidelity ?? {};
      const ids = ctx.meta.dictionaries.map((one) => one.id).filter((id) => entries[id]);
      if (!ids.length) return root.append(figures.nothing("The fidelity of these dictionaries has not been measured."));
      const label = (id) => h("span", {}, figures.key(ctx.meta.dictionaries.findIndex((one) => one.id === id)), id);
      const body = rows
        .filter(([, , get]) => ids.some((id) => get(entries[id]) != null))
        .map(([key, title, get, show, part]) => [
          h("span", { title: definitions[key] }, title),
          ...ids.map((id) => {
            const number = get(entries[id]);
            return number == null
              ? "–"
              : sae.dom.value(number, `fidelity.${part ? `${key}.${part}` : key}`, { index: id, format: show });
          }),
        ]);
      // In the order of the table, then what the table does not show.
      const keys = [...new Set([...rows.map(([key]) => key), ...Object.keys(definitions)])].filter(
        (key) => definitions[key],
      );
      root.append(
        h(
          "div",
          { class: "fidelity" },
          figures.table(["Figure", ...ids.map(label)], body, { label: "Fidelity of the dictionaries" }),
          h(
            "div",
            { class: "definitions" },
            h("h3", {}, "Definitions"),
            h(
              "dl",
              {},
              keys.map((key) => h("div", {}, h("dt", {}, key), h("dd", {}, definitions[key]))),
            ),
          ),
        ),
      );
    },
  });
}
