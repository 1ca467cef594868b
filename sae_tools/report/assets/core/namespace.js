"use strict";
/**
 * The one global of the page. A file of `core/` adds a part to it, a file of `panels/` registers one panel:
 *
 *     sae.panel({id, view, title, render(root, ctx)})
 *
 * `view` is run, spaces, density, features or feature. `render` fills `root` and may be async; it asks for data with
 * `await ctx.blob(name)` (see blobs.js) and knows `ctx.meta`, `ctx.dictionary` (its entry in meta), `ctx.feature`
 * (index), `ctx.route`, `ctx.go(route)`. Optional: `column: "side"` puts the panel into the margin column, and
 * `quiet: true` keeps its title for screen readers only, and `when(ctx)` leaves it out where it answers false.
 */
{
  const sae = {
    /** All registered panels, in the order of the page's scripts. */
    panels: [],
    /** Measured times, newest last: {what, ms, at}. At most 2000 are kept. */
    timings: [],
  };

  /** Registers a panel. */
  sae.panel = (panel) => {
    sae.panels.push({ column: "main", when: () => true, ...panel });
  };

  /** The newest time of that name in milliseconds, or undefined. */
  sae.timings.last = (what) => sae.timings.findLast((entry) => entry.what === what)?.ms;

  /** Notes how long something took that began at `start` (performance.now()). Returns milliseconds. */
  sae.timed = (what, start) => {
    const ms = performance.now() - start;
    sae.timings.push({ what, ms, at: start });
    if (sae.timings.length > 2000) sae.timings.splice(0, 1000);
    return ms;
  };

  globalThis.sae = sae;
}
