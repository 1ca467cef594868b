"use strict";
/** Elements without markup: everything is made by createElement and filled with text, so nothing in it can run. */
{
  const SVG = "http://www.w3.org/2000/svg";
  let serial = 0;
  let waiting = [];

  const fill = (element, attributes, children) => {
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (value == null || value === false) continue;
      if (key === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
      else if (key === "css")
        for (const [property, set] of Object.entries(value)) element.style.setProperty(property, set);
      else element.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child == null || child === false) continue;
      element.append(child);
    }
    return element;
  };

  const dom = {
    /** h("a", {href, class, on: {click}, css: {width}}, children…): an HTML element. Strings become text nodes. */
    h: (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children),

    /** The same for SVG. */
    s: (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children),

    /** An id that no other element has. */
    id: (stem = "id") => `${stem}-${++serial}`,

    /**
     * A number that comes from a blob: `of` is "panel.array", `index` the row in it, `data-value` the number unrounded.
     */
    value: (number, of, { index, format = sae.format.figures, text, tag = "span", ...rest } = {}) =>
      dom.h(
        tag,
        { class: "number", "data-value-of": of, "data-index": index, "data-value": String(number), ...rest },
        text ?? format(number),
      ),

    /**
     * Draws something that depends on the width it gets: `draw(width)` returns the new content of `element`. Called
     * when the element comes into the page, and again when its width or the theme changes.
     */
    responsive: (element, draw) => {
      let width = 0;
      let theme = "";
      const update = (now, force) => {
        if (!now || (!force && now === width && theme === sae.theme.now())) return;
        width = now;
        theme = sae.theme.now();
        const content = draw(width);
        if (content) element.replaceChildren(content);
      };
      const measure = () => Math.floor(element.clientWidth);
      element.redraw = () => element.isConnected && update(measure(), true);
      if (element.isConnected) update(measure());
      else waiting.push({ measure, then: update });
      new ResizeObserver(() => update(measure())).observe(element);
      return element;
    },

    /** Runs a function once the view being built stands in the page. */
    mounted: (then) => waiting.push({ measure: () => 0, then }),

    /** For the frame: the view stands in the page now. */
    settle: () => {
      const due = waiting;
      waiting = [];
      // All widths first: a page is laid out once then, and not once for every chart.
      const widths = due.map(({ measure }) => measure());
      due.forEach(({ then }, i) => then(widths[i]));
    },

    /** Says something to screen readers without moving the focus. */
    announce: (text) => {
      const region = document.querySelector("[data-testid=status]");
      if (region && region.textContent !== text) region.textContent = text;
    },

    /**
     * Makes several elements one stop of the Tab key, the arrow keys moving among them.
     * `elements` is an array; `at` the one that Tab reaches first.
     */
    roving: (container, elements, at = 0) => {
      elements.forEach((element, index) => element.setAttribute("tabindex", index === at ? "0" : "-1"));
      container.addEventListener("keydown", (event) => {
        const from = elements.indexOf(document.activeElement);
        if (from < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        const to = step ? from + step : { Home: 0, End: elements.length - 1 }[event.key];
        if (to == null) return;
        event.preventDefault();
        event.stopPropagation();
        const next = elements[Math.max(0, Math.min(elements.length - 1, to))];
        elements[from].setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    },
  };
  sae.dom = dom;
}
