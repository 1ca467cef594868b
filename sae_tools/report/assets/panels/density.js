"use strict";
/** How often features fire: a histogram for any time of training, and all times at once as a heat map. */
{
  const { h, s } = sae.dom;
  const { plot, scales, format, figures, classes } = sae;
  const PER_DECADE = 10;

  /** Bins of log10 density, a tenth of a decade each, from the decade of one firing in `tokens` up to 1. */
  const binning = (tokens) => {
    const decades = Math.max(2, Math.ceil(Math.log10(tokens)));
    const bins = decades * PER_DECADE;
    return {
      decades,
      bins,
      edge: (bin) => 10 ** (bin / PER_DECADE - decades),
      counts: ({ fires, tokens: n }) => {
        const counts = new Uint32Array(bins + 1); // the last one: fired on no token
        const known = new Int16Array(Math.min(n, 1 << 16) + 1).fill(-1); // bins of the counts met so far
        known[0] = bins;
        for (let i = 0; i < fires.length; i++) {
          let bin = known[fires[i]] ?? -1;
          if (bin < 0) {
            bin = Math.max(0, Math.min(bins - 1, Math.floor((Math.log10(fires[i] / n) + decades) * PER_DECADE + 1e-9)));
            if (fires[i] < known.length) known[fires[i]] = bin;
          }
          counts[bin]++;
        }
        return counts;
      },
    };
  };

  const histogram = (ctx, bins, counts, seen, top, address) => {
    const bounds = classes.bounds(ctx.dictionary);
    const body = h("div", { class: "responsive chart-260" });
    return sae.dom.responsive(body, (width) => {
      const { svg, inner } = plot.frame(width, 260, {
        left: 44,
        right: 8,
        top: 40,
        bottom: 36,
        role: "group",
        label: "Histogram of feature densities; every bar lists its features",
      });
      const gutter = 34;
      const dead = counts[bins.bins];
      const x = scales.linear([-bins.decades, 0], [inner.left + gutter, inner.right]);
      const y = scales.linear([0, top], [inner.bottom, inner.top]);
      const ticks = Array.from({ length: bins.decades + 1 }, (_, i) => ({
        value: i - bins.decades,
        text: i === bins.decades ? "1" : format.power(i - bins.decades),
      }));
      plot.axisY(svg, inner, y, { title: "features", count: 4 });
      plot.axisX(svg, { ...inner, left: inner.left + gutter - 6 }, x, {
        title: "density (share of tokens on which a feature is > 0)",
        ticks: ticks.filter((_, i) => width > 420 || i % 2 === bins.decades % 2),
      });
      svg.append(
        s("text", { class: "axis-note", x: inner.left + 11, y: inner.bottom + 15, "text-anchor": "middle" }, "0"),
      );
      for (const bound of bounds) {
        const at = x(Math.log10(bound));
        if (at > inner.left + gutter)
          svg.append(s("line", { class: "bound", x1: at, x2: at, y1: inner.top - 14, y2: inner.bottom }));
      }
      const borders = [-bins.decades, ...bounds.map(Math.log10), 0];
      for (let kind = 1; kind < 5; kind++) {
        const [a, b] = [x(Math.max(-bins.decades, borders[kind - 1])), x(borders[kind])];
        if (b - a > 46)
          svg.append(
            s(
              "text",
              { class: "bound-name", x: (a + b) / 2, y: inner.top - 8, "text-anchor": "middle" },
              classes.names[kind],
            ),
          );
      }
      svg.append(
        s(
          "text",
          { class: "bound-name", x: inner.left + 11, y: inner.top - 8, "text-anchor": "middle" },
          dead > top && width > 520 ? `dead ${format.integer(dead)}` : "dead",
        ),
      );
      const bars = [];
      const shown = (count) => Math.min(count, top);
      const place = x.invert;
      bars.push({
        from: place(inner.left),
        to: place(inner.left + 22),
        value: shown(dead),
        class: "class-dead",
        href: address({ class: "dead" }),
        label: `${format.count(dead, "dead feature")}`,
        rows: ["dead", ["features", format.integer(dead)], ["fired on", `0 of ${format.integer(seen)} tokens`]],
      });
      for (let bin = 0; bin < bins.bins; bin++) {
        const [low, high] = [bins.edge(bin), bins.edge(bin + 1)];
        const kind = classes.of(Math.sqrt(low * high), 1, bounds);
        const range = `${format.scientific(low, 1)} to ${format.scientific(high, 1)}`;
        bars.push({
          from: bin / PER_DECADE - bins.decades,
          to: (bin + 1) / PER_DECADE - bins.decades,
          value: shown(counts[bin]),
          class: `class-${classes.names[kind]}`,
          href: address({
            min: Number(low.toPrecision(9)),
            max: bin + 1 === bins.bins ? "" : Number(high.toPrecision(9)),
          }),
          label: `${format.count(counts[bin], "feature")} of density ${range}`,
          rows: [`density ${range}`, ["features", format.integer(counts[bin])], ["class", classes.names[kind]]],
        });
      }
      plot.bars(svg, inner, x, y, bars);
      // A bar that would dwarf the others ends at the top, with its number beside its name and a break drawn through it.
      if (dead > top) svg.append(s("path", { class: "break", d: `M${inner.left - 2},${inner.top + 12}l26,-6` }));
      return svg;
    });
  };

  const heatmap = (history, bins, matrix, deepest, choose, marker) => {
    const body = h("div", { class: "responsive chart-260 over" });
    return sae.dom.responsive(body, (width) => {
      const height = 260;
      const { svg, inner } = plot.frame(width, height, {
        left: 44,
        right: 8,
        top: 40,
        bottom: 36,
        label: "Heat map: number of features by density and by time of training",
      });
      const strip = 12;
      const bottom = inner.bottom - strip - 8;
      const x = scales.linear([history.start(0), history.end[history.count - 1]], [inner.left, inner.right]);
      const y = scales.linear([-bins.decades, 0], [bottom, inner.top]);
      const edges = [x(history.start(0)), ...Array.from(history.end, x)];
      const [canvas, context] = sae.canvas.make(width, height, "");
      canvas.setAttribute("aria-hidden", "true");
      canvas.removeAttribute("role");
      const colour = scales.sequential();
      const depth = (count) => (count ? Math.log1p(count) / Math.log1p(deepest) : -1);
      sae.canvas.raster(context, {
        edges,
        top: inner.top,
        bottom,
        rows: bins.bins,
        colour,
        values: (w, row) => depth(matrix[w][bins.bins - 1 - row]),
      });
      sae.canvas.raster(context, {
        edges,
        top: inner.bottom - strip,
        bottom: inner.bottom,
        rows: 1,
        colour,
        values: (w) => depth(matrix[w][bins.bins]),
      });
      const ticks = Array.from({ length: bins.decades + 1 }, (_, i) => ({
        value: i - bins.decades,
        text: i === bins.decades ? "1" : format.power(i - bins.decades),
      }));
      plot.axisY(svg, inner, y, { title: "density", ticks: ticks.slice(0, -1), grid: false });
      plot.axisX(svg, inner, x, { title: "tokens trained on", count: 4 });
      svg.append(s("text", { class: "axis-note", x: inner.left - 6, y: inner.bottom - 3, "text-anchor": "end" }, "0"));
      const line = s("line", { class: "hair strong", y1: inner.top, y2: inner.bottom });
      marker.move = (w) => {
        line.setAttribute("visibility", w < history.count ? "visible" : "hidden");
        if (w < history.count)
          for (const end of ["x1", "x2"]) line.setAttribute(end, String((edges[w] + edges[w + 1]) / 2));
      };
      marker.move(marker.at);
      svg.append(line);
      const under = (event) => {
        const box = svg.getBoundingClientRect();
        const [px, py] = [event.clientX - box.left, event.clientY - box.top];
        if (px < inner.left || px > inner.right || py < inner.top || py > inner.bottom) return null;
        let w = edges.findIndex((edge, i) => i > 0 && px <= edge) - 1;
        if (w < 0) w = history.count - 1;
        return {
          w,
          bin:
            py > bottom + 4
              ? bins.bins
              : Math.max(0, Math.min(bins.bins - 1, Math.floor((y.invert(py) + bins.decades) * PER_DECADE))),
        };
      };
      svg.addEventListener("pointermove", (event) => {
        const at = under(event);
        if (!at) return sae.tip.hide();
        const range =
          at.bin === bins.bins
            ? "0"
            : `${format.scientific(bins.edge(at.bin), 1)} to ${format.scientific(bins.edge(at.bin + 1), 1)}`;
        sae.tip.show(
          [sae.windows.name(history, at.w), ["density", range], ["features", format.integer(matrix[at.w][at.bin])]],
          event.clientX,
          event.clientY,
        );
      });
      svg.addEventListener("pointerleave", sae.tip.hide);
      svg.addEventListener("click", (event) => {
        const at = under(event);
        if (at) choose(at.w);
      });
      const content = document.createDocumentFragment();
      content.append(canvas, svg);
      return content;
    });
  };

  sae.head("density", (ctx) => [h("h1", { tabindex: "-1" }, "Density"), figures.dictionaries(ctx)]);

  sae.panel({
    id: "density",
    view: "density",
    column: "top",
    title: "How often features fire",
    render: async (root, ctx) => {
      const { dictionary } = ctx;
      const list = await sae.list.open(dictionary);
      const heldout = list.heldout;
      const sum = Math.max(1, Math.floor(Number(ctx.route.params.sum)) || 1);
      const history = dictionary.has_density ? await sae.windows.open(dictionary, sum) : null;
      const bounds = classes.bounds(dictionary);
      const last = history?.count ?? 0;
      const most = Math.max(heldout.tokens, ...(history?.tokens ?? []));
      const bins = binning(most);
      const matrix = Array.from({ length: last }, (_, w) => bins.counts(history.of(w)));
      const peaks = [...matrix, bins.counts(heldout)]
        .map((counts) => Math.max(...counts.subarray(0, bins.bins)))
        .sort((a, b) => a - b);
      const top = Math.max(4, peaks[Math.floor(peaks.length * 0.95)] ?? peaks.at(-1)) * 1.04;
      const asked = ctx.route.params.w;
      const marker = {
        at: asked == null || asked === "" ? last : Math.max(0, Math.min(last, Math.floor(Number(asked)) || 0)),
        move: () => {},
      };
      const place = h("div", {});
      const chips = h("ul", { class: "class-counts" });
      const says = h("output", { class: "when" });
      const slider = h("input", {
        type: "range",
        min: "0",
        max: String(last),
        value: String(marker.at),
        "aria-label": "Time of training",
      });
      const caption = h("span", {});

      const draw = () => {
        const counts = marker.at < last ? history.of(marker.at) : heldout;
        const address = (params) =>
          sae.routes.to("features", {
            d: dictionary.id,
            sort: "density",
            dir: "asc",
            ...params,
            ...(marker.at < last ? { w: marker.at, sum: sum > 1 ? sum : "" } : {}),
          });
        place.replaceChildren(histogram(ctx, bins, bins.counts(counts), counts.tokens, top, address));
        const kinds = classes.count(list.classesOf(counts));
        chips.replaceChildren(
          ...kinds.map((n, kind) =>
            h(
              "li",
              {},
              h(
                "a",
                {
                  href: address({ class: classes.names[kind] }),
                  title: classes.definition(kind, bounds, counts.tokens),
                },
                h("span", { class: `swatch class-${classes.names[kind]}`, "aria-hidden": "true" }),
                sae.dom.value(n, "density.classes", { format: format.integer }),
                ` ${classes.names[kind]}`,
              ),
            ),
          ),
        );
        const name = marker.at < last ? sae.windows.name(history, marker.at) : "held-out text, after training";
        says.textContent = `${name} (n\u202f=\u202f${format.integer(counts.tokens)} tokens)`;
        slider.setAttribute("aria-valuetext", name);
        caption.textContent = ` On n\u202f=\u202f${format.integer(counts.tokens)} tokens nothing below ${format.scientific(1 / counts.tokens, 1)} can be seen; a feature without a firing among them has a density below ${format.scientific(3 / counts.tokens, 1)} (95\u202f%; tokens of one document are not independent, so the true uncertainty is larger). Dead here means: fired on none of these tokens.`;
        marker.move(marker.at);
      };
      const choose = (w) => {
        marker.at = w;
        slider.value = String(w);
        ctx.replace({ d: dictionary.id, w: w < last ? w : "" });
        draw();
        place.firstChild.redraw?.();
      };
      slider.addEventListener("input", () => choose(Number(slider.value)));
      const right = figures.figure({
        body: history
          ? heatmap(history, bins, matrix, Math.max(...matrix.map((counts) => Math.max(...counts))), choose, marker)
          : figures.nothing("This dictionary came without a history of its densities."),
        caption: history
          ? [
              h("b", {}, "All of training. "),
              `Each column is a window of ${format.integer(history.tokens[0])} tokens, each row a tenth of a decade; a stronger blue means more features (logarithmic). The strip below: features that fired on none of the window's tokens. Click a column to see its histogram.`,
            ]
          : "",
      });
      const spans = history
        ? figures.choice(
            "Windows",
            [1, 2, 5, 10, 20]
              .filter((k) => k === 1 || k * 4 <= history.count * sum)
              .map((k) => [String(k), k === 1 ? "as recorded" : `${k} summed`]),
            String(sum),
            (value) => ctx.go(sae.routes.to("density", { d: dictionary.id, sum: value === "1" ? "" : value })),
          )
        : null;
      root.append(
        h(
          "div",
          { class: "controls" },
          history
            ? h(
                "span",
                { class: "control grow" },
                h("span", { "aria-hidden": "true" }, "start"),
                slider,
                h("span", { "aria-hidden": "true" }, "held out"),
              )
            : null,
          says,
          spans,
        ),
        chips,
        h(
          "div",
          { class: "pair" },
          figures.figure({
            body: place,
            caption: [
              h("b", {}, "Log density of all features. "),
              `Classes: ultra-rare below ${format.bound(bounds[0])}, rare below ${format.bound(bounds[1])}, dense above ${format.bound(bounds[2])}. Bars are a tenth of a decade wide; a bar lists its features.`,
              caption,
            ],
            data: figures.numbers("histogram of densities", ["Density from", "Features"], () =>
              [...bins.counts(marker.at < last ? history.of(marker.at) : heldout)]
                .map((n, bin) => [bin === bins.bins ? "none" : format.scientific(bins.edge(bin), 2), format.integer(n)])
                .filter(([, n]) => n !== "0"),
            ),
          }),
          right,
        ),
      );
      draw();
    },
  });
}
