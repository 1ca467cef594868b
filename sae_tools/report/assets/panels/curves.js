"use strict";
/** Loss and the other figures of training, one small chart each, every dictionary of every run in it. */
{
  const { h, s } = sae.dom;
  const { plot, scales, format, figures } = sae;

  const known = {
    loss: ["Loss", "what was minimised: squared error in the dictionary's own space, and penalties", true],
    squared_error: ["Squared error", "per token, in the dictionary's own space and scale", true],
    fvu: ["FVU", "share of the variance not explained, on training tokens", true],
    l0: ["L0", "active features per token, mean", false],
    dead: ["Dead", "features that did not fire in the last tokens counted", false],
    aux: ["Auxiliary loss", "", false],
    l1: ["L1", "sum of activations, mean per token", false],
    explained: ["Explained variance", "", false],
  };

  /** [{name, index, points: [[tokens, value]]}] of one key. */
  const seriesOf = (runs, meta, key) =>
    runs.flatMap((run) =>
      Object.entries(run.dictionaries ?? {})
        .filter(([, curves]) => curves[key]?.length)
        .map(([id, curves]) => ({
          name: id,
          index: Math.max(
            0,
            meta.dictionaries.findIndex((one) => one.id === id),
          ),
          points: run.tokens
            .map((tokens, i) => [tokens, curves[key][i]])
            .filter(([, y]) => y != null && Number.isFinite(y)),
        })),
    );

  const chart = (series, title, logarithmic) => {
    const all = series.flatMap((one) => one.points);
    const [low, high] = scales.extent(all.map(([, y]) => y));
    const log = logarithmic && low > 0 && high / low > 3;
    const end = Math.max(...all.map(([x]) => x));
    const body = h("div", { class: "responsive chart-200" });
    const legend = h(
      "div",
      { class: "legend below", hidden: true },
      [...series]
        .sort((a, b) => a.index - b.index)
        .map(({ name, index }) => h("span", { class: "legend-item" }, figures.key(index), name)),
    );
    sae.dom.responsive(body, (width) => {
      const [top, bottom] = [12, 34];
      const pad = high === low ? Math.max(1, high * 0.1) : 0;
      const y = log
        ? scales.log([low * 0.9, high * 1.1], [200 - bottom, top])
        : scales.linear([Math.min(0, low), high + pad], [200 - bottom, top]);
      const ends = series
        .filter(({ points }) => points.length)
        .map(({ name, index, points }) => {
          const at = y(points.at(-1)[1]) + 4;
          return { name, index, at, y: at };
        });
      const labels = plot.spread(ends, 13, top, 200 - bottom);
      // Names stand beside the ends of their lines, whole and where the lines end; otherwise in a legend below.
      const room = 6.8 * Math.max(...series.map((one) => one.name.length));
      const beside = room <= width / 3 && labels.every((label) => Math.abs(label.y - label.at) <= 9);
      legend.hidden = beside;
      const { svg, inner } = plot.frame(width, 200, {
        left: 48,
        right: 12 + (beside ? room : 0),
        top,
        bottom,
        label: `${title} over tokens trained on, ${series.length} lines: ${series.map((one) => one.name).join(", ")}`,
      });
      const x = scales.linear([0, end], [inner.left, inner.right]);
      plot.axisX(svg, inner, x, { title: "tokens trained on", count: 3 });
      plot.axisY(svg, inner, y, { count: 4 });
      for (const { index, points } of series) {
        svg.append(
          plot.line(
            points.map(([a, b]) => [x(a), y(b)]),
            { colour: index % 8, dash: figures.dash(index) },
          ),
        );
        // A line of one point would have no length.
        if (points.length === 1)
          svg.append(s("circle", { class: `ink-${index % 8}`, cx: x(points[0][0]), cy: y(points[0][1]), r: 3 }));
      }
      for (const label of beside ? labels : [])
        svg.append(
          s("text", { class: `series-label ink-${label.index % 8}`, x: inner.right + 6, y: label.y }, label.name),
        );
      const hair = s("line", { class: "hair", y1: inner.top, y2: inner.bottom, visibility: "hidden" });
      svg.append(hair);
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const tokens = x.invert(event.clientX - box.left);
        const nearest = series
          .flatMap((one) => one.points)
          .reduce((best, point) => (Math.abs(point[0] - tokens) < Math.abs(best[0] - tokens) ? point : best));
        hair.setAttribute("x1", x(nearest[0]));
        hair.setAttribute("x2", x(nearest[0]));
        hair.setAttribute("visibility", "visible");
        sae.tip.show(
          [
            `${title} at ${format.integer(nearest[0])} tokens`,
            ...series.map((one) => [one.name, format.figures(one.points.find(([at]) => at === nearest[0])?.[1], 4)]),
          ],
          box.left + x(nearest[0]),
          box.top + inner.top,
        );
      });
      svg.addEventListener("pointerleave", () => {
        hair.setAttribute("visibility", "hidden");
        sae.tip.hide();
      });
      return svg;
    });
    return [body, legend];
  };

  const sameCurves = (a, b) =>
    JSON.stringify(a.map((one) => one.points)) === JSON.stringify(b.map((one) => one.points));

  const figureOf = (key, series, title, about, logarithmic) =>
    figures.figure({
      name: key,
      body: chart(series, title, logarithmic),
      caption: [
        h("b", {}, `${title[0].toUpperCase()}${title.slice(1)}. `),
        about ? `${about[0].toUpperCase()}${about.slice(1)}; each point is the mean since the one before.` : "",
      ],
      data: figures.numbers(title, ["Tokens", ...series.map((one) => one.name)], () => {
        const times = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
        const maps = series.map((one) => new Map(one.points));
        return times.map((x) => [format.integer(x), ...maps.map((map) => format.figures(map.get(x), 4))]);
      }),
    });

  sae.panel({
    id: "curves",
    view: "run",
    title: "Training",
    render: async (root, ctx) => {
      const { runs } = (await ctx.blob("report")).curves;
      const keys = [
        ...new Set(
          runs.flatMap((run) => Object.values(run.dictionaries ?? {}).flatMap((curves) => Object.keys(curves))),
        ),
      ];
      const order = [...Object.keys(known).filter((key) => keys.includes(key)), ...keys.filter((key) => !known[key])];
      const grid = h("div", { class: "multiples" });
      const others = h("div", { class: "multiples" });
      const constant = [];
      for (const key of order) {
        const series = seriesOf(runs, ctx.meta, key);
        const flat = series.flatMap((one) => one.points.map(([, y]) => y));
        if (!flat.length) continue;
        const [title, about, logarithmic] = known[key] ?? [key.replaceAll("_", " "), "", false];
        // Where there are no penalties the loss is the squared error; one chart says it.
        if (key === "squared_error" && sameCurves(series, seriesOf(runs, ctx.meta, "loss"))) continue;
        if (key !== "l0" && flat.every((y) => y === flat[0]))
          constant.push(`${title.toLowerCase()} ${Number(flat[0].toPrecision(3))}${about ? ` (${about})` : ""}`);
        else (known[key] ? grid : others).append(figureOf(key, series, title, about, logarithmic));
      }
      const speeds = runs
        .map((run, index) => ({
          name: run.name,
          index,
          points: run.tokens.map((x, i) => [x, run.tokens_per_s?.[i]]).filter(([, y]) => y != null),
        }))
        .filter((one) => one.points.length);
      if (speeds.length)
        grid.append(
          figureOf(
            "tokens_per_s",
            speeds,
            "Speed",
            "tokens per second, for reading the text and training all dictionaries of a run together",
            false,
          ),
        );
      if (!grid.childElementCount)
        return root.append(figures.nothing("This dictionary came without a record of its training."));
      root.append(grid);
      if (constant.length)
        root.append(
          h(
            "p",
            { class: "note" },
            h("b", {}, "The same throughout, in every dictionary: "),
            `${constant.join("; ")}.`,
          ),
        );
      if (others.childElementCount)
        root.append(h("details", { class: "full" }, h("summary", {}, "Everything else that was logged"), others));
    },
  });
}
