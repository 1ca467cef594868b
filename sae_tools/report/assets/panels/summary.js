"use strict";
/** The head of a feature's page: which one it is, what comes before and after, and its figures. */
{
  const { h } = sae.dom;
  const { format, figures, classes } = sae;

  const step = (ctx, index, text, key, label) =>
    index == null
      ? h("span", { class: "step off", "aria-hidden": "true" }, text)
      : h(
          "a",
          {
            class: "step",
            href: sae.routes.feature(ctx.dictionary.id, index),
            "data-keep": key,
            "data-testid": key,
            "aria-label": `${label}, ${index}`,
            rel: key,
            on: {
              click: (event) => {
                if (event.ctrlKey || event.metaKey || event.shiftKey) return;
                event.preventDefault();
                sae.actions.flip(key === "prev" ? -1 : 1);
              },
            },
          },
          text,
        );

  sae.head("feature", (ctx) => {
    const { dictionary, feature } = ctx;
    const { before, after, at, of, list } = sae.list.around(dictionary, feature);
    const where = list
      ? h("a", { href: list.href, class: "place" }, `${format.integer(at + 1)} of ${format.integer(of)}: ${list.label}`)
      : h(
          "a",
          { href: sae.routes.to("features", { d: dictionary.id }), class: "place" },
          `feature ${format.integer(feature)} of ${format.integer(dictionary.d_sae)}`,
        );
    return [
      h(
        "h1",
        { tabindex: "-1", "data-testid": "feature-title" },
        "Feature ",
        h("span", { class: "number" }, String(feature)),
        " ",
        h("span", { class: "of" }, figures.key(ctx.meta.dictionaries.indexOf(dictionary)), dictionary.id),
      ),
      h(
        "nav",
        { class: "steps", "aria-label": "Features" },
        step(ctx, before, "←", "prev", "Feature before"),
        where,
        step(ctx, after, "→", "next", "Feature after"),
      ),
    ];
  });

  sae.panel({
    id: "summary",
    view: "feature",
    column: "top",
    title: "In figures",
    quiet: true,
    render: async (root, ctx) => {
      const { dictionary, feature: i } = ctx;
      const list = await sae.list.open(dictionary);
      const { features } = list;
      const kind = list.classesOf()[i];
      const fires = features.fires[i];
      const [low, high] = sae.scales.wilson(fires, dictionary.tokens);
      const value = (key, show = format.figures) =>
        sae.dom.value(features[key][i], `features.${key}`, { index: String(i), format: show });
      const three = (x) => format.fixed(x, 3);
      const dead = kind === 0;
      if (dead) {
        root.append(
          h(
            "p",
            { class: "lead", "data-testid": "dead" },
            "This feature fired on none of the ",
            h("b", { class: "number" }, format.integer(dictionary.tokens)),
            " held-out tokens: its density is below ",
            h("b", { class: "number" }, format.scientific(3 / dictionary.tokens, 1)),
            " (95\u202f%, the rule of three). Its weights are shown all the same.",
          ),
        );
      }
      root.append(
        figures.facts(
          [
            [
              "Density, held out",
              h(
                "span",
                {},
                sae.dom.value(fires / dictionary.tokens, "features.fires", {
                  index: String(i),
                  format: format.scientific,
                }),
                " ",
                classes.badge(kind),
                h(
                  "small",
                  {},
                  `${format.integer(fires)} of ${format.integer(dictionary.tokens)} tokens${dead ? "" : `; 95\u202f%: ${format.scientific(low, 1)} to ${format.scientific(high, 1)}`}`,
                ),
              ),
              "Share of held-out tokens on which the feature is > 0, with the Wilson interval; tokens of one document are not independent, so the true uncertainty is larger",
            ],
            dead
              ? null
              : [
                  "Maximum",
                  h("span", {}, value("maximum"), h("small", {}, "mean when active ", value("mean_active"))),
                  `In ${dictionary.unit}`,
                ],
            features.projection
              ? [
                  "Encoder · decoder",
                  h(
                    "span",
                    {},
                    value("projection", three),
                    features.cosine ? h("small", {}, "cosine ", value("cosine", three)) : null,
                  ),
                  "Encoder vector along the unit decoder vector, and the cosine between the two",
                ]
              : null,
            [
              "Encoder bias",
              h(
                "span",
                {},
                value("b_enc", three),
                features.decoder_norm ? h("small", {}, "decoder norm ", value("decoder_norm", three)) : null,
              ),
            ],
            features.logit_norm
              ? [
                  "Logit weights",
                  h("span", {}, value("logit_norm"), h("small", {}, "norm over the vocabulary")),
                  "Norm of the centred logit weights",
                ]
              : null,
            features.best_match && dictionary.matches?.length
              ? [
                  "Best match elsewhere",
                  features.best_match[i] > 0
                    ? h("span", {}, value("best_match", three), h("small", {}, "correlation"))
                    : h("span", {}, "–", h("small", {}, "none of them fires with it")),
                  "Greatest correlation with a feature of another dictionary",
                ]
              : null,
            [
              "Read at",
              h("span", {}, dictionary.site, h("small", {}, `space ${dictionary.space}; unit: ${dictionary.unit}`)),
            ],
            dictionary.writes
              ? ["Written at", h("span", {}, dictionary.writes, h("small", {}, `space ${dictionary.target_space}`))]
              : null,
          ],
          "facts strip",
        ),
      );
    },
  });
}
