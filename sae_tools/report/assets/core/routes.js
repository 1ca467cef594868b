"use strict";
/** Addresses: everything that can be looked at has one, after the # of the page's own address. */
{
  const views = ["run", "spaces", "density", "features", "feature"];

  const routes = {
    views,

    /** {view, dictionary, feature, params} of an address; none is the run's page; `unknown` is said where there is no such page. */
    parse: (hash) => {
      const [path, query = ""] = hash.replace(/^#/, "").split("?", 2);
      const params = Object.fromEntries(new URLSearchParams(query));
      const [view, dictionary, feature] = path
        .split("/")
        .filter(Boolean)
        .map((part) => {
          try {
            return decodeURIComponent(part);
          } catch {
            return part;
          }
        });
      if (view === "feature" && dictionary && /^\d+$/.test(feature ?? ""))
        return { view, dictionary, feature: Number(feature), params };
      if (view && (view === "feature" || !views.includes(view)))
        return { view: "run", unknown: `#${path}`, params: {} };
      if (!view) return { view: "run", params };
      return { view, dictionary: params.d, params };
    },

    /** The address of a view with parameters; empty ones are left out. */
    to: (view, params = {}) => {
      const kept = Object.entries(params).filter(([, value]) => value != null && value !== "");
      const query = kept.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
      return `#/${view}${query ? `?${query}` : ""}`;
    },

    /** The address of a feature. */
    feature: (id, index) => `#/feature/${encodeURIComponent(id)}/${index}`,
  };
  sae.routes = routes;
}
