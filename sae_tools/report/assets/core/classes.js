"use strict";
/** Density classes: names, bounds, definitions, and the class of a count. */
{
  const names = ["dead", "ultra-rare", "rare", "normal", "dense"];

  /** The least counts of the classes rare, normal and dense; found by the same division as in `of`. */
  const borders = (tokens, [ultra, rare, dense]) => {
    const least = (passes, about) => {
      let n = Math.max(0, Math.floor(about) - 2);
      while (!passes(n / tokens)) n++;
      return n;
    };
    return [
      least((x) => x >= ultra, ultra * tokens),
      least((x) => x >= rare, rare * tokens),
      least((x) => x > dense, dense * tokens),
    ];
  };

  const classes = {
    names,

    /** Bounds of a dictionary, from its entry in meta. */
    bounds: (dictionary) => [dictionary.ultra_rare_below, dictionary.rare_below, dictionary.dense_above],

    /** Index of the class of a feature that fired on `fires` of `tokens` tokens. */
    of: (fires, tokens, [ultra, rare, dense]) => {
      if (!fires) return 0;
      const density = fires / tokens;
      if (density < ultra) return 1;
      if (density < rare) return 2;
      return density > dense ? 4 : 3;
    },

    /** The class of every feature, uint8. */
    all: (fires, tokens, bounds) => {
      const found = new Uint8Array(fires.length);
      const [ultra, rare, dense] = borders(tokens, bounds);
      for (let i = 0; i < fires.length; i++) {
        const n = fires[i];
        found[i] = n === 0 ? 0 : n < ultra ? 1 : n < rare ? 2 : n < dense ? 3 : 4;
      }
      return found;
    },

    /** How many there are of each. */
    count: (found) => {
      const counts = [0, 0, 0, 0, 0];
      for (const one of found) counts[one]++;
      return counts;
    },

    /** What a class means, in words; `tokens` is the number of tokens looked at. */
    definition: (index, [ultra, rare, dense], tokens) => {
      const f = sae.format.bound;
      return [
        `fired on none of ${sae.format.integer(tokens)} tokens`,
        `fired, on a share of tokens below ${f(ultra)}`,
        `share from ${f(ultra)} to ${f(rare)}`,
        `share from ${f(rare)} to ${f(dense)}`,
        `share above ${f(dense)}`,
      ][index];
    },

    /** A small mark of the class with its name. */
    badge: (index) => sae.dom.h("span", { class: `badge class-${names[index]}` }, names[index]),
  };
  sae.classes = classes;
}
