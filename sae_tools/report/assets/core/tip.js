"use strict";
/** One small note beside the pointer or the focused element, with the figures of what is under it. */
{
  const { h } = sae.dom;
  let box = null;

  const place = (x, y) => {
    const width = box.offsetWidth;
    const height = box.offsetHeight;
    const left = Math.max(6, Math.min(innerWidth - width - 6, x - width / 2));
    const top = y - height - 12 > 4 ? y - height - 12 : y + 20;
    box.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  };

  const tip = {
    /**
     * Shows rows [[label, value], …] or plain strings at a point of the window. The same is said by `tip.speak`, since
     * the note itself is for the eye.
     */
    show: (rows, x, y) => {
      if (!box) {
        box = h("div", { class: "tip", "data-testid": "tip", "aria-hidden": "true" });
        document.body.append(box);
      }
      box.replaceChildren(
        ...rows.map((row) =>
          Array.isArray(row)
            ? h("div", { class: "tip-row" }, h("span", {}, row[0]), h("b", {}, row[1]))
            : h("div", { class: "tip-title" }, row),
        ),
      );
      box.hidden = false;
      place(x, y);
    },

    /** Shows it above an element. */
    at: (element, rows) => {
      // Of something that goes over several lines, the first.
      const { left, top, width } = element.getClientRects()[0] ?? element.getBoundingClientRect();
      tip.show(rows, left + width / 2, top);
    },

    hide: () => {
      if (box) box.hidden = true;
    },

    /** Whether it can be seen. */
    shown: () => Boolean(box && !box.hidden),

    /** The same rows as one sentence, for screen readers. */
    speak: (rows) => sae.dom.announce(rows.map((row) => (Array.isArray(row) ? `${row[0]} ${row[1]}` : row)).join(", ")),
  };
  addEventListener("scroll", () => tip.hide(), { passive: true, capture: true });
  sae.tip = tip;
}
