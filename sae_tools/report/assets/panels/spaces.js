"use strict";
/** Where a dictionary was trained against where its reconstruction is measured. */
{
  const { h } = sae.dom;
  const { format, figures } = sae;

  /** A cell of a matrix: a number on a ground as deep as `share` in [0, 1]. */
  sae.figures.shaded = (content, share) =>
    h("td", { class: "shaded", css: { "--share": String(Math.max(0, Math.min(1, share ?? 0)).toFixed(3)) } }, content);

  const bar = (share) =>
    h(
      "span",
      { class: "meter", "aria-hidden": "true" },
      h("span", { css: { width: `${Math.max(0, Math.min(1, share)) * 100}%` } }),
    );

  sae.panel({
    id: "spaces",
    view: "spaces",
    title: "Trained in × measured in",
    render: async (root, ctx) => {
      const data = (await ctx.blob("report")).spaces;
      const { spaces } = data;
      const measured = (id) => data.fvu[id] || data.kl?.[id] != null || data.ce_recovered?.[id];
      const ids = data.ids.filter(measured);
      const without = data.ids.filter((id) => !measured(id));
      if (!ids.length) root.closest("section").querySelector("h2").textContent = "Fidelity on held-out text";
      const name = (id) => h("span", {}, figures.key(ctx.meta.dictionaries.findIndex((one) => one.id === id)), id);
      const all = ids.flatMap((id) => spaces.map((space) => data.fvu[id]?.[space])).filter((x) => x != null);
      const pair = h("div", { class: "pair" });
      if (all.length) {
        const deepest = Math.max(...all);
        pair.append(
          figures.figure({
            body: h(
              "div",
              { class: "table-box", tabindex: "0", role: "region", "aria-label": "Variance unexplained" },
              h(
                "table",
                { class: "plain matrix" },
                h(
                  "thead",
                  {},
                  h(
                    "tr",
                    {},
                    h("th", { scope: "col" }, "trained in ↓  measured in →"),
                    spaces.map((space) => h("th", { scope: "col" }, figures.breakable(space))),
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
                      spaces.map((space) => {
                        const x = data.fvu[id]?.[space];
                        return x == null
                          ? h("td", { class: "void" }, "·")
                          : figures.shaded(
                              sae.dom.value(x, `spaces.fvu.${space}`, { index: id, format: (y) => format.fixed(y, 4) }),
                              x / deepest,
                            );
                      }),
                    ),
                  ),
                ),
              ),
            ),
            caption: [
              h("b", {}, "Variance unexplained (FVU). "),
              "Squared error of the reconstruction over the variance of what it reconstructs, both in the space of the column; smaller is better, and a stronger ground means more is lost. ",
              "Reconstructions map forward only (mlp_acts → resid_update → logit_update), so a cell without a number has no meaning. In logit_update the final norm's scale is taken at each token.",
            ],
          }),
        );
      }
      const rows = ids.filter((id) => data.kl?.[id] != null || data.ce_recovered?.[id]);
      if (rows.length) {
        pair.append(
          figures.figure({
            body: figures.table(
              ["Dictionary", "CE recovered, of mean ablation", "of zero ablation", "KL (nats per token)"],
              rows.map((id) => {
                const { mean, zero } = data.ce_recovered?.[id] ?? {};
                const cell = (x, part) =>
                  x == null
                    ? "–"
                    : h(
                        "span",
                        { class: "metered" },
                        bar(x),
                        sae.dom.value(x, `spaces.ce_recovered.${part}`, {
                          index: id,
                          format: (y) => format.percent(y),
                        }),
                      );
                return [
                  name(id),
                  cell(mean, "mean"),
                  cell(zero, "zero"),
                  data.kl?.[id] == null ? "–" : sae.dom.value(data.kl[id], "spaces.kl", { index: id }),
                ];
              }),
              { label: "What the model says with the reconstruction in place" },
            ),
            caption: [
              h("b", {}, "With the reconstruction spliced in. "),
              "CE recovered: (ablated − reconstructed) / (ablated − original) of the next-token cross-entropy, 100 % being the model as it is. ",
              "Zero ablation also takes away a mean that the model may rely on, so the mean is the fairer baseline. KL is from the model's own predictions to those with the reconstruction.",
            ],
          }),
        );
      }
      root.append(
        pair.childElementCount
          ? pair
          : figures.nothing(
              `Fidelity is measured by sae-train at the end of training; ${data.ids.length > 1 ? "these" : "this one"} came without.`,
            ),
      );
      if (ids.length && without.length)
        root.append(
          h(
            "p",
            { class: "note" },
            `Fidelity is measured by sae-train at the end of training; ${without.join(", ")} came without.`,
          ),
        );
    },
  });
}
