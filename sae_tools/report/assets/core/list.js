"use strict";
/**
 * The features of a dictionary as columns that are sorted and filtered within milliseconds: sorted orders are made once
 * per column (radix sort of float bits, stable, so that ties stay in the order of feature numbers) and kept; a filter
 * is one pass over an order.
 */
{
  const NONE = 0xffffffff;
  /** Milliseconds without a click or a key after which work is done ahead. */
  const QUIET = 300;

  /** Unsigned keys whose order is the order of the numbers; numbers that are missing come last either way. */
  const sortKeys = (values, descending) => {
    const floats = new Float32Array(values); // a copy that is ours
    const keys = new Uint32Array(floats.buffer);
    for (let i = 0; i < keys.length; i++) {
      if (Number.isNaN(floats[i])) keys[i] = NONE;
      else {
        const bits = keys[i] === 0x80000000 ? 0 : keys[i]; // minus zero is zero
        const key = bits & 0x80000000 ? ~bits >>> 0 : (bits | 0x80000000) >>> 0;
        keys[i] = descending ? ~key >>> 0 : key;
      }
    }
    return keys;
  };

  /** Indices in the order of their keys: least significant digit first, three digits of 11 bits, stable. */
  const radixOrder = (keys) => {
    const n = keys.length;
    let from = new Uint32Array(n);
    let to = new Uint32Array(n);
    for (let i = 0; i < n; i++) from[i] = i;
    for (const [shift, bits] of [
      [0, 11],
      [11, 11],
      [22, 10],
    ]) {
      const mask = (1 << bits) - 1;
      const starts = new Uint32Array(mask + 2);
      for (let i = 0; i < n; i++) starts[((keys[i] >>> shift) & mask) + 1]++;
      for (let digit = 0; digit < mask; digit++) starts[digit + 1] += starts[digit];
      for (let i = 0; i < n; i++) {
        const index = from[i];
        to[starts[(keys[index] >>> shift) & mask]++] = index;
      }
      [from, to] = [to, from];
    }
    return from;
  };

  /** What tokens are searched: their text in lower case, and their rank in the order of texts. Made once per corpus. */
  const searchable = (vocabulary) => {
    let lower = null;
    let ranks = null;
    return {
      text: vocabulary,
      lower: () => (lower ??= vocabulary.map((token) => token.toLowerCase())),
      ranks: () => {
        if (!ranks) {
          const keys = vocabulary.map((token, id) => [token.trimStart().toLowerCase(), id]);
          keys.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1]));
          ranks = new Float32Array(vocabulary.length);
          keys.forEach(([, id], rank) => (ranks[id] = rank));
        }
        return ranks;
      },
    };
  };

  /** Columns of tokens that a search looks at, and the names of these places in an address. */
  const places = { peak_token: "peak", logit_top: "top", logit_bottom: "bottom" };

  class FeatureList {
    constructor(dictionary, features, vocabulary) {
      this.dictionary = dictionary;
      this.features = features;
      this.vocabulary = vocabulary;
      this.size = dictionary.d_sae;
      this.bounds = sae.classes.bounds(dictionary);
      this.heldout = { fires: features.fires, tokens: dictionary.tokens };
      this.orders = new Map();
      this.classes = new WeakMap();
      this.hits = { query: null, found: null };
    }

    /** The class of every feature by these counts ({fires, tokens}), by default the held-out ones. */
    classesOf(counts = this.heldout) {
      if (!this.classes.has(counts))
        this.classes.set(counts, sae.classes.all(counts.fires, counts.tokens, this.bounds));
      return this.classes.get(counts);
    }

    density(index) {
      return this.heldout.fires[index] / this.heldout.tokens;
    }

    /** Whether a column of that name can be sorted by. */
    has(column) {
      return (
        column === "id" ||
        column === "density" ||
        (Object.hasOwn(this.features, column) && ArrayBuffer.isView(this.features[column]))
      );
    }

    column(name) {
      if (name === "density") return this.features.fires;
      const array = this.features[name];
      if (array.shape.length === 1) return array;
      const ranks = this.vocabulary.ranks();
      const first = new Float32Array(this.size);
      const width = array.shape[1];
      for (let i = 0; i < this.size; i++) first[i] = array[i * width] === NONE ? NaN : ranks[array[i * width]];
      return first;
    }

    /** All features in the order of a column, uint32. */
    order(column = "id", direction = "asc") {
      const key = `${column} ${direction}`;
      let order = this.orders.get(key);
      if (!order) {
        const keys =
          column === "id"
            ? Uint32Array.from({ length: this.size }, (_, i) => (direction === "desc" ? this.size - i : i))
            : sortKeys(this.column(column), direction === "desc");
        order = radixOrder(keys);
        this.orders.set(key, order);
      }
      return order;
    }

    /**
     * Which tokens of the vocabulary answer what was typed, uint8; null where nothing was. Quotes ask for the token
     * itself, with its case and its leading space; without them it has to contain the text, in whatever case.
     */
    tokensFor(typed) {
      const query = sae.tokens.query(typed);
      if (!query) return null;
      if (this.hits.query === query) return this.hits.found;
      const whole = /^"(.+)"$/s.exec(query);
      const among = whole ? this.vocabulary.text : this.vocabulary.lower();
      const wanted = whole ? whole[1] : query.toLowerCase();
      const found = new Uint8Array(among.length);
      for (let id = 0; id < among.length; id++) {
        if (whole ? among[id] === wanted : among[id].includes(wanted)) found[id] = 1;
      }
      this.hits = { query, found };
      return found;
    }

    /** Whether a search in that place (`in`) looks at a column of tokens. */
    searches(column, where = "peak") {
      const place = places[column];
      return where === "all" || place === (Object.values(places).includes(where) ? where : "peak");
    }

    /**
     * Makes, one after another whenever the page has nothing else to do, what a first sort or search would otherwise
     * wait for: the vocabulary in lower case and ranked, and the order of every column in the direction that comes first.
     */
    warm() {
      if (this.warmed) return;
      this.warmed = true;
      const columns = ["peak_token", "logit_top", "logit_bottom"].filter((column) => this.has(column));
      const steps = [
        () => this.vocabulary.lower(),
        () => this.vocabulary.ranks(),
        ...columns.map((column) => () => this.order(column, "asc")),
        ...["density", "maximum", "mean_active"].map((column) => () => this.order(column, "desc")),
      ];
      let touched = performance.now();
      const touch = () => (touched = performance.now());
      for (const event of ["click", "input", "keydown"])
        addEventListener(event, touch, { capture: true, passive: true });
      const next = () => {
        // A step takes some hundredths of a second: not while somebody is at work.
        if (performance.now() - touched >= QUIET) steps.shift()();
        if (steps.length) setTimeout(next, QUIET);
      };
      setTimeout(next, QUIET);
    }

    /**
     * The features that pass, in order: uint32. `sort`, `dir`; `class` (a name); `min` (at least), `max` (below) of
     * the density by `counts`; `q` text of a token or the number of a feature, `in`: peak, top, bottom or all.
     */
    select({ sort = "id", dir = "asc", class: name, min, max, q = "", in: where }, counts = this.heldout) {
      const order = this.order(this.has(sort) ? sort : "id", dir);
      const wanted = sae.classes.names.indexOf(name);
      const kinds = wanted >= 0 ? this.classesOf(counts) : null;
      const low = min == null || min === "" ? -Infinity : Number(min) * counts.tokens * (1 - 1e-9);
      const high = max == null || max === "" ? Infinity : Number(max) * counts.tokens * (1 - 1e-9);
      const ranged = low > -Infinity || high < Infinity;
      const hit = this.tokensFor(q);
      const number = /^#?\d+$/.test(q.trim()) ? Number(q.trim().replace("#", "")) : -1;
      const looked = Object.keys(places)
        .filter((column) => this.features[column] && this.searches(column, where || undefined))
        .map((column) => this.features[column]);
      const rows = new Uint32Array(this.size);
      let n = 0;
      for (let at = 0; at < order.length; at++) {
        const i = order[at];
        if (kinds && kinds[i] !== wanted) continue;
        if (ranged && !(counts.fires[i] >= low && counts.fires[i] < high)) continue;
        if (
          hit &&
          i !== number &&
          !looked.some((array) => {
            const width = array.shape[1];
            for (let k = i * width; k < (i + 1) * width; k++) if (array[k] !== NONE && hit[array[k]]) return true;
            return false;
          })
        )
          continue;
        rows[n++] = i;
      }
      return rows.slice(0, n);
    }
  }

  const open = new Map();
  const vocabularies = new Map();

  const list = {
    NONE,
    radixOrder,
    sortKeys,

    /** The list of a dictionary (its entry in meta). */
    open: (dictionary) => {
      if (!open.has(dictionary.id)) {
        const promise = (async () => {
          const [{ features }, vocabulary] = await Promise.all([
            sae.blobs.get(`dictionary/${dictionary.id}`),
            list.vocabulary(dictionary),
          ]);
          return new FeatureList(dictionary, features, vocabulary);
        })();
        promise.catch(() => open.delete(dictionary.id));
        open.set(dictionary.id, promise);
      }
      return open.get(dictionary.id);
    },

    /** The vocabulary of a dictionary's corpus, for showing and searching. */
    vocabulary: async (dictionary) => {
      if (!vocabularies.has(dictionary.corpus)) {
        const { corpus } = await sae.blobs.get(`corpus/${dictionary.corpus}`);
        vocabularies.set(dictionary.corpus, searchable(corpus.vocabulary));
      }
      return vocabularies.get(dictionary.corpus);
    },

    /** What the reader last looked through: {id, rows, href, label}. Arrow keys on a feature's page follow it. */
    current: null,

    /** Neighbours of a feature in the current list, or by number: {before, after, at, of, list}. */
    around: (dictionary, feature) => {
      const { current } = list;
      if (current?.id === dictionary.id) {
        current.places ??= new Map(Array.from(current.rows, (row, at) => [row, at]));
        const at = current.places.get(feature);
        if (at != null)
          return {
            before: current.rows[at - 1],
            after: current.rows[at + 1],
            at,
            of: current.rows.length,
            list: current,
          };
      }
      return {
        before: feature > 0 ? feature - 1 : undefined,
        after: feature + 1 < dictionary.d_sae ? feature + 1 : undefined,
        at: feature,
        of: dictionary.d_sae,
        list: null,
      };
    },
  };
  sae.list = list;
}
