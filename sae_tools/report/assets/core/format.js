"use strict";
/** Numbers as text. Minus signs are U+2212, so that columns of tabular figures align. */
{
  const minus = (text) => text.replaceAll("-", "\u2212");
  const grouped = new Intl.NumberFormat("en-US");

  const format = {
    /** 1,000,448 */
    integer: (x) => (x == null || Number.isNaN(x) ? "–" : minus(grouped.format(Math.round(x)))),

    /** A fixed number of decimals. */
    fixed: (x, decimals = 2) => (x == null || Number.isNaN(x) ? "–" : minus(x.toFixed(decimals))),

    /** With a sign always shown. */
    signed: (x, decimals = 3) =>
      x == null || Number.isNaN(x) ? "–" : (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(decimals),

    /** 1.23e−4: two decimals of the mantissa, zero as 0. */
    scientific: (x, decimals = 2) => {
      if (x == null || Number.isNaN(x)) return "–";
      return x === 0 ? "0" : minus(x.toExponential(decimals));
    },

    /** Three significant figures where that is readable, otherwise scientific. */
    figures: (x, significant = 3) => {
      if (x == null || Number.isNaN(x)) return "–";
      if (x === 0) return "0";
      const size = Math.abs(x);
      if (size < 1e-3 || size >= 1e6) return minus(x.toExponential(significant - 1));
      if (size >= 1000) return minus(grouped.format(Math.round(x)));
      return minus(x.toFixed(Math.max(0, significant - 1 - Math.floor(Math.log10(size)))));
    },

    /** 12 %, 0.031 %. */
    percent: (x, significant = 3) =>
      x == null || Number.isNaN(x) ? "–" : `${format.figures(x * 100, significant)}\u202f%`,

    /** 1.0 M, 131 k: for axes and running text. */
    compact: (x) => {
      if (x == null || Number.isNaN(x)) return "–";
      const size = Math.abs(x);
      for (const [unit, name] of [
        [1e9, "G"],
        [1e6, "M"],
        [1e3, "k"],
      ]) {
        if (size >= unit * 0.9995) return minus(String(Number((x / unit).toPrecision(3)))) + "\u202f" + name;
      }
      return minus(String(Number(x.toPrecision(3))));
    },

    /** 10⁻⁴ for the exponent −4. */
    power: (exponent) => {
      const digits = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
      return "10" + [...String(exponent)].map((character) => digits[character]).join("");
    },

    /** A bound that somebody chose: 10⁻⁴, 0.1, 0.025. */
    bound: (x) => {
      const exponent = Math.round(Math.log10(x));
      return x < 0.05 && Math.abs(Math.log10(x) - exponent) < 1e-9
        ? format.power(exponent)
        : minus(String(Number(x.toPrecision(3))));
    },

    /** 150 s, 12 min, 3.2 h */
    duration: (seconds) => {
      if (seconds == null) return "–";
      if (seconds < 120) return `${Number(seconds.toPrecision(3))}\u202fs`;
      if (seconds < 7200) return `${Number((seconds / 60).toPrecision(3))}\u202fmin`;
      return `${Number((seconds / 3600).toPrecision(3))}\u202fh`;
    },

    /** "1 feature", "2,048 features". */
    count: (n, noun) => `${format.integer(n)} ${noun}${n === 1 ? "" : "s"}`,
  };
  sae.format = format;
}
