"use strict";
/** How many features are dead, ultra-rare, rare, normal and dense, over training. */
{
  const { h, s } = sae.dom;
  const { plot, scales, format, figures, classes } = sae;

  sae.panel({
    id: "classes",
    view: "density",
    title: "Classes over training",
    when: (ctx) => ctx.dictionary.has_density,
    render: async (root, ctx) => {
      const { dictionary } = ctx;
      const bounds = classes.bounds(dictionary);
      const sum = Math.max(1, Math.floor(Number(ctx.route.params.sum)) || 1);
      const history = await sae.windows.open(dictionary, sum);
      const counts = Array.from({ length: history.count }, (_, w) => {
        const { fires, tokens } = history.of(w);
        return classes.count(classes.all(fires, tokens, bounds));
      });
      const address = (kind, w) =>
        sae.routes.to("features", {
          d: dictionary.id,
          class: classes.names[kind],
          w,
          sum: sum > 1 ? sum : "",
          sort: "density",
          dir: "asc",
        });
      const body = h("div", { class: "responsive chart-300" });
      sae.dom.responsive(body, (width) => {
        const { svg, inner } = plot.frame(width, 300, {
          left: 44,
          right: 84,
          top: 22,
          bottom: 36,
          label: `Features of each density class over training; at the end ${counts
            .at(-1)
            .map((n, kind) => `${n} ${classes.names[kind]}`)
            .join(", ")}`,
        });
        const x = scales.linear([history.start(0), history.end[history.count - 1]], [inner.left, inner.right]);
        const y = scales.linear([0, dictionary.d_sae], [inner.bottom, inner.top]);
        const edges = [x(history.start(0)), ...Array.from(history.end, x)];
        const xs = edges.slice(1).flatMap((edge, i) => [edges[i], edge]);
        const under = new Float64Array(history.count);
        const labels = [];
        for (let kind = 0; kind < 5; kind++) {
          const lower = [...under].flatMap((n) => [y(n), y(n)]);
          for (let w = 0; w < history.count; w++) under[w] += counts[w][kind];
          const upper = [...under].flatMap((n) => [y(n), y(n)]);
          svg.append(s("path", { class: `area class-${classes.names[kind]}`, d: plot.band(xs, lower, upper) }));
          labels.push({ kind, y: (lower.at(-1) + upper.at(-1)) / 2 + 4 });
        }
        plot.axisY(svg, inner, y, { title: "features", count: 4, grid: false });
        plot.axisX(svg, inner, x, { title: "tokens trained on", count: 4 });
        for (const { kind, y: at } of plot.spread(labels, 14, inner.top + 6, inner.bottom)) {
          svg.append(
            s(
              "text",
              { class: "series-label", x: inner.right + 6, y: at },
              `${classes.names[kind]} ${format.integer(counts.at(-1)[kind])}`,
            ),
          );
        }
        for (const event of history.events) {
          svg.append(
            s("line", {
              class: "event",
              x1: x(event.tokens),
              x2: x(event.tokens),
              y1: inner.top - 6,
              y2: inner.bottom,
            }),
            s(
              "text",
              { class: "axis-note", x: x(event.tokens) + 4, y: inner.top - 6 },
              `${event.kind} ${event.features.length}`,
            ),
          );
        }
        const at = (event) => {
          const box = svg.getBoundingClientRect();
          const px = event.clientX - box.left;
          if (px < inner.left || px > inner.right) return null;
          const w = Math.max(0, edges.findIndex((edge, i) => i > 0 && px <= edge) - 1);
          let n = y.invert(event.clientY - box.top);
          const kind = counts[w].findIndex((count) => (n -= count) <= 0);
          return { w, kind: kind < 0 ? 4 : kind };
        };
        svg.addEventListener("pointermove", (event) => {
          const found = at(event);
          if (!found) return sae.tip.hide();
          sae.tip.show(
            [
              sae.windows.name(history, found.w),
              ...counts[found.w].map((n, kind) => [classes.names[kind], format.integer(n)]).reverse(),
            ],
            event.clientX,
            event.clientY,
          );
        });
        svg.addEventListener("pointerleave", sae.tip.hide);
        svg.addEventListener("click", (event) => {
          const found = at(event);
          if (found) ctx.go(address(found.kind, found.w));
        });
        return svg;
      });
      root.append(
        figures.figure({
          body,
          caption: [
            h("b", {}, "Features by class. "),
            `From below: dead (fired on none of the window's n\u202f=\u202f${format.integer(history.tokens[0])} tokens), ultra-rare (below ${format.bound(bounds[0])}), rare (below ${format.bound(bounds[1])}), normal, dense (above ${format.bound(bounds[2])}). `,
            history.events.length
              ? `Dashed: ${history.events.length === 1 ? "an event" : `${history.events.length} events`} such as resampling. `
              : "",
            "Click an area to list its features.",
          ],
          data: figures.numbers("features by class", ["Tokens", ...classes.names], () =>
            counts.map((one, w) => [
              format.integer(history.end[w]),
              ...one.map((n, kind) => h("a", { href: address(kind, w) }, format.integer(n))),
            ]),
          ),
        }),
      );
    },
  });
}
