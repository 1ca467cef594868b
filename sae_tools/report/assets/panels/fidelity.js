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

  /** What a definition is headed by: the label of its row, or what its rows have in common. */
  const headings = { ...Object.fromEntries(rows.map(([key, title]) => [key, title])), ce: "CE" };
  Object.assign(headings, { fvu: "FVU, own space", ablation_cost: "Cost of ablation", ce_recovered: "CE recovered" });

  /** Rows that count features over the tokens that another row gives. */
  const counted = new Set(["dead", "ultra_rare", "dense"]);

  /** Whether columns were measured on different text: other counts of tokens, or the same model with another CE. */
  const differ = (meta, entries, ids) => {
    const models = new Map();
    const tokens = new Set(ids.map((id) => entries[id].tokens).filter((n) => n != null));
    for (const id of ids) {
      const { corpus } = meta.dictionaries.find((one) => one.id === id);
      const { model } = meta.corpora[corpus] ?? {};
      const ce = entries[id].ce?.original;
      if (ce == null) continue;
      // The same text on another machine differs in the last digits.
      if (models.has(model) && Math.abs(models.get(model) - ce) > 1e-4 * Math.abs(ce)) return true;
      models.set(model, ce);
    }
    return tokens.size > 1;
  };

  sae.panel({
    id: "fidelity",
    view: "run",
    title: "Fidelity on held-out text",
    render: async (root, ctx) => {
      const { entries = {}, definitions = {} } = (await ctx.blob("report")).fidelity ?? {};
      const ids = ctx.meta.dictionaries.map((one) => one.id).filter((id) => entries[id]);
      if (!ids.length)
        return root.append(
          figures.nothing(
            `Fidelity is measured by sae-train at the end of training; ${ctx.meta.dictionaries.length > 1 ? "these" : "this one"} came without.`,
          ),
        );
      const without = ctx.meta.dictionaries.map((one) => one.id).filter((id) => !entries[id]);
      const label = (id) => h("span", {}, figures.key(ctx.meta.dictionaries.findIndex((one) => one.id === id)), id);
      const body = rows
        .filter(([, , get]) => ids.some((id) => get(entries[id]) != null))
        .map(([key, title, get, show, part]) => [
          h(
            "span",
            { title: definitions[key] },
            title,
            counted.has(key) ? h("small", {}, " on the tokens counted below") : null,
          ),
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
      const notes = [
        differ(ctx.meta, entries, ids)
          ? "The columns were measured on different text and cannot be compared with one another."
          : null,
        without.length ? `Measured by sae-train at the end of training; ${without.join(", ")} came without.` : null,
      ].filter(Boolean);
      root.append(
        h(
          "div",
          { class: "fidelity" },
          h(
            "div",
            {},
            figures.table(["Figure", ...ids.map(label)], body, { label: "Fidelity of the dictionaries" }),
            notes.map((text) => h("p", { class: "note" }, text)),
          ),
          h(
            "div",
            { class: "definitions" },
            h("h3", {}, "Definitions"),
            h(
              "dl",
              {},
              keys.map((key) =>
                h("div", {}, h("dt", {}, headings[key] ?? key.replaceAll("_", " ")), h("dd", {}, definitions[key])),
              ),
            ),
          ),
        ),
      );
    },
  });
}
