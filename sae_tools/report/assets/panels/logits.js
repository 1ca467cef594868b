"use strict";
/** What one unit of a feature adds to the logits, directly. */
{
  const { h } = sae.dom;
  const { plot, scales, format, figures, blobs } = sae;

  const side = (title, kind, ids, values, widest, vocabulary, feature) =>
    h(
      "div",
      { class: `logit-side ${kind}` },
      h("h3", {}, title),
      h(
        "ol",
        {},
        Array.from(ids, (id, k) =>
          id === sae.list.NONE
            ? null
            : h(
                "li",
                {},
                sae.tokens.chip(vocabulary[id] ?? `⟨token ${id}⟩`),
                h(
                  "span",
                  { class: "meter", "aria-hidden": "true" },
                  h("span", { css: { width: `${Math.min(100, (Math.abs(values[k]) / widest) * 100)}%` } }),
                ),
                sae.dom.value(values[k], `logits.${kind}_value`, {
                  index: String(feature),
                  format: (x) => format.signed(x, 3),
                }),
              ),
        ),
      ),
    );

  sae.panel({
    id: "logits",
    view: "feature",
    column: "side",
    title: "Logit weights",
    when: (ctx) => ctx.dictionary.has_logits,
    render: async (root, ctx) => {
      const { dictionary, feature } = ctx;
      const [chunk, { corpus }] = await Promise.all([
        ctx.blob(`features/${dictionary.id}/${Math.floor(feature / ctx.meta.chunk)}`),
        ctx.blob(`corpus/${dictionary.corpus}`),
      ]);
      const { logits } = chunk;
      if (!logits) return root.append(figures.nothing("No fixed map leads from this site to the logits."));
      const inside = feature % ctx.meta.chunk;
      const row = (key) => blobs.row(logits[key], inside);
      const [low, high] = row("range");
      const widest = Math.max(Math.abs(row("top_value")[0]), Math.abs(row("bottom_value")[0]), 1e-12);
      const counts = row("histogram");
      const body = h("div", { class: "responsive chart-110" });
      sae.dom.responsive(body, (width) => {
        const { svg, inner } = plot.frame(width, 110, {
          left: 8,
          right: 8,
          top: 6,
          bottom: 34,
          label: `Histogram of the logit weights over the vocabulary, from ${format.figures(low)} to ${format.figures(high)}`,
        });
        const x = scales.linear([low, high], [inner.left, inner.right]);
        const tallest = Math.max(...counts, 1);
        const y = scales.linear([0, Math.sqrt(tallest)], [inner.bottom, inner.top]);
        plot.axisX(svg, inner, x, { title: "logit weight", count: 5 });
        const edge = (k) => low + ((high - low) * k) / counts.length;
        plot.bars(
          svg,
          inner,
          x,
          y,
          Array.from(counts, (n, k) => ({
            from: edge(k),
            to: edge(k + 1),
            value: Math.sqrt(n),
            class: "plain-bar",
            rows: [`${format.figures(edge(k))} to ${format.figures(edge(k + 1))}`, ["tokens", format.integer(n)]],
          })),
        );
        return svg;
      });
      root.append(
        h(
          "div",
          { class: "logit-sides" },
          side("Up", "top", row("top_token"), row("top_value"), widest, corpus.vocabulary, feature),
          side("Down", "bottom", row("bottom_token"), row("bottom_value"), widest, corpus.vocabulary, feature),
        ),
        figures.figure({
          body,
          caption: [
            "What one unit of activation adds to each token's logit directly, through the final norm's weight and its mean scale over the text, centred over the vocabulary; norm ",
            sae.dom.value(logits.norm[inside], "logits.norm", { index: String(feature) }),
            ". Heights of the histogram are square roots of the number of tokens.",
          ],
        }),
      );
    },
  });
}
