"use strict";
/** Scales, ticks, colour ramps and the one interval that the pages need. */
{
  const niceStep = (span, count) => {
    const raw = span / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(raw));
    return power * ([1, 2, 5, 10].find((step) => step * power >= raw * 0.999) ?? 10);
  };

  const viridis = [
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
  ];
  const blues = {
    light: ["#f1eee6", "#d5e0ea", "#a6c8e0", "#6ba3cf", "#3579b8", "#155594", "#08305f"],
    dark: ["#1f2227", "#173450", "#1c507f", "#2c74b3", "#5f9fd3", "#a3cbe9", "#e6f2fb"],
  };
  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const ramp = (stops) => {
    const colours = stops.map(rgb);
    return (t) => {
      const x = Math.max(0, Math.min(1, Number.isNaN(t) ? 0 : t)) * (colours.length - 1);
      const i = Math.min(colours.length - 2, Math.floor(x));
      return colours[i].map((channel, c) => Math.round(channel + (colours[i + 1][c] - channel) * (x - i)));
    };
  };

  const scales = {
    /** Linear map of [a, b] to [from, to], with .ticks(count) and .invert. */
    linear: ([a, b], [from, to]) => {
      if (a === b) [a, b] = [a - 0.5, b + 0.5];
      const scale = (x) => from + ((x - a) / (b - a)) * (to - from);
      scale.invert = (y) => a + ((y - from) / (to - from)) * (b - a);
      scale.domain = [a, b];
      scale.range = [from, to];
      scale.ticks = (count = 5) => {
        const step = niceStep(b - a, count);
        const found = [];
        for (let i = Math.ceil(a / step - 1e-9); i * step <= b + step * 1e-9; i++) found.push(i * step);
        return found.map((value) => ({ value, text: tickText(value, step) }));
      };
      return scale;
    },

    /** Logarithmic (base 10) map; ticks at the powers of ten, or at 1, 2, 5 where there are few. */
    log: ([a, b], [from, to]) => {
      if (a >= b) [a, b] = [a / 2, a * 2];
      const inner = scales.linear([Math.log10(a), Math.log10(b)], [from, to]);
      const scale = (x) => inner(Math.log10(x));
      scale.invert = (y) => 10 ** inner.invert(y);
      scale.domain = [a, b];
      scale.range = [from, to];
      scale.ticks = (count = 6) => {
        const first = Math.ceil(Math.log10(a) - 1e-9);
        const last = Math.floor(Math.log10(b) + 1e-9);
        if (last - first < 2) {
          const found = [];
          for (let e = first - 1; e <= last; e++) {
            for (const m of [1, 2, 5]) {
              const value = m * 10 ** e;
              if (value >= a * 0.999 && value <= b * 1.001)
                found.push({
                  value,
                  text: sae.format
                    .figures(value, 2)
                    .replace(/(\.\d*?)0+$/, "$1")
                    .replace(/\.$/, ""),
                });
            }
          }
          return found;
        }
        const every = Math.max(1, Math.ceil((last - first + 1) / count));
        const found = [];
        for (let e = first; e <= last; e += every) found.push({ value: 10 ** e, text: sae.format.power(e) });
        return found;
      };
      return scale;
    },

    /** Colour of t in [0, 1] as [r, g, b]: from the page's background to the strongest ink, one hue. */
    sequential: () => ramp(blues[sae.theme.now()]),

    /** Viridis, without its end that vanishes on the present background. */
    viridis: () => {
      const [low, high] = sae.theme.now() === "dark" ? [0.22, 1] : [0, 0.88];
      const colour = ramp(viridis);
      return (t) => colour(low + (high - low) * t);
    },

    /** The Wilson score interval (95 %) of a share of k in n. Wilson (1927), J. Am. Stat. Assoc. 22. */
    wilson: (k, n) => {
      if (!n) return [0, 1];
      const z = 1.959964;
      const share = k / n;
      const centre = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
      const half = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
      return [k === 0 ? 0 : Math.max(0, centre - half), k === n ? 1 : Math.min(1, centre + half)];
    },

    /** Least and greatest finite number of an array. */
    extent: (values) => {
      let low = Infinity;
      let high = -Infinity;
      for (const value of values) {
        if (value < low) low = value;
        if (value > high && value < Infinity) high = value;
      }
      return low <= high ? [low, high] : [0, 1];
    },
  };

  const tickText = (value, step) => {
    if (Math.abs(value) < step * 1e-6) return "0";
    if (Math.abs(value) >= 10_000) return sae.format.compact(value);
    const decimals = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
    return sae.format.fixed(value, decimals);
  };
  sae.scales = scales;
}
