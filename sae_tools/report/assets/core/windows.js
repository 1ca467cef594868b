"use strict";
/** The density history of a dictionary: on how many tokens of each window of training every feature fired. */
{
  const merged = new Map();

  const build = async (dictionary, sum) => {
    const { density } = await sae.blobs.get(`density/${dictionary.id}`);
    const [all, size] = density.fires.shape;
    const count = Math.ceil(all / sum);
    const tokens = new Float64Array(count);
    const end = new Float64Array(count);
    for (let w = 0; w < all; w++) {
      tokens[Math.floor(w / sum)] += density.tokens[w];
      end[Math.floor(w / sum)] = density.end[w];
    }
    const made = new Array(count);
    const fires = (w) => {
      if (sum === 1) return density.fires.subarray(w * size, (w + 1) * size);
      const total = new Uint32Array(size);
      for (let one = w * sum; one < Math.min(all, (w + 1) * sum); one++) {
        const at = one * size;
        for (let i = 0; i < size; i++) total[i] += density.fires[at + i];
      }
      return total;
    };
    return {
      count,
      size,
      tokens,
      end,
      sum,
      events: density.events ?? [],
      /** Where a window begins, in tokens trained on. */
      start: (w) => (w ? end[w - 1] : Math.max(0, end[0] - tokens[0])),
      /** Counts of one window, {fires [d_sae], tokens}; the same object every time. */
      of: (w) => (made[w] ??= { fires: fires(w), tokens: tokens[w] }),
    };
  };

  const windows = {
    /** The windows of a dictionary, `sum` neighbouring ones added up. */
    open: (dictionary, sum = 1) => {
      const key = `${sum} ${dictionary.id}`;
      if (!merged.has(key)) {
        const promise = build(dictionary, sum);
        promise.catch(() => merged.delete(key));
        if (merged.size >= 3) merged.delete(merged.keys().next().value);
        merged.set(key, promise);
      }
      return merged.get(key);
    },

    /** "tokens 990 k to 1 M of training". */
    name: (history, w) =>
      `tokens ${sae.format.compact(history.start(w))} to ${sae.format.compact(history.end[w])} of training`,
  };
  sae.windows = windows;
}
