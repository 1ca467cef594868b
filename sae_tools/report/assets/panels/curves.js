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
  const seriesOf = (runs, meta, key) => runs.flatMap((run) => Object.entries(run.dictionaries ?? {}).filter(([, curves]) => curves[key]?.length)
    .map(([id, curves]) => ({
      name: id,
      index: Math.max(0, meta.dictionaries.findIndex((one) => one.id === id)),
      points: run.tokens.map((tokens, i) => [tokens, curves[key][i]]).filter(([, y]) => y != null && Number.isFinite(y)),
    })));

  const chart = (series, key, logarithmic) => {
    const [title] = known[key] ?? [key];
    const all = series.flatMap((one) => one.points);
    const [low, high] = scales.extent(all.map(([, y]) => y));
    const log = logarithmic && low > 0 && high / low > 3;
    const end = Math.max(...all.map(([x]) => x));
    const body = h("div", { class: "responsive chart-200" });
    return sae.dom.responsive(body, (width) => {
      const { svg, inner } = plot.frame(width, 200, { left: 48, right: 96, top: 12, bottom: 34, label: `${title} over tokens trained on, ${series.length} lines: ${series.map((one) => one.name).join(", ")}` });
      const x = scales.linear([0, end], [inner.left, inner.right]);
      const pad = high === low ? Math.max(1, high * 0.1) : 0;
      const y = log ? scales.log([low * 0.9, high * 1.1], [inner.bottom, inner.top])
        : scales.linear([Math.min(0, low), high + pad], [inner.bottom, inner.top]);
      plot.axisX(svg, inner, x, { title: "tokens trained on", count: 3 });
      plot.axisY(svg, inner, y, { count: 4 });
      const labels = [];
      for (const { name, index, points } of series) {
        svg.append(plot.line(points.map(([a, b]) => [x(a), y(b)]), { colour: index % 8, dash: figures.dash(index) }));
        if (points.length) labels.push({ name, index, y: y(points.at(-1)[1]) + 4 });
      }
      for (const label of plot.spread(labels, 13, inner.top, inner.bottom)) {
        svg.append(s("text", { class: `series-label ink-${label.index % 8}`, x: inner.right + 6, y: label.y }, label.name));
      }
      const hair = s("line", { class: "hair", y1: inner.top, y2: inner.bottom, visibility: "hidden" });
      svg.append(hair);
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const tokens = x.invert(event.clientX - box.left);
        const nearest = series[0].points.reduce((best, point) => (Math.abs(point[0] - tokens) < Math.abs(best[0] - tokens) ? point : best));
        hair.setAttribute("x1", x(nearest[0]));
        hair.setAttribute("x2", x(nearest[0]));
        hair.setAttribute("visibility", "visible");
        sae.tip.show([`${title} at ${format.integer(nearest[0])} tokens`, ...series.map((one) =>
          [one.name, format.figures(one.points.find(([at]) => at === nearest[0])?.[1], 4)])], box.left + x(nearest[0]), box.top + inner.top);
      });
      svg.addEventListener("pointerleave", () => {
        hair.setAttribute("visibility", "hidden");
        sae.tip.hide();
      });
      return svg;
    });
  };

  sae.panel({
    id: "curves",
    view: "run",
    title: "Training",
    render: async (root, ctx) => {
      const { runs } = (await ctx.blob("report")).curves;
      const keys = [...new Set(runs.flatMap((run) => Object.values(run.dictionaries ?? {}).flatMap((curves) => Object.keys(curves))))];
      const order = [...Object.keys(known).filter((key) => keys.includes(key)), ...keys.filter((key) => !known[key])];
      const grid = h("div", { class: "multiples" });
      const constant = [];
      for (const key of order) {
        const series = seriesOf(runs, ctx.meta, key);
        const flat = series.flatMap((one) => one.points.map(([, y]) => y));
        if (!flat.length) continue;
        // Where penalties are off the loss is the squared error; one chart says it.
        const same = key === "squared_error" && JSON.stringify(series.map((one) => one.points)) === JSON.stringify(seriesOf(runs, ctx.meta, "loss").map((one) => one.points));
        if (same) continue;
        const [title, about, logarithmic] = known[key] ?? [key, "", false];
        if (key !== "l0" && flat.every((y) => y === flat[0])) {
          constant.push(`${title.toLowerCase()}: ${format.figures(flat[0])}${about ? ` (${about})` : ""}`);
          continue;
        }
        const times = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
        grid.append(figures.figure({
          body: chart(series, key, logarithmic),
          caption: [h("b", {}, `${title}. `), about ? `${about[0].toUpperCase()}${about.slice(1)}; each point is the mean since the one before.` : ""],
          data: figures.numbers(title, ["Tokens", ...series.map((one) => one.name)],
            () => times.map((x) => [format.integer(x), ...series.map((one) => format.figures(one.points.find(([at]) => at === x)?.[1], 4))])),
        }));
      }
      for (const run of runs.filter((one) => one.tokens_per_s?.length)) {
        const speeds = [{ name: runs.length > 1 ? run.name : "all", index: 0, points: run.tokens.map((x, i) => [x, run.tokens_per_s[i]]) }];
        known.speed = ["Speed", "", false];
        grid.append(figures.figure({ body: chart(speeds, "speed", false), caption: [h("b", {}, "Speed. "), `Tokens per second, reading and training all dictionaries of ${run.name} together.`] }));
      }
      if (constant.length) grid.append(h("p", { class: "note" }, h("b", {}, "The same throughout, in every dictionary. "), `${constant.join("; ")}.`));
      root.append(grid.childElementCount ? grid : figures.nothing("This dictionary came without a record of its training."));
    },
  });
}
