"use strict";
/**
 * Tokens as a reader can see them: a space is a faint dot, a newline ⏎, a tab →; what has no glyph of its own, or would
 * change the order of its neighbours (bidirectional controls), is written as ⟨U+200B⟩. Text is only ever set as text.
 */
{
  // Everything without a visible glyph, one character at a time, and a combining mark with nothing to stand on.
  const invisible = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Z}\p{Default_Ignorable_Code_Point}]|^\p{M}/u;
  const signs = { " ": "·", "\n": "⏎", "\t": "→", "\r": "␍" };
  const name = (character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const cache = new Map();

  /** Cuts a token into parts [{text, kind}], kind being text, space, sign or code. */
  const parts = (token) => {
    const known = cache.get(token);
    if (known) return known;
    const found = [];
    const add = (text, kind) => {
      const last = found.at(-1);
      if (last && last.kind === kind && kind !== "code") last.text += text;
      else found.push({ text, kind });
    };
    if (token === "") add("⟨empty⟩", "code");
    else if (!invisible.test(token)) add(token, "text");
    else {
      let first = true;
      for (const character of token) {
        if (signs[character]) add(signs[character], character === "\n" || character === "\r" ? "sign" : "space");
        else if (first && /^\p{M}$/u.test(character)) add(`◌${character}`, "text");
        else if (invisible.test(character) && !/^\p{M}$/u.test(character)) add(name(character), "code");
        else if (/\p{Default_Ignorable_Code_Point}/u.test(character)) add(name(character), "code");
        else add(character, "text");
        first = false;
      }
    }
    if (cache.size > 50_000) cache.clear();
    cache.set(token, found);
    return found;
  };

  const tokens = {
    parts,

    /** The token as one visible string, e.g. for labels and titles. */
    label: (token) =>
      parts(token)
        .map((part) => part.text)
        .join(""),

    /** Appends the visible token to an element; with `breaks`, the line ends after every newline in it. */
    into: (element, token, breaks = false) => {
      for (const part of parts(token)) {
        if (part.kind === "text") {
          element.append(part.text);
          continue;
        }
        // Neighbouring signs are one part, so a break may fall inside it.
        for (const text of breaks && part.kind === "sign" ? part.text.split(/(?<=⏎)/) : [part.text]) {
          const mark = document.createElement("span");
          mark.className = part.kind === "code" ? "codepoint" : "blank";
          mark.textContent = text;
          element.append(mark);
          if (breaks && part.kind === "sign" && text.endsWith("⏎")) element.append(document.createElement("br"));
        }
      }
      return element;
    },

    /**
     * What a reader types for what a token holds: visible signs count as the characters they stand for, as do \n and
     * \t; \\ is one backslash.
     */
    query: (text) =>
      text
        .replaceAll("·", " ")
        .replaceAll("⏎", "\n")
        .replaceAll("→", "\t")
        .replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t" })[letter] ?? letter),

    /** A token set on its own, in a list or a table. */
    chip: (token, attributes = {}) => {
      const element = document.createElement("span");
      element.className = "chip";
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return tokens.into(element, token);
    },
  };
  sae.tokens = tokens;
}
