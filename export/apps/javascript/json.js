// JSON of strangers, read more strictly than JSON.parse does: a key that stands twice in one table, numbers beyond 64
// bits and half characters are refused, and tables have no prototype, so that a key named "constructor" is only a key.

const TOKEN =
  /[ \t\n\r]*(?:([{}[\],:])|("[^"\\\u0000-\u001f]*(?:\\.[^"\\\u0000-\u001f]*)*")|(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)|(true|false|null))/y;
const END = /[ \t\n\r]*$/y;
const MAX_DEPTH = 200;
const LONE_SURROGATE = /[\ud800-\udfff]/u;

/**
 * @param {Uint8Array} bytes UTF-8
 * @returns {unknown} tables, lists, texts, numbers, true, false, null; throws an Error that says what is wrong
 */
export function parseJson(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  let at = 0;

  /** @returns {RegExpExecArray} */
  function next() {
    TOKEN.lastIndex = at;
    const found = TOKEN.exec(text);
    if (found === null) throw new Error(`expected a value at character ${at}`);
    at = TOKEN.lastIndex;
    return found;
  }

  /** @param {string} token @returns {string} */
  function word(token) {
    const value = JSON.parse(token);
    if (LONE_SURROGATE.test(value)) throw new Error("half a character in a text");
    return value;
  }

  /** @param {RegExpExecArray} token @param {number} depth @returns {unknown} */
  function value(token, depth) {
    if (depth > MAX_DEPTH) throw new Error("tables and lists nested too deeply");
    if (token[2] !== undefined) return word(token[2]);
    if (token[3] !== undefined) return number(token[3]);
    if (token[4] !== undefined) return token[4] === "null" ? null : token[4] === "true";
    if (token[1] === "[") return list(depth);
    if (token[1] === "{") return table(depth);
    throw new Error(`found '${token[1]}' where a value was expected, before character ${at}`);
  }

  /** @param {number} depth */
  function list(depth) {
    /** @type {unknown[]} */
    const items = [];
    let token = next();
    if (token[1] === "]") return items;
    for (;;) {
      items.push(value(token, depth + 1));
      const mark = next()[1];
      if (mark === "]") return items;
      if (mark !== ",") throw new Error(`expected ',' or ']' before character ${at}`);
      token = next();
    }
  }

  /** @param {number} depth */
  function table(depth) {
    /** @type {Record<string, unknown>} */
    const entries = Object.create(null);
    let token = next();
    if (token[1] === "}") return entries;
    for (;;) {
      if (token[2] === undefined) throw new Error(`expected a key before character ${at}`);
      const key = word(token[2]);
      if (key in entries) throw new Error("a key stands twice in one table");
      if (next()[1] !== ":") throw new Error(`expected ':' before character ${at}`);
      entries[key] = value(next(), depth + 1);
      const mark = next()[1];
      if (mark === "}") return entries;
      if (mark !== ",") throw new Error(`expected ',' or '}' before character ${at}`);
      token = next();
    }
  }

  const result = value(next(), 0);
  END.lastIndex = at;
  if (!END.test(text)) throw new Error(`more text after the end, at character ${at}`);
  return result;
}

/** @param {string} token @returns {number} */
function number(token) {
  const value = Number(token);
  if (!Number.isFinite(value)) throw new Error("a number is too large");
  if (/^-?[0-9]+$/.test(token)) {
    const exact = token.length > 20 ? null : BigInt(token);
    if (exact === null || exact >= 2n ** 63n || exact <= -(2n ** 63n)) throw new Error("a whole number is too large");
  }
  return value;
}
