"use strict";
/** Where a feature fires: its strongest contexts and a few from each of eleven even intervals down to the weakest. */
{
  const { h } = sae.dom;
  const { format, figures, blobs } = sae;
  let breaks = false;
  let byPointer = false;
  addEventListener("pointerdown", () => (byPointer = true), true);
  addEventListener("keydown", () => (byPointer = false), true);

  /** Where each example's part of the arrays begins, from how many values each has; made once per chunk. */
  const starts = (contexts, name) =>
    (contexts[`${name}_start`] ??= contexts[`${name}_count`].reduce(
      (found, n, e) => {
        found[e + 1] = found[e] + n;
        return found;
      },
      new Uint32Array(contexts[`${name}_count`].length + 1),
    ));

  /** One context as data: tokens with activation and effect by their place in the window. */
  const read = (chunk, corpus, meta, e, feature) => {
    const { contexts } = chunk;
    const [, length] = corpus.tokens.shape;
    const flat = contexts.example_token[e];
    const context = Math.floor(flat / length);
    const position = flat % length;
    const first = Math.max(0, position - meta.before);
    const last = Math.min(length, position + meta.after + 1);
    const values = new Float64Array(last - first);
    const effects = new Float64Array(last - first);
    const maximum = chunk.activations.maximum[feature];
    const window = starts(contexts, "window");
    for (let k = window[e]; k < window[e + 1]; k++)
      values[contexts.window_offset[k]] = (contexts.window_value[k] / 65535) * maximum;
    const scale = contexts.effect_scale?.[feature] ?? 0;
    const measured = Boolean(contexts.effect_measured?.[e]);
    const effect = starts(contexts, "effect");
    if (measured)
      for (let k = effect[e]; k < effect[e + 1]; k++)
        effects[contexts.effect_offset[k]] = (contexts.effect_value[k] / 32767) * scale;
    return {
      e,
      context,
      position,
      first,
      ids: corpus.tokens.subarray(context * length + first, context * length + last),
      documents: corpus.document?.subarray(context * length + first, context * length + last),
      values,
      effects,
      measured,
      peak: position - first,
      value: contexts.example_value[e],
      maximum,
      scale,
      cut: last < length,
    };
  };

  /** Borders of the three thicknesses of an underline, as shares of the feature's largest effect. */
  const [thin, thick] = [0.15, 0.5];
  const thickness = (share) => (share > thick ? 3 : share > thin ? 2 : 1);

  const describe = (example, at, vocabulary) => {
    const rows = [
      sae.tokens.label(vocabulary[example.ids[at]] ?? "?"),
      ["activation", format.figures(example.values[at])],
    ];
    if (example.measured)
      rows.push([
        "effect of ablating",
        example.effects[at] === 0 ? "0 nats" : `${format.signed(example.effects[at], 4)} nats`,
      ]);
    rows.push(["position", `${example.first + at} of context ${example.context}`]);
    if (example.documents) rows.push(["document", format.integer(example.documents[at])]);
    return rows;
  };

  const draw = (example, vocabulary, number) => {
    const spans = [];
    const line = h("div", { class: "tokens" });
    example.ids.forEach((id, at) => {
      const text = vocabulary[id] ?? `⟨token ${id}⟩`;
      const value = example.values[at];
      const effect = example.effects[at];
      const broken = breaks && text.includes("\n");
      const span = sae.tokens.into(document.createElement("span"), text, broken);
      span.className = broken ? "token broken" : "token";
      if (value > 0) {
        span.classList.add("hot");
        span.style.setProperty("--a", (0.12 + 0.88 * Math.min(1, value / example.maximum)).toFixed(3));
        span.dataset.valueOf = "contexts.window_value";
        span.dataset.value = String(value);
      }
      if (Math.abs(effect) >= 0.001) {
        span.classList.add(effect > 0 ? "helps" : "hurts", `u${thickness(Math.abs(effect) / example.scale)}`);
        span.dataset.effect = String(effect);
      }
      if (at === example.peak) span.classList.add("peak");
      spans.push(span);
      line.append(span);
    });
    if (example.first > 0) line.prepend(h("span", { class: "cut", "aria-hidden": "true" }, "…"));
    if (example.cut) line.append(h("span", { class: "cut", "aria-hidden": "true" }, "…"));
    const plain = Array.from(example.ids, (id) => vocabulary[id] ?? "?");
    const row = h(
      "div",
      {
        class: "context",
        tabindex: "0",
        role: "group",
        "data-testid": "context",
        "data-index": String(example.e),
        "aria-label": `Context ${number}, peak ${format.figures(example.value)} at ${sae.tokens.label(plain[example.peak] ?? "")}`,
      },
      sae.dom.value(example.value, "contexts.example_value", {
        index: String(example.e),
        format: format.figures,
        title: `peak at position ${example.position} of context ${example.context}${example.documents ? `, document ${format.integer(example.documents[example.peak])}` : ""}`,
      }),
      line,
    );

    let at = example.peak;
    const point = (next, quiet) => {
      spans[at].classList.remove("under");
      at = Math.max(0, Math.min(spans.length - 1, next));
      spans[at].classList.add("under");
      const rows = describe(example, at, vocabulary);
      sae.tip.at(spans[at], rows);
      if (!quiet) sae.tip.speak(rows);
    };
    const leave = () => {
      spans[at].classList.remove("under");
      sae.tip.hide();
    };
    const keydown = (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
      // After a click the arrows still turn the page; only a context reached by the keyboard takes them.
      if (to == null || event.altKey || event.ctrlKey || event.metaKey || !spans[at].classList.contains("under"))
        return;
      event.preventDefault();
      event.stopPropagation();
      point(to);
    };
    return {
      row,
      keydown,
      blur: leave,
      focus: () => byPointer || point(example.peak, true),
      hover: (span) => sae.tip.at(span, describe(example, spans.indexOf(span), vocabulary)),
    };
  };

  sae.panel({
    id: "contexts",
    view: "feature",
    title: "Contexts",
    render: async (root, ctx) => {
      const { dictionary, feature } = ctx;
      const [chunk, { corpus }] = await Promise.all([
        ctx.blob(`features/${dictionary.id}/${Math.floor(feature / ctx.meta.chunk)}`),
        ctx.blob(`corpus/${dictionary.corpus}`),
      ]);
      const inside = feature % ctx.meta.chunk;
      const { contexts } = chunk;
      const [from, to] = [contexts.example_start[inside], contexts.example_start[inside + 1]];
      if (from === to) {
        return root.append(
          figures.nothing(
            `There are none: it fired on none of the ${format.integer(dictionary.tokens)} tokens that were read.`,
          ),
        );
      }
      const intervals = ctx.corpus.intervals;
      const maximum = chunk.activations.maximum[inside];
      // One listener for all contexts: a page has some thousand tokens, and has to turn quickly.
      const shown = new Map();
      const of = (event) => shown.get(event.target.closest?.(".context"));
      const holder = h("div", {
        class: "groups",
        on: {
          focusin: (event) => of(event)?.focus(),
          focusout: (event) => of(event)?.blur(),
          keydown: (event) => of(event)?.keydown(event),
          pointerover: (event) => {
            const span = event.target.closest?.(".token");
            if (span) of(event)?.hover(span);
            else sae.tip.hide();
          },
          pointerleave: () => sae.tip.hide(),
        },
      });
      const fill = () => {
        const groups = [];
        shown.clear();
        let number = 0;
        for (let e = from; e < to; e++) {
          const group = contexts.example_group[e];
          if (groups.at(-1)?.group !== group) groups.push({ group, rows: [] });
          const context = draw(read(chunk, corpus, ctx.corpus, e, inside), corpus.vocabulary, ++number);
          shown.set(context.row, context);
          groups.at(-1).rows.push(context.row);
        }
        const met = new Set(groups.map(({ group }) => group));
        const empty = Array.from({ length: intervals }, (_, k) => k + 1).filter((k) => !met.has(k));
        holder.replaceChildren(
          ...groups.map(({ group, rows }) =>
            h(
              "div",
              { class: `group ${group ? "" : "top-group"}` },
              h(
                "h3",
                {},
                group === 0
                  ? "Strongest"
                  : `${format.figures(((group - 1) / intervals) * maximum, 3)} to ${format.figures((group / intervals) * maximum, 3)}`,
                group === 0 ? null : h("small", {}, `interval ${group} of ${intervals}`),
              ),
              rows,
            ),
          ),
          ...(empty.length
            ? [
                h(
                  "p",
                  { class: "quiet empty-intervals" },
                  `no tokens in ${empty.length === 1 ? "interval" : "intervals"} ${empty.join(", ")}`,
                ),
              ]
            : []),
        );
      };
      fill();
      const id = sae.dom.id("breaks");
      const largest = contexts.effect_scale?.[inside] ?? 0;
      const measured = contexts.effect_measured?.subarray(from, to).some((one) => one);
      // What is drawn: effects below 0.001 nats are not, so there may be nothing to explain.
      const underlined = measured && largest >= 0.001;
      const ramp = h(
        "span",
        { class: "token-ramp", "aria-hidden": "true" },
        [0.12, 0.34, 0.56, 0.78, 1].map((a) => h("span", { class: "token hot", css: { "--a": String(a) } }, "\u2003")),
      );
      root.append(
        h(
          "div",
          { class: "controls tight" },
          h("span", { class: "legend" }, "activation 0", ramp, h("span", { class: "number" }, format.figures(maximum))),
          underlined
            ? h(
                "span",
                { class: "legend" },
                "ablating it: ",
                h("span", { class: "token helps u2" }, "worse (it helped)"),
                " ",
                h("span", { class: "token hurts u2" }, "better (it hurt)"),
                h("span", { class: "unseen" }, "; thickness: "),
                [
                  [1, `up to ${format.figures(thin * largest, 2)}`],
                  [2, `to ${format.figures(thick * largest, 2)}`],
                  [3, `to ${format.figures(largest, 2)} nats`],
                ].map(([level, text]) => h("span", { class: `token helps u${level} number` }, text)),
              )
            : null,
          h(
            "span",
            { class: "control" },
            h("input", {
              type: "checkbox",
              id,
              checked: breaks,
              "data-testid": "breaks",
              on: {
                change: (event) => {
                  breaks = event.target.checked;
                  fill();
                },
              },
            }),
            h("label", { for: id }, "line breaks"),
          ),
        ),
        holder,
        h(
          "p",
          { class: "note" },
          `Ground: the feature's activation, from 0 to its maximum ${format.figures(maximum)} over ${format.integer(dictionary.tokens)} held-out tokens (${dictionary.unit}); the peak is ringed, its value at the left. `,
          `Strongest: one peak per context, best first. Below: tokens drawn at random from each of ${intervals} even intervals of (0, maximum]. `,
          measured
            ? "Underline: change of the loss at that token, −log p in nats, when the feature is taken away everywhere in the context and the dictionary's error is kept; solid blue where the loss rises (the feature helped), dotted red where it falls (it hurt); below 0.001 nats none. "
            : "",
          underlined
            ? `Its thickness grows with the effect relative to this feature's largest, ${format.figures(largest)} nats: thin up to ${thin * 100}\u202f% of it, thick above ${thick * 100}\u202f%. `
            : "",
          "A loss stands under the token that is predicted. · is a space, ⏎ a newline, → a tab.",
        ),
      );
    },
  });
}
