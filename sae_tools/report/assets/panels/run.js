"use strict";
/** What was trained on what: facts first, then everything in full. */
{
  const { h } = sae.dom;
  const { format, figures } = sae;

  const text = (value) => (value == null ? null : typeof value === "object" ? JSON.stringify(value) : String(value));

  const folded = (title, content) =>
    content
      ? h(
          "details",
          { class: "full" },
          h("summary", {}, title),
          h("pre", { tabindex: "0", role: "region", "aria-label": title }, content),
        )
      : null;

  const pairs = (label, object) =>
    figures.table(
      ["Name", "Value"],
      Object.entries(object ?? {}).map(([key, value]) => [key, text(value)]),
      { label, className: "left" },
    );

  const dictionaryRows = (meta, ids) =>
    meta.dictionaries
      .filter((one) => ids.includes(one.id))
      .map((one) => [
        h("a", { href: sae.routes.to("features", { d: one.id }) }, figures.key(meta.dictionaries.indexOf(one)), one.id),
        one.writes ? `${one.site} → ${one.writes}` : one.site,
        one.writes ? `${one.space} → ${one.target_space}` : one.space,
        one.k ? `${one.architecture}, k\u202f=\u202f${one.k}` : one.architecture,
        sae.dom.value(one.d_in, "meta.d_in", { format: format.integer }),
        sae.dom.value(one.d_sae, "meta.d_sae", { format: format.integer }),
        one.training_tokens == null
          ? "–"
          : sae.dom.value(one.training_tokens, "meta.training_tokens", { format: format.integer }),
        sae.dom.value(one.tokens, "meta.tokens", { format: format.integer }),
        sae.dom.value(one.l0, "meta.l0", { format: format.figures }),
      ]);

  sae.panel({
    id: "run",
    view: "run",
    title: "What was trained on what",
    render: async (root, ctx) => {
      const { runs } = (await ctx.blob("report")).run;
      for (const run of runs) {
        const { model, data } = run;
        const ids = run.dictionaries ?? [];
        const corpus = ctx.meta.corpora[ctx.meta.dictionaries.find((one) => ids.includes(one.id))?.corpus ?? 0];
        if (runs.length > 1) root.append(h("h3", {}, run.name));
        root.append(
          figures.facts(
            [
              [
                "Model",
                h(
                  "span",
                  {},
                  model?.name ?? corpus?.model ?? "–",
                  model?.layers == null
                    ? null
                    : h(
                        "small",
                        {},
                        `${model.layers} layers, width ${model.d_model}, ${format.compact(model.parameters)} parameters, ${format.integer(model.d_vocab)} tokens in the vocabulary`,
                      ),
                ),
              ],
              [
                "Text",
                h(
                  "span",
                  {},
                  data?.source ?? corpus?.source ?? "–",
                  h(
                    "small",
                    {},
                    [
                      data?.documents == null
                        ? null
                        : `${format.count(data.documents, "document")} in the whole source`,
                      model?.context_length ? `contexts of ${corpus?.length ?? model.context_length} tokens` : null,
                    ]
                      .filter(Boolean)
                      .join(", "),
                  ),
                ),
              ],
              run.tokens == null
                ? null
                : [
                    "Trained on",
                    h(
                      "span",
                      {},
                      sae.dom.value(run.tokens, "run.tokens", { format: format.integer }),
                      " tokens",
                      h("small", {}, run.seed == null ? "" : `seed ${run.seed}`),
                    ),
                  ],
              run.seconds == null && run.tokens_per_s == null
                ? null
                : [
                    "Speed",
                    h(
                      "span",
                      {},
                      run.tokens_per_s == null
                        ? ""
                        : sae.dom.value(run.tokens_per_s, "run.tokens_per_s", { format: format.integer }),
                      " tokens/s",
                      h(
                        "small",
                        {},
                        run.seconds == null ? "" : `${format.duration(run.seconds)} in all, all dictionaries together`,
                      ),
                    ),
                  ],
              corpus
                ? [
                    "Shown here",
                    h(
                      "span",
                      {},
                      sae.dom.value(corpus.counted, "meta.counted", { format: format.integer }),
                      " held-out tokens",
                      h(
                        "small",
                        {},
                        corpus.held_out
                          ? `${format.integer(corpus.contexts)} contexts, none of them trained on`
                          : `${format.integer(corpus.contexts)} contexts of ${corpus.source}; ` +
                              "whether they were trained on is not known here",
                      ),
                    ),
                  ]
                : null,
            ],
            "facts wide-facts",
          ),
          figures.table(
            [
              "Dictionary",
              "Site",
              "Space",
              "Architecture",
              "d_in",
              "d_sae (features)",
              "Tokens trained on",
              "Tokens held out",
              "L0, held out",
            ],
            dictionaryRows(ctx.meta, ids),
            { label: `Dictionaries of ${run.name}`, className: "left" },
          ),
          h(
            "div",
            { class: "folds" },
            folded("Configuration, with everything resolved", run.config),
            folded("Model card", model?.card),
            data
              ? h(
                  "details",
                  { class: "full" },
                  h("summary", {}, "Data and its fingerprint"),
                  pairs(`Data of ${run.name}`, data),
                )
              : null,
            run.versions
              ? h(
                  "details",
                  { class: "full" },
                  h("summary", {}, "Versions"),
                  pairs(`Versions of ${run.name}`, run.versions),
                )
              : null,
          ),
        );
      }
    },
  });
}
