"use strict";
/**
 * A table of any number of rows of which only those in sight exist as elements. It stays a table for screen readers:
 * real rows with their true numbers, headers that sort, one Tab stop for the rows and arrow keys among them.
 */
{
  const { h } = sae.dom;
  const ROW = 30;
  const SPARE = 6;

  /**
   * `columns`: [{key, title, about, width, kind, sortable, cell(row) → node or text}]; `href(row)` the page of a row;
   * `onSort(key)`; `rowId` the data-testid of rows. Answers {element, update(rows, sort, dir), top, scrollTo(pixels)}.
   */
  const make = ({ columns, label, href, onSort, onOpen, rowId }) => {
    let rows = new Uint32Array(0);
    let first = -1;
    let last = -1;
    let active = 0; // the row that Tab reaches
    // Asking the page for these would lay it out anew each time.
    let height = 600;
    let scroll = 0;
    const heads = columns.map((column) => {
      const inside =
        column.sortable === false
          ? column.title
          : h(
              "button",
              { type: "button", class: "sort", on: { click: () => onSort(column.key) } },
              column.title,
              h("span", { class: "arrow", "aria-hidden": "true" }),
            );
      return h(
        "th",
        { scope: "col", class: column.kind ?? "", title: column.about, "data-column": column.key },
        inside,
      );
    });
    const body = h("tbody", {});
    const table = h(
      "table",
      {
        class: "virtual",
        "aria-label": label,
        css: { "min-width": `${columns.reduce((sum, c) => sum + c.width, 0)}px` },
      },
      h(
        "colgroup",
        {},
        columns.map((column) => h("col", { css: { width: `${column.width}px` } })),
      ),
      h("thead", {}, h("tr", { "aria-rowindex": "1" }, heads)),
      body,
    );
    const element = h("div", { class: "table-scroll" }, table);

    const spacer = (height) =>
      h(
        "tr",
        { class: "spacer", "aria-hidden": "true" },
        h("td", { colspan: String(columns.length), css: { height: `${height}px` } }),
      );

    const makeRow = (at) => {
      const row = rows[at];
      const cells = columns.map((column, c) => {
        const content = column.cell(row);
        if (c > 0) return h("td", { class: column.kind ?? "" }, content);
        return h(
          "th",
          { scope: "row", class: column.kind ?? "" },
          h("a", { href: href(row), tabindex: at === active ? "0" : "-1", "data-at": String(at) }, content),
        );
      });
      return h(
        "tr",
        { "aria-rowindex": String(at + 2), "data-testid": rowId, "data-row": String(row), class: at % 2 ? "odd" : "" },
        cells,
      );
    };

    const draw = (force) => {
      const top = Math.max(0, Math.min(rows.length - 1, Math.floor(scroll / ROW)));
      const bottom = Math.min(rows.length, top + Math.ceil(height / ROW) + 1);
      if (!force && top >= first && bottom <= last) return;
      const from = Math.max(0, top - SPARE);
      const to = Math.min(rows.length, bottom + SPARE);
      const focused =
        document.activeElement?.closest?.("tr")?.parentNode === body ? document.activeElement.dataset.at : null;
      [first, last] = [from, to];
      const shown = [];
      if (from > 0) shown.push(spacer(from * ROW));
      for (let at = from; at < to; at++) shown.push(makeRow(at));
      if (to < rows.length) shown.push(spacer((rows.length - to) * ROW));
      if (!rows.length)
        shown.push(
          h(
            "tr",
            { class: "nothing" },
            h("td", { colspan: String(columns.length) }, "No feature passes these filters."),
          ),
        );
      body.replaceChildren(...shown);
      if (focused != null) body.querySelector(`a[data-at="${focused}"]`)?.focus({ preventScroll: true });
    };
    element.addEventListener(
      "scroll",
      () => {
        scroll = element.scrollTop;
        draw(false);
      },
      { passive: true },
    );
    new ResizeObserver(() => {
      height = element.clientHeight;
      draw(false);
    }).observe(element);

    const moveTo = (at) => {
      active = Math.max(0, Math.min(rows.length - 1, at));
      const top = active * ROW;
      const room = element.clientHeight - 2 * ROW;
      if (top < element.scrollTop) element.scrollTop = top;
      else if (top > element.scrollTop + room) element.scrollTop = top - room;
      scroll = element.scrollTop;
      draw(true);
      body.querySelector(`a[data-at="${active}"]`)?.focus({ preventScroll: true });
    };
    body.addEventListener("keydown", (event) => {
      const at = Number(event.target.dataset?.at ?? NaN);
      if (Number.isNaN(at) || event.altKey || event.ctrlKey || event.metaKey) return;
      const page = Math.max(1, Math.floor(element.clientHeight / ROW) - 2);
      const to = {
        ArrowDown: at + 1,
        ArrowUp: at - 1,
        PageDown: at + page,
        PageUp: at - page,
        Home: 0,
        End: rows.length - 1,
      }[event.key];
      if (to == null) return;
      event.preventDefault();
      moveTo(to);
    });
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-row]");
      if (!row || event.target.closest("a") || String(getSelection())) return;
      onOpen(Number(row.dataset.row));
    });

    return {
      element,
      /** Shows other rows, from the top unless told where. */
      update: (next, sort, dir, top = 0) => {
        rows = next;
        active = 0;
        table.setAttribute("aria-rowcount", String(rows.length + 1));
        heads.forEach((head, c) => {
          if (columns[c].key === sort) head.setAttribute("aria-sort", dir === "desc" ? "descending" : "ascending");
          else head.removeAttribute("aria-sort");
        });
        const moved = scroll !== top;
        scroll = top;
        draw(true);
        if (moved) element.scrollTop = top;
      },
      top: () => scroll,
    };
  };
  sae.table = { make };
}
