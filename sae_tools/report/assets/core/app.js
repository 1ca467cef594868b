"use strict";
/** The frame: header, the view that the address names, and the way from one to the next. */
{
  const { h } = sae.dom;
  const titles = { run: "Run", spaces: "Spaces", density: "Density", features: "Features" };
  const heads = new Map();
  let generation = 0;
  let shown = null; // ctx of the view in the page
  let main = null;
  let meta = null;

  /** A view's own heading: `head(view, (ctx) => nodes)`; it holds the h1. */
  sae.head = (view, build) => heads.set(view, build);

  const defaultHead = (ctx) => [h("h1", { tabindex: "-1" }, titles[ctx.route.view])];

  const context = (route) => {
    const dictionary = meta.dictionaries.find((one) => one.id === route.dictionary) ?? meta.dictionaries[0];
    const ctx = {
      meta,
      route,
      dictionary,
      feature: route.feature,
      corpus: meta.corpora[dictionary.corpus],
      blob: sae.blobs.get,
      go: (to) => go(to),
      /** Changes parameters of the address without drawing the view again. */
      replace: (params) => {
        Object.assign(route.params, params);
        history.replaceState(history.state, "", sae.routes.to(route.view, route.params));
      },
      /** Whether the reader is still looking at this view. */
      current: () => shown === ctx,
    };
    return ctx;
  };

  const section = (panel, ctx) => {
    const id = sae.dom.id("panel");
    const body = h("div", { class: "body" });
    const root = h(
      "section",
      { class: `panel panel-${panel.id}`, "data-testid": `panel-${panel.id}`, "aria-labelledby": id },
      h("h2", { id, class: panel.quiet ? "unseen" : null }, panel.title),
      body,
    );
    const done = (async () => {
      try {
        await panel.render(body, ctx);
      } catch (error) {
        console.error(error);
        body.replaceChildren(sae.figures.nothing(`This part could not be drawn: ${error.message}`));
      }
    })();
    return { root, done };
  };

  const missing = (route) => {
    if (route.unknown) return `This report has no page at ${route.unknown}.`;
    if (!route.dictionary) return null;
    const dictionary = meta.dictionaries.find((one) => one.id === route.dictionary);
    if (!dictionary) return `This report has no dictionary named ${route.dictionary}.`;
    if (route.view === "feature" && route.feature >= dictionary.d_sae) {
      return `${dictionary.id} has the features 0 to ${dictionary.d_sae - 1}, and none numbered ${route.feature}.`;
    }
    return null;
  };

  const build = async (ctx) => {
    const { view } = ctx.route;
    const element = h("div", { class: `view view-${view}`, "data-testid": `view-${view}` });
    const wrong = missing(ctx.route);
    if (wrong) {
      element.append(h("div", { class: "head" }, h("h1", { tabindex: "-1" }, "Not here")), sae.figures.nothing(wrong));
      ctx.wrong = true;
      return element;
    }
    const panels = sae.panels
      .filter((panel) => panel.view === view && panel.when(ctx))
      .map((panel) => ({ panel, ...section(panel, ctx) }));
    const head = h("div", { class: "head" }, await (heads.get(view) ?? defaultHead)(ctx));
    await Promise.all(panels.map(({ done }) => done));
    const column = (name) => panels.filter(({ panel }) => panel.column === name).map(({ root }) => root);
    element.append(
      head,
      h(
        "div",
        { class: "columns" },
        column("top").length ? h("div", { class: "top" }, column("top")) : null,
        h("div", { class: "main" }, column("main")),
        column("side").length ? h("div", { class: "side" }, column("side")) : null,
      ),
    );
    return element;
  };

  const titleOf = ({ route, dictionary, wrong }) => {
    if (wrong) return `Not here · ${meta.title}`;
    const here = route.view === "feature" ? `Feature ${route.feature} · ${dictionary.id}` : titles[route.view];
    return `${here} · ${meta.title}`;
  };

  /** Draws the view of the present address. `way`: first, go, back or flip. */
  const render = async (way) => {
    const start = performance.now();
    const turn = ++generation;
    const busy = setTimeout(() => main.setAttribute("aria-busy", "true"), 150);
    const ctx = context(sae.routes.parse(location.hash));
    const element = await build(ctx);
    clearTimeout(busy);
    if (turn !== generation) return;
    const focusKey = main.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
    const same = shown?.route.view === ctx.route.view;
    shown = ctx;
    sae.tip.hide();
    main.removeAttribute("aria-busy");
    main.replaceChildren(element);
    sae.dom.settle();
    document.title = titleOf(ctx);
    for (const link of document.querySelectorAll(".views a")) {
      const to = link.dataset.view;
      if (ctx.wrong) link.removeAttribute("aria-current");
      else if (to === ctx.route.view || (to === "features" && ctx.route.view === "feature"))
        link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (way === "back") scrollTo(0, history.state?.scroll ?? 0);
    else if (!(same && (way === "flip" || ctx.route.view === "density"))) scrollTo(0, 0);
    const kept = focusKey && element.querySelector(`[data-keep="${focusKey}"]`);
    if (kept) kept.focus({ preventScroll: true });
    else if (way === "flip") sae.dom.announce(titleOf(ctx));
    else if (way !== "first") element.querySelector("h1")?.focus({ preventScroll: true });
    sae.timed(way === "flip" ? "flip" : "view", start);
    if (way === "first") document.documentElement.dataset.ready = "1";
    prefetch(ctx);
  };

  const prefetch = (ctx) => {
    if (ctx.wrong || ctx.route.view !== "feature") return;
    const { before, after } = sae.list.around(ctx.dictionary, ctx.feature);
    const later = globalThis.requestIdleCallback ?? ((then) => setTimeout(then, 30));
    for (const index of [after, before]) {
      if (index != null)
        later(() => sae.blobs.get(`features/${ctx.dictionary.id}/${Math.floor(index / meta.chunk)}`).catch(() => {}));
    }
  };

  const remember = () => history.replaceState({ scroll: scrollY, visited: true }, "");

  const go = (to, way = "go") => {
    remember();
    history.pushState({ scroll: 0 }, "", to);
    return render(way);
  };

  const actions = {
    flip: (step) => {
      if (shown?.route.view !== "feature" || shown.wrong) return false;
      const { before, after } = sae.list.around(shown.dictionary, shown.feature);
      const to = step < 0 ? before : after;
      if (to == null) return false;
      go(sae.routes.feature(shown.dictionary.id, to), "flip");
      return true;
    },
    search: async () => {
      if (shown.route.view !== "features") await go(sae.routes.to("features", { d: shown.dictionary.id }));
      document.querySelector("[data-testid=search]")?.focus();
    },
    random: () =>
      go(
        sae.routes.feature(shown.dictionary.id, Math.floor(Math.random() * shown.dictionary.d_sae)),
        shown.route.view === "feature" ? "flip" : "go",
      ),
    leave: () => document.activeElement?.blur?.(),
  };
  sae.actions = actions;

  const start = async () => {
    const root = document.getElementById("sae") ?? document.body.appendChild(h("div", { id: "sae" }));
    ({ meta } = await sae.blobs.get("report"));
    const themeButton = h("button", { type: "button", class: "tool", on: { click: sae.theme.toggle } });
    const nameTheme = () => {
      const other = sae.theme.now() === "dark" ? "Light" : "Dark";
      themeButton.textContent = other;
      themeButton.setAttribute("aria-label", `${other} theme`);
      for (const element of document.querySelectorAll(".responsive")) element.redraw?.();
    };
    sae.theme.onChange(nameTheme);
    nameTheme();
    main = h("main", { id: "main" });
    root.append(
      h(
        "a",
        {
          class: "skip",
          href: "#main",
          on: {
            click: (event) => {
              event.preventDefault();
              main.querySelector("h1")?.focus();
            },
          },
        },
        "Skip to content",
      ),
      h(
        "header",
        { class: "bar" },
        h("a", { class: "brand", href: "#/run" }, meta.title),
        h(
          "nav",
          { class: "views", "aria-label": "Views" },
          Object.entries(titles).map(([view, title]) => h("a", { href: `#/${view}`, "data-view": view }, title)),
        ),
        h(
          "div",
          { class: "tools" },
          themeButton,
          h("button", { type: "button", class: "tool", "aria-label": "Keys", on: { click: sae.keys.help } }, "?"),
        ),
      ),
      main,
      h("footer", {}, `sae_tools ${meta.version ?? ""} · made ${String(meta.created ?? "").slice(0, 10)}`),
      h("div", { class: "unseen", role: "status", "aria-live": "polite", "data-testid": "status" }),
    );
    history.scrollRestoration = "manual";
    addEventListener("hashchange", () => {
      // Entries that were drawn before carry a state; a link's new one has none yet.
      const back = history.state != null;
      if (!back) history.replaceState({ scroll: 0 }, "");
      render(back ? "back" : "go");
    });
    addEventListener(
      "click",
      (event) => {
        if (event.target.closest?.("a[href^='#/']")) remember();
      },
      true,
    );
    sae.keys.listen(actions);
    if (!history.state) history.replaceState({ scroll: 0 }, "");
    await render("first");
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();
}
