"use strict";
/** How strongly a feature fires when it fires. */
{
  const { h, s } = sae.dom;
  const { plot, scales, format, figures, blobs } = sae;

  sae.panel({
    id: "activations",
    view: "feature",
    column: "side",
    title: "Activations",
    render: async (root, ctx) => {
      const { dictionary, feature } = ctx;
      const { activations } = await ctx.blob(`features/${dictionary.id}/${Math.floor(feature / ctx.meta.chunk)}`);
      const inside = feature % ctx.meta.chunk;
      const counts = blobs.row(activations.histogram, inside);
      const maximum = activations.maximum[inside];
      const fires = counts.reduce((sum, n) => sum + n, 0);
      if (!fires) return root.append(figures.nothing("None: no token activates it."));
      const { intervals } = ctx.corpus;
      const per = counts.length / intervals;
      const edge = (k) => (maximum * k) / counts.length;
      const body = h("div", { class: "responsive chart-150" });
      sae.dom.responsive(body, (width) => {
        const { svg, inner } = plot.frame(width, 150, {
          left: 40,
          right: 8,
          top: 18,
          bottom: 34,
          label: `Histogram of the activations of feature ${feature} on ${fires} tokens, maximum ${format.figures(maximum)}`,
        });
        const x = scales.linear([0, maximum], [inner.left, inner.right]);
        const y = scales.linear([0, Math.max(...counts)], [inner.bottom, inner.top]);
        plot.axisY(svg, inner, y, { title: "tokens", count: 3 });
        for (let j = 1; j < intervals; j++)
          svg.append(
            s("line", {
              class: "interval",
              x1: x((maximum * j) / intervals),
              x2: x((maximum * j) / intervals),
              y1: inner.bottom,
              y2: inner.bottom + 3,
            }),
          );
        plot.axisX(svg, inner, x, { title: "activation", count: 4 });
        plot.bars(
          svg,
          inner,
          x,
          y,
          Array.from(counts, (n, k) => ({
            from: edge(k),
            to: edge(k + 1),
            value: n,
            class: Math.floor(k / per) % 2 ? "hot-bar odd" : "hot-bar",
            rows: [
              `${format.figures(edge(k))} to ${format.figures(edge(k + 1))}`,
              ["tokens", format.integer(n)],
              ["interval", String(Math.floor(k / per) + 1)],
            ],
          })),
        );
        return svg;
      });
      root.append(
        figures.figure({
          body,
          caption: [
            `The ${format.integer(fires)} activations > 0 in ${counts.length} even bins of (0, `,
            sae.dom.value(maximum, "activations.maximum", { index: String(feature) }),
            `]; the tone changes at the borders of the ${intervals} intervals from which contexts are drawn.`,
          ],
          data: figures.numbers("histogram of activations", ["Activation up to", "Tokens"], () =>
            Array.from(counts, (n, k) => [format.figures(edge(k + 1)), format.integer(n)]),
          ),
        }),
      );
    },
  });
}
