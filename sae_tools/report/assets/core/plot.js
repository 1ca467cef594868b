"use strict";
/** Charts in SVG: a frame with axes, and marks in it. Colours are classes of style.css, so that a theme changes them. */
{
  const { s } = sae.dom;
  const round = (x) => Math.round(x * 100) / 100;

  const plot = {
    /**
     * An SVG with room for axes. `role` is "img" for a picture with one description, "group" where marks in it can be
     * reached. Answers {svg, inner: {left, top, right, bottom}}.
     */
    frame: (width, height, { left = 44, right = 12, top = 8, bottom = 34, label, role = "img" }) => {
      const svg = s("svg", {
        class: "plot",
        width,
        height,
        viewBox: `0 0 ${width} ${height}`,
        role,
        "aria-label": label,
      });
      return { svg, inner: { left, top, right: width - right, bottom: height - bottom } };
    },

    /** The axis below: ticks and the name of what is shown, with its unit. */
    axisX: (
      svg,
      inner,
      scale,
      {
        title,
        count = Math.max(2, Math.floor((inner.right - inner.left) / 70)),
        ticks = scale.ticks(count),
        grid = false,
      },
    ) => {
      const group = s("g", { class: "axis", "aria-hidden": "true" });
      group.append(
        s("line", {
          class: "axis-line",
          x1: inner.left,
          x2: inner.right,
          y1: inner.bottom + 0.5,
          y2: inner.bottom + 0.5,
        }),
      );
      for (const { value, text } of ticks) {
        const x = round(scale(value));
        if (grid) group.append(s("line", { class: "grid", x1: x, x2: x, y1: inner.top, y2: inner.bottom }));
        group.append(s("line", { class: "tick", x1: x, x2: x, y1: inner.bottom, y2: inner.bottom + 4 }));
        group.append(s("text", { x, y: inner.bottom + 15, "text-anchor": "middle" }, text));
      }
      if (title)
        group.append(
          s("text", { class: "axis-title", x: inner.right, y: inner.bottom + 29, "text-anchor": "end" }, title),
        );
      svg.append(group);
    },

    /** The axis at the left, its title above it, read without turning the head. */
    axisY: (
      svg,
      inner,
      scale,
      {
        title,
        count = Math.max(2, Math.floor((inner.bottom - inner.top) / 40)),
        ticks = scale.ticks(count),
        grid = true,
      },
    ) => {
      const group = s("g", { class: "axis", "aria-hidden": "true" });
      for (const { value, text } of ticks) {
        const y = round(scale(value));
        if (grid) group.append(s("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y, y2: y }));
        group.append(s("text", { x: inner.left - 6, y: y + 3.5, "text-anchor": "end" }, text));
      }
      if (title) group.append(s("text", { class: "axis-title", x: 0, y: Math.min(inner.top - 8, 11) }, title));
      svg.append(group);
    },

    /** Path data through points [[x, y], …] in pixels; a gap where a number is missing. */
    path: (points) => {
      let data = "";
      let pen = "M";
      for (const [x, y] of points) {
        if (!Number.isFinite(x) || !Number.isFinite(y)) pen = "M";
        else {
          data += `${pen}${round(x)},${round(y)}`;
          pen = "L";
        }
      }
      return data;
    },

    /** Path data of the band between two lines over the same x. */
    band: (xs, lower, upper) => {
      const there = xs.map((x, i) => `${round(x)},${round(upper[i])}`);
      const back = xs.map((x, i) => `${round(x)},${round(lower[i])}`).reverse();
      return xs.length ? `M${there.join("L")}L${back.join("L")}Z` : "";
    },

    /** A line with a label that names it at its end. */
    line: (points, { colour, dash = 0, label }) =>
      s("path", {
        class: `series colour-${colour} dash-${dash}`,
        d: plot.path(points),
        fill: "none",
        "aria-label": label,
      }),

    /** Moves labels (with .y in pixels) apart until none overlaps; keeps their order. */
    spread: (labels, gap, top, bottom) => {
      labels.sort((a, b) => a.y - b.y);
      for (let i = 1; i < labels.length; i++) labels[i].y = Math.max(labels[i].y, labels[i - 1].y + gap);
      const over = labels.length ? labels.at(-1).y - bottom : 0;
      if (over > 0) {
        labels.at(-1).y = bottom;
        for (let i = labels.length - 2; i >= 0; i--) labels[i].y = Math.min(labels[i].y, labels[i + 1].y - gap);
      }
      if (labels.length) labels[0].y = Math.max(labels[0].y, top);
      return labels;
    },

    /**
     * Bars over the edges of bins. `bars`: [{from, to, value, class, label, href, rows}] in data units, `rows` being
     * what the note says; those with `href` are links, reached by one Tab stop and the arrow keys.
     */
    bars: (svg, inner, scaleX, scaleY, bars) => {
      const group = s("g", { class: "bars" });
      const links = [];
      const marks = [];
      for (const bar of bars) {
        const x0 = scaleX(bar.from);
        const x1 = scaleX(bar.to);
        const y = bar.value > 0 ? Math.min(scaleY(bar.value), inner.bottom - 1) : inner.bottom;
        const gap = x1 - x0 > 4 ? 1 : 0;
        const mark = s("rect", {
          class: `bar ${bar.class ?? ""}`,
          x: round(x0),
          y: round(y),
          width: round(Math.max(0.5, x1 - x0 - gap)),
          height: round(inner.bottom - y),
        });
        marks.push({ x0, x1, mark, bar });
        if (!(bar.href && bar.value > 0)) {
          group.append(mark);
          continue;
        }
        const target = s("rect", {
          class: "target",
          x: round(x0),
          y: inner.top,
          width: round(x1 - x0),
          height: inner.bottom - inner.top,
        });
        const link = s("a", { href: bar.href, "aria-label": bar.label }, target, mark);
        link.addEventListener("focus", () => sae.tip.at(mark, bar.rows));
        link.addEventListener("blur", sae.tip.hide);
        links.push(link);
        group.append(link);
      }
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const x = event.clientX - box.left;
        const found = marks.find(({ x0, x1 }) => x >= x0 && x < x1);
        if (found?.bar.rows) sae.tip.at(found.mark, found.bar.rows);
        else sae.tip.hide();
      });
      svg.addEventListener("pointerleave", sae.tip.hide);
      if (links.length) sae.dom.roving(group, links);
      svg.append(group);
    },
  };
  sae.plot = plot;
}
