"use strict";
/** Every feature of a dictionary, dead ones too: sorted, filtered and searched. */
{
  const { h } = sae.dom;
  const { format, figures, classes } = sae;
  const scrolled = new Map(); // address of a list → how far it was scrolled, for the way back

  const narrow = () => matchMedia("(max-width: 640px)").matches;

  const SHOWN = 3; // tokens of each kind in a row

  const columnsOf = (list, params) => {
    const { features, dictionary } = list;
    const { unit } = dictionary;
    const kinds = list.classesOf();
    const text = list.vocabulary.text;
    const number =
      (key, show = format.figures) =>
      (i) =>
        sae.dom.value(features[key][i], `features.${key}`, { index: String(i), format: show });
    const chips = (key) => (i) => {
      const ids = [...sae.blobs.row(features[key], i)].filter((id) => id !== sae.list.NONE && id < text.length);
      const hit = list.searches(key, params.in || undefined) ? list.tokensFor(params.q ?? "") : null;
      const first = Array.from(ids.slice(0, SHOWN), (_, rank) => rank);
      // The search looks at more than there is room for: what it found further down comes first, with its rank.
      const found = hit && !first.some((rank) => hit[ids[rank]]) ? ids.findIndex((id) => hit[id]) : -1;
      return (found < 0 ? first : [found, ...first.slice(0, -1)]).map((rank) => {
        const chip = sae.tokens.chip(text[ids[rank]], {
          "data-value-of": `features.${key}`,
          "data-value": String(ids[rank]),
          "data-index": String(i),
        });
        if (hit?.[ids[rank]]) chip.classList.add("found");
        return rank < SHOWN ? chip : [h("span", { class: "rank quiet number" }, `${rank + 1}.`), chip];
      });
    };
    const density = (i) => {
      const share = list.density(i);
      const length = share > 0 ? Math.max(0, 1 + Math.log10(share) / 6) : 0;
      return [
        h(
          "span",
          { class: "microbar", "aria-hidden": "true" },
          h("span", { class: `class-${classes.names[kinds[i]]}`, css: { width: `${length * 100}%` } }),
        ),
        sae.dom.value(share, "features.fires", { index: String(i), format: format.scientific }),
      ];
    };
    const columns = [
      {
        key: "id",
        title: "Feature",
        width: 76,
        kind: "right",
        about: "Number of the feature in its dictionary",
        cell: (i) => String(i),
      },
      {
        key: "density",
        title: "Density",
        width: 134,
        kind: "right",
        about: `Share of the ${format.integer(dictionary.tokens)} held-out tokens on which it is > 0; the bar is logarithmic from 1e-6 to 1`,
        cell: density,
      },
      {
        key: "class",
        title: "Class",
        width: 92,
        sortable: false,
        about: "Density class",
        cell: (i) => classes.badge(kinds[i]),
      },
      {
        key: "peak_token",
        title: "Tokens at peaks",
        width: 200,
        kind: "chips",
        about: "Commonest tokens at the peaks of its top contexts",
        cell: chips("peak_token"),
      },
      {
        key: "logit_top",
        title: "Logits up",
        width: 200,
        kind: "chips",
        about: "Tokens whose logits it raises most",
        cell: chips("logit_top"),
      },
      {
        key: "logit_bottom",
        title: "Logits down",
        width: 200,
        kind: "chips",
        about: "Tokens whose logits it lowers most",
        cell: chips("logit_bottom"),
      },
      {
        key: "maximum",
        title: "Max",
        width: 76,
        kind: "right",
        about: `Greatest activation on held-out text (${unit})`,
        cell: number("maximum"),
      },
      {
        key: "mean_active",
        title: "Mean",
        width: 76,
        kind: "right",
        about: `Mean activation where > 0 (${unit})`,
        cell: number("mean_active"),
      },
      {
        key: "projection",
        title: "Proj.",
        width: 76,
        kind: "right",
        about: "Encoder vector along the unit decoder vector",
        cell: number("projection", (x) => format.fixed(x, 3)),
      },
      {
        key: "b_enc",
        title: "Bias",
        width: 76,
        kind: "right",
        about: "Encoder bias",
        cell: number("b_enc", (x) => format.fixed(x, 3)),
      },
      {
        key: "best_match",
        title: "Match",
        width: 76,
        kind: "right",
        about: "Best correlation with a feature of another dictionary; –: none",
        cell: (i) => (features.best_match[i] > 0 ? number("best_match", (x) => format.fixed(x, 3))(i) : "–"),
      },
    ].filter(({ key }) => ["id", "density", "class"].includes(key) || features[key]);
    // On a phone what a feature is about comes first; the class can still be chosen above the table.
    if (narrow()) {
      columns.find(({ key }) => key === "id").width = 60;
      columns.find(({ key }) => key === "density").width = 84;
      columns.push(...columns.splice(2, 1));
    }
    return columns;
  };

  sae.head("features", (ctx) => [h("h1", { tabindex: "-1" }, "Features"), figures.dictionaries(ctx)]);

  sae.panel({
    id: "features",
    view: "features",
    title: "Table of features",
    quiet: true,
    render: async (root, ctx) => {
      const { dictionary, route } = ctx;
      const list = await sae.list.open(dictionary);
      list.vocabulary.ranks(); // the view may take this long, a click on a heading not
      const { params } = route;
      params.d ??= dictionary.id;
      const bounds = classes.bounds(dictionary);
      let counts = list.heldout;
      let where = "held-out text";
      if (params.w != null && params.w !== "" && dictionary.has_density) {
        const history = await sae.windows.open(dictionary, Math.max(1, Math.floor(Number(params.sum)) || 1));
        const w = Math.max(0, Math.min(history.count - 1, Math.floor(Number(params.w)) || 0));
        counts = history.of(w);
        where = sae.windows.name(history, w);
      }
      const kinds = classes.count(list.classesOf(counts));
      const total = h("p", { class: "count", "data-testid": "count" });
      const chips = h("span", { class: "chosen" });
      const table = sae.table.make({
        columns: columnsOf(list, params),
        label: `Features of ${dictionary.id}`,
        rowId: "features-row",
        href: (i) => sae.routes.feature(dictionary.id, i),
        onOpen: (i) => ctx.go(sae.routes.feature(dictionary.id, i)),
        onSort: (key) => {
          const sort = params.sort || "id";
          const natural = key === "id" || key.includes("token") || key.startsWith("logit_") ? "asc" : "desc";
          const dir =
            sort === key ? (params.dir === "desc" || (!params.dir && natural === "desc") ? "asc" : "desc") : natural;
          change({ sort: key, dir }, "sort");
        },
      });
      let announce = 0;

      const select = (what, top = 0) => {
        const start = performance.now();
        const rows = list.select(params, counts);
        table.update(rows, params.sort || "id", params.dir || "asc", top);
        sae.timed(what, start);
        const address = sae.routes.to("features", params);
        sae.list.current = { id: dictionary.id, rows, href: address, label: describe() };
        total.replaceChildren(
          h("b", { class: "number" }, format.integer(rows.length)),
          ` of ${format.integer(list.size)} features`,
        );
        clearTimeout(announce);
        announce = setTimeout(
          () => sae.dom.announce(`${format.count(rows.length, "feature")} of ${format.integer(list.size)} shown`),
          250,
        );
        showChosen();
      };
      const describe = () =>
        [
          params.class,
          params.min || params.max ? "density range" : "",
          params.q ? `“${params.q}”` : "",
          params.sort && params.sort !== "id" ? `by ${params.sort.replaceAll("_", " ")}` : "",
        ]
          .filter(Boolean)
          .join(", ") || "all";
      const change = (changes, what) => {
        ctx.replace(changes);
        select(what);
      };
      const showChosen = () => {
        const drop = (text, clear) =>
          h(
            "button",
            {
              type: "button",
              class: "drop",
              "aria-label": `Remove the filter: ${text}`,
              on: { click: () => ctx.go(sae.routes.to("features", { ...params, ...clear })) },
            },
            text,
            h("span", { "aria-hidden": "true" }, " ×"),
          );
        const found = [];
        if (params.min || params.max)
          found.push(
            drop(
              `density ${params.min ? format.scientific(Number(params.min), 1) : "0"} to ${params.max ? format.scientific(Number(params.max), 1) : "1"}`,
              { min: "", max: "" },
            ),
          );
        if (counts !== list.heldout)
          found.push(drop(`by ${where} (n\u202f=\u202f${format.integer(counts.tokens)})`, { w: "", sum: "" }));
        chips.replaceChildren(...found);
      };
      const search = h("input", {
        type: "search",
        id: sae.dom.id("search"),
        "data-testid": "search",
        placeholder: "token or number  (press /)",
        value: params.q ?? "",
        autocomplete: "off",
        spellcheck: "false",
        on: {
          input: () => change({ q: search.value }, "search"),
          keydown: (event) => {
            if (event.key === "Enter" || event.key === "ArrowDown") {
              event.preventDefault();
              table.element.querySelector("tbody a")?.focus();
            }
          },
        },
      });
      const scope = figures.choice(
        "in",
        [
          ["peak", "fires at"],
          ["top", "logits up"],
          ["bottom", "logits down"],
          ["all", "anywhere"],
        ].filter(([place]) => place === "peak" || list.features.logit_top),
        params.in || "peak",
        (value) => change({ in: value === "peak" ? "" : value }, "filter"),
      );
      const choice = (value, text, about) => {
        const id = sae.dom.id("class");
        const name = value || "all";
        return h(
          "span",
          { class: "choice" },
          h("input", {
            type: "radio",
            name: "class",
            id,
            value,
            checked: (params.class ?? "") === value,
            "data-testid": `class-${name}`,
            on: { change: () => change({ class: value }, "filter") },
          }),
          h(
            "label",
            { for: id, title: about },
            value ? h("span", { class: `swatch class-${value}`, "aria-hidden": "true" }) : null,
            text,
          ),
        );
      };
      const jump = (label, kind, id) =>
        h(
          "button",
          {
            type: "button",
            class: "tool",
            "data-testid": id,
            disabled: kind >= 0 && list.classesOf().indexOf(kind) < 0,
            on: {
              click: () => {
                const among = [];
                list.classesOf().forEach((one, i) => (kind < 0 || one === kind) && among.push(i));
                ctx.go(sae.routes.feature(dictionary.id, among[Math.floor(Math.random() * among.length)]));
              },
            },
          },
          label,
        );
      root.append(
        h(
          "div",
          { class: "controls", role: "search" },
          h("span", { class: "control" }, h("label", { for: search.id }, "Search"), search),
          scope,
          h(
            "span",
            { class: "buttons" },
            h("span", { class: "quiet" }, "Open a random one: "),
            jump("any", -1, "random"),
            jump("dead", 0, "random-dead"),
            jump("ultra-rare", 1, "random-ultra-rare"),
            jump("rare", 2, "random-rare"),
            jump("dense", 4, "random-dense"),
          ),
        ),
        h(
          "fieldset",
          { class: "classes" },
          h("legend", { class: "unseen" }, "Density class"),
          choice("", ["all ", h("span", { class: "quiet number" }, format.integer(list.size))], "All features"),
          classes.names.map((name, kind) =>
            choice(
              name,
              [`${name} `, h("span", { class: "quiet number" }, format.integer(kinds[kind]))],
              classes.definition(kind, bounds, counts.tokens),
            ),
          ),
        ),
        h("div", { class: "count-line" }, total, chips),
        table.element,
        h(
          "p",
          { class: "note" },
          `Density: share of the ${format.integer(dictionary.tokens)} held-out tokens on which a feature is > 0. Dead: on none of them, which bounds its density below ${format.scientific(3 / dictionary.tokens, 1)} (95\u202f%); ultra-rare below ${format.bound(bounds[0])}, rare below ${format.bound(bounds[1])}, dense above ${format.bound(bounds[2])}. Activations in ${dictionary.unit}. `,
          "Max and Mean: greatest activation, and the mean of those > 0. Proj.: encoder vector along the unit decoder vector. Bias: the encoder's. Match: best correlation with a feature of another dictionary, – for none. The bar beside a density is logarithmic, from 10⁻⁶ to 1. ",
          `A search looks at the ${SHOWN} commonest tokens at the peaks, or at all ${list.features.logit_top?.shape[1] ?? 0} tokens whose logits go up or down most; one further down than the ${SHOWN} shown comes first, with its rank. Quotes ask for the very token, case and leading space included ("def" is not " def"); · or a space is a space, ⏎ or \\n a newline, → or \\t a tab. `,
          "Click a heading to sort, again to turn the order round.",
        ),
      );
      const key = sae.routes.to("features", params);
      const back = history.state?.visited ? (scrolled.get(key) ?? 0) : 0;
      select("first");
      list.warm();
      if (back) sae.dom.mounted(() => select("first", back));
      table.element.addEventListener("scroll", () => scrolled.set(sae.routes.to("features", params), table.top()), {
        passive: true,
      });
    },
  });
}
