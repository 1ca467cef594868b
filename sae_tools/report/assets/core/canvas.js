"use strict";
/** Pictures of very many marks on a canvas, with what lies under the pointer found again. */
{
  const { h } = sae.dom;

  const canvas = {
    /** A canvas of that size in CSS pixels, sharp on dense screens. Answers [element, 2-D context]. */
    make: (width, height, label) => {
      const ratio = Math.min(3, devicePixelRatio || 1);
      const element = h("canvas", {
        width: Math.round(width * ratio),
        height: Math.round(height * ratio),
        role: "img",
        "aria-label": label,
        css: { width: `${width}px`, height: `${height}px` },
      });
      const context = element.getContext("2d");
      context.scale(ratio, ratio);
      return [element, context];
    },

    /**
     * A raster of columns × rows values in [0, 1], drawn one pixel each and stretched without smoothing.
     * `values(column, row)`, row 0 at the top; negative values are left empty. `edges` are the columns' borders in pixels.
     */
    raster: (context, { edges, top, bottom, rows, values, colour }) => {
      const columns = edges.length - 1;
      const image = new OffscreenCanvas(columns, rows);
      const inside = image.getContext("2d");
      const data = inside.createImageData(columns, rows);
      for (let column = 0; column < columns; column++) {
        for (let row = 0; row < rows; row++) {
          const value = values(column, row);
          if (value < 0) continue;
          const [r, g, b] = colour(value);
          data.data.set([r, g, b, 255], 4 * (row * columns + column));
        }
      }
      inside.putImageData(data, 0, 0);
      context.imageSmoothingEnabled = false;
      for (let column = 0; column < columns; column++) {
        const left = Math.round(edges[column]);
        const right = Math.max(left + 1, Math.round(edges[column + 1]));
        context.drawImage(image, column, 0, 1, rows, left, top, right - left, bottom - top);
      }
    },

    /**
     * Points (xs, ys in pixels, NaN where one has no place) with a colour per point (`colours`: [r, g, b] by index).
     * Answers `near(x, y)`: the index of the nearest point within 12 pixels, or -1.
     */
    points: (context, { xs, ys, colours, size, alpha, area }) => {
      const cell = 12;
      const wide = Math.ceil(area.right / cell) + 2;
      const grid = new Map();
      context.globalAlpha = alpha;
      let last = "";
      for (let i = 0; i < xs.length; i++) {
        const x = xs[i];
        const y = ys[i];
        if (!(x >= area.left - 1 && x <= area.right + 1 && y >= area.top - 1 && y <= area.bottom + 1)) continue;
        const fill = colours(i);
        if (fill !== last) context.fillStyle = last = fill;
        context.fillRect(x - size / 2, y - size / 2, size, size);
        const key = Math.floor(y / cell) * wide + Math.floor(x / cell);
        const there = grid.get(key);
        if (there) there.push(i);
        else grid.set(key, [i]);
      }
      context.globalAlpha = 1;
      return (x, y) => {
        let best = -1;
        let distance = 144;
        const cx = Math.floor(x / cell);
        const cy = Math.floor(y / cell);
        for (let dy = -1; dy <= 1; dy++) {
          for (let dx = -1; dx <= 1; dx++) {
            for (const i of grid.get((cy + dy) * wide + cx + dx) ?? []) {
              const d = (xs[i] - x) ** 2 + (ys[i] - y) ** 2;
              if (d < distance) [best, distance] = [i, d];
            }
          }
        }
        return best;
      };
    },
  };
  sae.canvas = canvas;
}
