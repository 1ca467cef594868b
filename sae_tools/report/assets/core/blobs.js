"use strict";
/**
 * The report's data: named columns of numbers, packed, compressed and base64-encoded. In a single file they lie in
 * <script data-blob="NAME"> elements; in a folder each is a file `data/NAME.js` that calls saeBlob(name, base64) and is
 * loaded by a <script> element when it is first asked for, which works from file:// as well as from a server.
 *
 * Layout after decompression, little-endian: uint32 length of the header, the header (JSON, UTF-8), then the arrays:
 * {"arrays": {"panel.name": {dtype, shape, offset}}, "json": {"panel": …}}; offsets count from the end of the header.
 */
{
  const types = {
    u1: Uint8Array,
    u2: Uint16Array,
    u4: Uint32Array,
    i1: Int8Array,
    i2: Int16Array,
    i4: Int32Array,
    f4: Float32Array,
    f8: Float64Array,
  };
  // Chunks of features and density histories are many or large; the others are few and stay.
  const limits = { features: 16, density: 4 };
  const cache = new Map();
  const arriving = new Map();

  globalThis.saeBlob = (name, text) => {
    arriving.get(name)?.resolve(text);
    arriving.delete(name);
  };

  const load = (name) =>
    new Promise((resolve, reject) => {
      arriving.set(name, { resolve });
      const script = document.createElement("script");
      script.src = `data/${name.replaceAll("/", "-")}.js`;
      script.onerror = () => {
        arriving.delete(name);
        reject(new Error(`The file ${script.getAttribute("src")} of this report is missing.`));
      };
      script.onload = () => script.remove();
      document.head.append(script);
    });

  const base64 = (text) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  };

  const unpack = (buffer) => {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const panels = {};
    for (const [panel, values] of Object.entries(header.json)) panels[panel] = { ...values };
    for (const [key, { dtype, shape, offset }] of Object.entries(header.arrays)) {
      const dot = key.indexOf(".");
      const size = shape.reduce((product, n) => product * n, 1);
      const array = new types[dtype](buffer, 4 + length + offset, size);
      array.shape = shape;
      (panels[key.slice(0, dot)] ??= {})[key.slice(dot + 1)] = array;
    }
    return panels;
  };

  const decode = async (name) => {
    const start = performance.now();
    const element = document.querySelector(`script[data-blob="${CSS.escape(name)}"]`);
    const text = element ? element.textContent.trim() : await load(name);
    const stream = new Blob([base64(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const panels = unpack(await new Response(stream).arrayBuffer());
    sae.timed("blob", start);
    return panels;
  };

  const blobs = {
    /** The panels of a blob: {panel: {name: typed array with .shape, or a JSON value}}. Decoded once and kept. */
    get: (name) => {
      const kind = name.split("/", 1)[0];
      const known = cache.get(name);
      if (known) {
        cache.delete(name);
        cache.set(name, known); // now the newest
        return known;
      }
      const promise = decode(name);
      promise.catch(() => cache.delete(name));
      cache.set(name, promise);
      const same = [...cache.keys()].filter((key) => key.startsWith(`${kind}/`));
      if (limits[kind] && same.length > limits[kind]) cache.delete(same[0]);
      return promise;
    },

    /** Row `i` of an array of two or more dimensions, as a view. */
    row: (array, i) => {
      const width = array.length / array.shape[0];
      return array.subarray(i * width, (i + 1) * width);
    },
  };
  sae.blobs = blobs;
}
