"use strict";
/** Every feature as a point: density, bias, encoder–decoder projection and their like against each other. */
{
  const { h } = sae.dom;
  const { plot, scales, format, figures, classes } = sae;

  const measures = {
    density: "density (held out)",
    b_enc: "encoder bias",
    projection: "encoder–decoder projection",
    cosine: "encoder–decoder cosine",
    maximum: "maximum activation",
    mean_active: "mean activation when active",
    logit_norm: "norm of the logit weights",
    decoder_norm: "decoder norm",
    best_match: "best match elsewhere (correlation)",
  };
  const logarithmic = new Set(["density", "maximum", "mean_active"]);

  sae.panel({
    id: "scatter",
    view: "density",
    title: "Density against what the weights say",
    render: async (root, ctx) => {
      const { dictionary } = ctx;
      const list = await sae.list.open(dictionary);
      const { features } = list;
      const sort = features.projection ? "projection" : "b_enc";
      const there = Object.keys(measures).filter((key) => key === "density" || features[key]);
      const chosen = { x: "density", y: "b_enc", c: features.projection ? sort : "class" };
      for (const axis of ["x", "y", "c"])
        if (there.includes(ctx.route.params[axis]) || ctx.route.params[axis] === "class")
          chosen[axis] = ctx.route.params[axis];
      const kinds = list.classesOf();
      const valuesOf = (key) => {
        if (key !== "density") return features[key];
        const out = new Float32Array(list.size);
        for (let i = 0; i < out.length; i++) out[i] = list.density(i);
        return out;
      };
      const body = h("div", { class: "responsive chart-420 over", "data-testid": "scatter" });
      const draw = (width) => {
        const height = 420;
        const [xv, yv] = [valuesOf(chosen.x), valuesOf(chosen.y)];
        const { svg, inner } = plot.frame(width, height, {
          left: 48,
          right: 10,
          top: 26,
          bottom: 36,
          label: `Scatter plot of ${list.size} features: ${measures[chosen.x]} across, ${measures[chosen.y]} upwards`,
        });
        const gutter = 16; // where a logarithm has no place: zero
        const axis = (values, key, low, high) => {
          if (!logarithmic.has(key)) {
            const [a, b] = scales.extent(values);
            const pad = (b - a) * 0.03 || 0.5;
            return [scales.linear([a - pad, b + pad], [low, high]), null];
          }
          const positive = values.filter((x) => x > 0);
          const [a, b] = scales.extent(positive.length ? positive : [0.1, 1]);
          const inside = low + Math.sign(high - low) * gutter;
          return [scales.log([a * 0.8, b * 1.25], [inside, high]), low + Math.sign(high - low) * gutter * 0.35];
        };
        const [x, zeroX] = axis(xv, chosen.x, inner.left, inner.right);
        const [y, zeroY] = axis(yv, chosen.y, inner.bottom, inner.top);
        plot.axisY(svg, inner, y, { title: measures[chosen.y] });
        plot.axisX(svg, inner, x, { title: measures[chosen.x] });
        const jitter = (i) => (((i * 2654435761) >>> 0) / 2 ** 32 - 0.5) * gutter * 0.6;
        const xs = new Float32Array(list.size);
        const ys = new Float32Array(list.size);
        for (let i = 0; i < list.size; i++) {
          xs[i] = zeroX != null && !(xv[i] > 0) ? zeroX + jitter(i) : x(xv[i]);
          ys[i] = zeroY != null && !(yv[i] > 0) ? zeroY + jitter(i) : y(yv[i]);
        }
        const [canvas, context] = sae.canvas.make(width, height, "");
        canvas.setAttribute("aria-hidden", "true");
        canvas.removeAttribute("role");
        let colours;
        if (chosen.c === "class") {
          const ink = classes.names.map((name) => sae.theme.color(`--class-${name}`));
          colours = (i) => ink[kinds[i]];
        } else {
          const cv = valuesOf(chosen.c);
          const sorted = Float32Array.from(cv)
            .filter((value) => !Number.isNaN(value))
            .sort();
          const log = logarithmic.has(chosen.c);
          const low = sorted[Math.floor(sorted.length * 0.01)] ?? 0;
          const high = sorted[Math.floor(sorted.length * 0.99)] ?? 1;
          const viridis = scales.viridis();
          const steps = Array.from({ length: 64 }, (_, k) => `rgb(${viridis(k / 63).join(" ")})`);
          const floor = sorted.find((value) => value > 0) ?? 1;
          const map = log
            ? (value) => Math.log(Math.max(value, floor) / floor) / Math.log(Math.max(high, floor * 10) / floor)
            : (value) => (value - low) / (high - low || 1);
          colours = (i) => steps[Math.max(0, Math.min(63, Math.round(map(cv[i]) * 63) || 0))];
          legend.replaceChildren(
            measures[chosen.c],
            ": ",
            h("span", { class: "number" }, format.figures(log ? floor : low, 2)),
            h("span", {
              class: "ramp",
              css: { background: `linear-gradient(to right, ${steps.filter((_, k) => k % 9 === 0).join(", ")})` },
            }),
            h("span", { class: "number" }, format.figures(high, 2)),
          );
        }
        if (chosen.c === "class")
          legend.replaceChildren(
            ...classes.names.map((name) =>
              h("span", { class: "legend-item" }, h("span", { class: `swatch class-${name}` }), name),
            ),
          );
        const size = list.size > 20_000 ? 1.6 : list.size > 5000 ? 2.2 : 3;
        const near = sae.canvas.points(context, {
          xs,
          ys,
          colours,
          size,
          alpha: list.size > 20_000 ? 0.55 : 0.75,
          area: inner,
        });
        const find = (event) => {
          const box = svg.getBoundingClientRect();
          return near(event.clientX - box.left, event.clientY - box.top);
        };
        svg.addEventListener("pointermove", (event) => {
          const i = find(event);
          svg.classList.toggle("pointing", i >= 0);
          if (i < 0) return sae.tip.hide();
          const box = svg.getBoundingClientRect();
          const extra = [chosen.x, chosen.y, chosen.c].filter(
            (key, at, all) => key !== "class" && all.indexOf(key) === at,
          );
          sae.tip.show(
            [
              `feature ${i}, ${classes.names[kinds[i]]}`,
              ...extra.map((key) => [measures[key], format.figures(valuesOf(key)[i])]),
            ],
            box.left + xs[i],
            box.top + ys[i],
          );
        });
        svg.addEventListener("pointerleave", sae.tip.hide);
        svg.addEventListener("click", (event) => {
          const i = find(event);
          if (i >= 0) ctx.go(sae.routes.feature(dictionary.id, i));
        });
        const content = document.createDocumentFragment();
        content.append(canvas, svg);
        return content;
      };
      const legend = h("div", { class: "legend" });
      sae.dom.responsive(body, draw);
      const options = there.map((key) => [key, measures[key]]);
      const pick = (axis) => (value) => {
        chosen[axis] = value;
        ctx.replace({ d: dictionary.id, [axis]: value });
        body.redraw();
      };
      root.append(
        h(
          "div",
          { class: "controls" },
          figures.choice("across", options, chosen.x, pick("x")),
          figures.choice("upwards", options, chosen.y, pick("y")),
          figures.choice("colour", [...options, ["class", "density class"]], chosen.c, pick("c")),
        ),
        figures.figure({
          body: h("div", {}, body, legend),
          caption: [
            h("b", {}, `All ${format.integer(list.size)} features. `),
            "Density: share of the held-out tokens on which the feature is > 0; those that never fired stand in the strip beside the axis. Projection: encoder vector along the unit decoder vector, b_enc the encoder's bias, both in the dictionary's own space. ",
            "Features of very low density that are artefacts of training tend to part from the rest here. Point to one for its number, click to open it; ",
            h(
              "a",
              { href: sae.routes.to("features", { d: dictionary.id, sort, dir: "desc" }) },
              "the table",
            ),
            " sorts by the same figures.",
          ],
        }),
      );
    },
  });
}
