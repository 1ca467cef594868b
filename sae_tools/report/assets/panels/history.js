"use strict";
/** A feature's density over training, with its interval and with what was done to the feature. */
{
  const { h, s } = sae.dom;
  const { plot, scales, format, figures } = sae;

  sae.panel({
    id: "history",
    view: "feature",
    column: "side",
    title: "Density over training",
    when: (ctx) => ctx.dictionary.has_density,
    render: async (root, ctx) => {
      const { dictionary, feature } = ctx;
      const history = await sae.windows.open(dictionary);
      const list = await sae.list.open(dictionary);
      const bounds = sae.classes.bounds(dictionary);
      const points = Array.from({ length: history.count }, (_, w) => {
        const { fires, tokens } = history.of(w);
        const [low, high] = scales.wilson(fires[feature], tokens);
        return {
          w,
          at: (history.start(w) + history.end[w]) / 2,
          fires: fires[feature],
          tokens,
          density: fires[feature] / tokens,
          low,
          high,
        };
      });
      const events = history.events.filter((event) => event.features.includes(feature));
      const final = list.density(feature);
      const floor = 0.4 / Math.max(dictionary.tokens, ...history.tokens);
      const body = h("div", { class: "responsive chart-180" });
      sae.dom.responsive(body, (width) => {
        const { svg, inner } = plot.frame(width, 180, {
          left: 40,
          right: 14,
          top: 18,
          bottom: 34,
          label: `Density of feature ${feature} over training: ${format.scientific(points[0]?.density)} at first, ${format.scientific(points.at(-1)?.density)} at last`,
        });
        const top = Math.max(...points.map((point) => point.high), final, floor * 100);
        const x = scales.log(
          [Math.max(1, points[0].at * 0.9), history.end[history.count - 1]],
          [inner.left, inner.right],
        );
        const y = scales.log([floor, Math.min(1, top * 1.3)], [inner.bottom, inner.top]);
        const clamp = (value) => y(Math.max(floor, value));
        plot.axisY(svg, inner, y, { title: "density", count: 6 });
        plot.axisX(svg, inner, x, { title: "tokens trained on" });
        for (const bound of bounds)
          if (bound > floor && bound < top * 1.3)
            svg.append(s("line", { class: "bound", x1: inner.left, x2: inner.right, y1: y(bound), y2: y(bound) }));
        svg.append(
          s("path", {
            class: "interval-band",
            d: plot.band(
              points.map((point) => x(point.at)),
              points.map((point) => clamp(point.low)),
              points.map((point) => clamp(point.high)),
            ),
          }),
        );
        svg.append(
          s("path", {
            class: "series colour-0",
            fill: "none",
            d: plot.path(points.map((point) => [x(point.at), point.fires ? y(point.density) : NaN])),
          }),
        );
        svg.append(
          s("path", {
            class: "zero",
            d: points
              .filter((point) => !point.fires)
              .map((point) => `M${(x(point.at) - 2.5).toFixed(1)},${inner.bottom - 5}h5l-2.5,4z`)
              .join(""),
          }),
        );
        for (const event of events) {
          const at = x(Math.max(event.tokens, points[0].at));
          svg.append(
            s("line", { class: "event", x1: at, x2: at, y1: inner.top, y2: inner.bottom }),
            s("text", { class: "axis-note", x: at + 4, y: inner.top + 8 }, event.kind),
          );
        }
        if (final > 0) svg.append(s("circle", { class: "final", cx: inner.right, cy: y(final), r: 3.5 }));
        else svg.append(s("path", { class: "final", d: `M${inner.right - 4},${inner.bottom - 7}h8l-4,6z` }));
        svg.addEventListener("pointermove", (event) => {
          const box = svg.getBoundingClientRect();
          const tokens = x.invert(event.clientX - box.left);
          const point = points.reduce((best, one) =>
            Math.abs(one.at - tokens) < Math.abs(best.at - tokens) ? one : best,
          );
          sae.tip.show(
            [
              sae.windows.name(history, point.w),
              ["fired on", `${format.integer(point.fires)} of ${format.integer(point.tokens)}`],
              ["density", format.scientific(point.density)],
              ["95\u202f%", `${format.scientific(point.low, 1)} to ${format.scientific(point.high, 1)}`],
            ],
            box.left + x(point.at),
            box.top + inner.top,
          );
        });
        svg.addEventListener("pointerleave", sae.tip.hide);
        return svg;
      });
      const none = points.filter((point) => !point.fires).length;
      root.append(
        figures.figure({
          body,
          caption: [
            `Share of the tokens on which it fired, in each of ${history.count} windows of training, with the Wilson 95\u202f% interval (it takes tokens as independent; those of one document are not, so the true uncertainty is larger); both axes logarithmic, faint lines at the class borders. The dot at the end: held-out text. `,
            none ? `Triangles: the ${format.count(none, "window")} in which it never fired. ` : "",
            events.length
              ? `${events.map((event) => `${event.kind} after ${format.compact(event.tokens)} tokens`).join(", ")}.`
              : "",
          ],
          data: figures.numbers("density over training", ["Tokens", "Fired", "of", "Density"], () =>
            points.map((point) => [
              format.integer(history.end[point.w]),
              sae.dom.value(point.fires, "density.fires", { index: `${point.w} ${feature}`, format: format.integer }),
              format.integer(point.tokens),
              format.scientific(point.density),
            ]),
          ),
        }),
      );
    },
  });
}
