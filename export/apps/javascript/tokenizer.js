// A Hugging Face tokenizer.json of BERT's kind (WordPiece): texts to the ids that the Python package tokenizers gives,
// id for id. Other kinds are refused.
import { FRESH, StudentError, told } from "./errors.js";
import { parseJson } from "./json.js";
import { CHINESE, KINDS, MARK, PUNCTUATION, REMOVED, WHITE, decomposed, lowered } from "./unicode.js";

/**
 * @typedef {{clean_text: boolean, handle_chinese_chars: boolean, strip_accents: boolean, lowercase: boolean}} Normalizer
 * @typedef {{content: string, id: number, lstrip: boolean, rstrip: boolean}} Added
 * @typedef {{pattern: RegExp, tokens: Map<string, Added>}} Finder of added tokens
 * @typedef {{ids: Int32Array, truncated: boolean}} Encoded ids without padding; whether the text was longer
 */

export const TOKENIZER = "tokenizer.json";
const MAX_TEXT = 10_000_000;
const PADS = ["[PAD]", "<pad>", "<|pad|>", "<|endoftext|>"];
const INSTEAD = "distil with a WordPiece tokenizer, as BERT's, or run this student in Python, where tokenizers reads all kinds";
const LONE_SURROGATES = /[\ud800-\udfff]/gu;

export class Tokenizer {
  /**
   * Throws a `StudentError` for what is no tokenizer.json, or one of another kind.
   * @param {Uint8Array} bytes of a tokenizer.json
   */
  constructor(bytes) {
    const all = table(parsed(bytes), "the file");
    const model = table(all.model, "model");
    expectType(model, "model", "WordPiece");
    const pre = table(all.pre_tokenizer, "pre_tokenizer");
    expectType(pre, "pre_tokenizer", "BertPreTokenizer");
    /** @private */
    this._normalizer = normalizerOf(all.normalizer);
    /** @private @type {Map<string, number>} */
    this._vocabulary = new Map();
    for (const [token, id] of Object.entries(table(model.vocab, "model.vocab"))) {
      this._vocabulary.set(token, whole(id, `model.vocab['${token}']`));
    }
    const prefix = text(model.continuing_subword_prefix, "model.continuing_subword_prefix");
    /** @private what may follow within a word, without the prefix @type {Map<string, number>} */
    this._following = new Map();
    /** @private the longest token, in UTF-16 units */
    this._longest = 0;
    for (const [token, id] of this._vocabulary) {
      if (token.startsWith(prefix)) this._following.set(token.slice(prefix.length), id);
      this._longest = Math.max(this._longest, token.length);
    }
    /** @private */
    this._longestWord = whole(model.max_input_chars_per_word, "model.max_input_chars_per_word");
    const unknown = text(model.unk_token, "model.unk_token");
    /** @private */
    this._unknown = expect(this._vocabulary.get(unknown), `model.vocab['${unknown}']`, "the id of the unknown token");
    /** @private @type {Finder | null} tokens that are looked for in the text as it came */
    this._raw = null;
    /** @private @type {Finder | null} tokens that are looked for in the normalized text */
    this._normalized = null;
    const added = this._readAdded(list(all.added_tokens ?? [], "added_tokens"));
    const [before, after] = templateOf(all.post_processor);
    /** @private special tokens */
    this._before = before;
    /** @private */
    this._after = after;
    const names = new Map([...this._vocabulary, ...added]);
    const padding = all.padding === null || all.padding === undefined ? {} : table(all.padding, "padding");
    const named = [padding.pad_token, ...PADS].find((token) => names.has(token));
    /** The id that fills up short texts. @type {number} */
    this.pad = expect(names.get(named), "the padding", `a table 'padding', or one of the tokens ${PADS.join(", ")}`);
    /** One more than the largest id. */
    this.size = 1 + [...names.values()].reduce((most, id) => Math.max(most, id), 0);
  }

  /**
   * The ids of a text, with the tokenizer's special tokens around them, at most `maxLength`: what is too much at the end
   * is cut off. Half of a surrogate pair counts as U+FFFD.
   * @param {string} input
   * @param {number} maxLength
   * @returns {Encoded}
   */
  encode(input, maxLength) {
    if (input.length > MAX_TEXT) {
      throw new StudentError(`the text has ${input.length} characters, expected at most ${MAX_TEXT}; pass a part of it`);
    }
    const room = maxLength - this._before.length - this._after.length;
    if (room < 1) {
      throw new StudentError(`tokenize: max_length = ${maxLength} leaves no room beside the special tokens; ${FRESH}`);
    }
    /** @type {number[]} */
    const ids = [];
    this._split(input.replace(LONE_SURROGATES, "\ufffd"), this._raw, ids, (rest) => {
      const codes = this._normalize(rest);
      this._split(fromCodes(codes), this._normalized, ids, (piece) => this._words(piece, ids, room));
    });
    const kept = ids.slice(0, room);
    return { ids: Int32Array.from([...this._before, ...kept, ...this._after]), truncated: ids.length > room };
  }

  /**
   * @private
   * @param {any[]} tokens
   */
  _readAdded(tokens) {
    /** @type {Map<string, number>} */
    const ids = new Map();
    /** @type {{raw: Added[], normalized: Added[]}} */
    const found = { raw: [], normalized: [] };
    let next = this._vocabulary.size;
    for (const [at, item] of tokens.entries()) {
      const where = `added_tokens[${at}]`;
      const token = table(item, where);
      const content = text(token.content, `${where}.content`);
      const id = this._vocabulary.get(content) ?? ids.get(content) ?? next;
      if (whole(token.id, `${where}.id`) !== id) refuse(`${where}.id is ${token.id}`, `${id}, as tokenizers numbers it`);
      if (!this._vocabulary.has(content) && !ids.has(content)) next += 1;
      ids.set(content, id);
      if (flag(token.single_word, `${where}.single_word`)) refuse(`${where}.single_word is true`, "false");
      const normalized = flag(token.normalized, `${where}.normalized`);
      const wanted = normalized ? fromCodes(this._normalize(content)) : content;
      if (wanted === "") refuse(`${where} is an empty token`, "a text");
      const [lstrip, rstrip] = [flag(token.lstrip, `${where}.lstrip`), flag(token.rstrip, `${where}.rstrip`)];
      found[normalized ? "normalized" : "raw"].push({ content: wanted, id, lstrip, rstrip });
    }
    this._raw = finder(found.raw);
    this._normalized = finder(found.normalized);
    return ids;
  }

  /**
   * What lies between added tokens goes to `other`, the tokens themselves to `ids`.
   * @private
   * @param {string} input
   * @param {Finder | null} wanted
   * @param {number[]} ids
   * @param {(rest: string) => void} other
   */
  _split(input, wanted, ids, other) {
    let done = 0;
    if (wanted !== null) {
      for (const match of input.matchAll(wanted.pattern)) {
        const token = /** @type {Added} */ (wanted.tokens.get(match[0]));
        let [start, end] = [/** @type {number} */ (match.index), /** @type {number} */ (match.index) + match[0].length];
        while (token.lstrip && start > done && isWhite(input, start - 1)) start -= 1;
        while (token.rstrip && end < input.length && isWhite(input, end)) end += 1;
        if (start > done) other(input.slice(done, start));
        ids.push(token.id);
        done = end;
      }
    }
    if (done < input.length) other(input.slice(done));
  }

  /**
   * BERT's normalizer: the code points of a text, cleaned, without accents, in lower case.
   * @private
   * @param {string} input
   * @returns {number[]}
   */
  _normalize(input) {
    const { clean_text: clean, handle_chinese_chars: apart, strip_accents: strip, lowercase } = this._normalizer;
    /** @type {number[]} */
    let codes = [];
    for (let at = 0; at < input.length; at += 1) {
      const code = /** @type {number} */ (input.codePointAt(at));
      if (code > 0xffff) at += 1;
      const kind = /** @type {number} */ (KINDS[code]);
      if (clean && kind & REMOVED) continue;
      if (apart && kind & CHINESE) codes.push(32, code, 32);
      else codes.push(clean && kind & WHITE ? 32 : code);
    }
    if (strip) codes = decomposed(codes).filter((code) => !(/** @type {number} */ (KINDS[code]) & MARK));
    return lowercase ? lowered(codes) : codes;
  }

  /**
   * The words and punctuation marks of a normalized text, as ids; it stops when there are more than `room`.
   * @private
   * @param {string} input
   * @param {number[]} ids
   * @param {number} room
   */
  _words(input, ids, room) {
    let [start, length] = [0, 0]; // of the word: where it begins, and its code points
    /** @param {number} end */
    const finish = (end) => {
      if (length > 0) this._pieces(input.slice(start, end), length, ids);
      length = 0;
    };
    for (let at = 0; at < input.length && ids.length <= room; ) {
      const code = /** @type {number} */ (input.codePointAt(at));
      const after = at + (code > 0xffff ? 2 : 1);
      const kind = /** @type {number} */ (KINDS[code]);
      if (kind & (WHITE | PUNCTUATION)) {
        finish(at);
        if (!(kind & WHITE)) this._pieces(input.slice(at, after), 1, ids);
        start = after;
      } else {
        length += 1;
      }
      at = after;
    }
    finish(input.length);
  }

  /**
   * One word as the longest tokens from its front; unknown as a whole where one is missing.
   * @private
   * @param {string} word
   * @param {number} length in code points
   * @param {number[]} ids
   */
  _pieces(word, length, ids) {
    const before = ids.length;
    for (let start = 0; start < word.length && length <= this._longestWord; ) {
      const known = start === 0 ? this._vocabulary : this._following;
      let end = Math.min(word.length, start + this._longest);
      let id;
      for (; end > start; end -= 1) {
        id = known.get(word.slice(start, end));
        if (id !== undefined) break;
      }
      if (id === undefined) break;
      ids.push(id);
      start = end;
      if (start === word.length) return;
    }
    ids.length = before;
    ids.push(this._unknown);
  }
}

/** @param {string} input @param {number} at */
function isWhite(input, at) {
  return (/** @type {number} */ (KINDS[input.charCodeAt(at)]) & WHITE) !== 0; // none lies beyond the first plane
}

/** @param {number[]} codes */
function fromCodes(codes) {
  let result = "";
  for (let at = 0; at < codes.length; at += 8192) result += String.fromCodePoint(...codes.slice(at, at + 8192));
  return result;
}

/** The first match from the left, of those that begin there the longest. @param {Added[]} added @returns {Finder | null} */
function finder(added) {
  if (added.length === 0) return null;
  const tokens = new Map(added.map((token) => [token.content, token]));
  const longestFirst = [...tokens.keys()].sort((a, b) => b.length - a.length);
  const escaped = longestFirst.map((content) => content.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
  return { pattern: new RegExp(escaped.join("|"), "g"), tokens };
}

/** @param {any} value @returns {Normalizer} */
function normalizerOf(value) {
  const all = table(value, "normalizer");
  expectType(all, "normalizer", "BertNormalizer");
  const [clean_text, handle_chinese_chars, lowercase] = ["clean_text", "handle_chinese_chars", "lowercase"].map((key) =>
    flag(all[key], `normalizer.${key}`),
  );
  const strip_accents = all.strip_accents === null ? lowercase : flag(all.strip_accents, "normalizer.strip_accents");
  return /** @type {Normalizer} */ ({ clean_text, handle_chinese_chars, strip_accents, lowercase });
}

/**
 * The special tokens before and after a text.
 * @param {any} post
 * @returns {[number[], number[]]}
 */
function templateOf(post) {
  if (post === null || post === undefined) return [[], []];
  const { type } = table(post, "post_processor");
  if (type === "BertProcessing") {
    const ends = ["cls", "sep"].map((key) => whole(list(post[key], `post_processor.${key}`)[1], `post_processor.${key}[1]`));
    return [ends.slice(0, 1), ends.slice(1)];
  }
  if (type !== "TemplateProcessing") {
    refuse(`post_processor.type is ${JSON.stringify(type)}`, "'TemplateProcessing' or 'BertProcessing'");
  }
  const special = table(post.special_tokens, "post_processor.special_tokens");
  /** @type {[number[], number[]]} */
  const sides = [[], []];
  let seen = 0;
  for (const item of list(post.single, "post_processor.single")) {
    const piece = table(item, "post_processor.single");
    if (piece.Sequence !== undefined) {
      seen += table(piece.Sequence, "post_processor.single").id === "A" ? 1 : 2;
    } else {
      const id = text(table(piece.SpecialToken, "post_processor.single").id, "post_processor.single");
      const token = table(special[id], `post_processor.special_tokens['${id}']`);
      const ids = list(token.ids, `post_processor.special_tokens['${id}'].ids`);
      sides[seen === 0 ? 0 : 1].push(...ids.map((one) => whole(one, `post_processor.special_tokens['${id}'].ids`)));
    }
  }
  if (seen !== 1) refuse("post_processor.single without one $A", "special tokens around one $A");
  return sides;
}

/** @param {Uint8Array} bytes */
function parsed(bytes) {
  try {
    return parseJson(bytes);
  } catch (error) {
    throw new StudentError(`${TOKENIZER} is not readable as JSON (${told(error)}); ${FRESH}`);
  }
}

/** @param {string} found @param {string} expected @returns {never} */
function refuse(found, expected) {
  throw new StudentError(`${TOKENIZER}: ${found}, expected ${expected}: ${INSTEAD}`);
}

/** @param {Record<string, any>} value @param {string} where @param {string} type */
function expectType(value, where, type) {
  if (value.type !== type) refuse(`${where}.type is ${JSON.stringify(value.type) ?? "missing"}`, `'${type}'`);
}

/** @template T @param {T | undefined} value @param {string} where @param {string} expected @returns {T} */
function expect(value, where, expected) {
  if (value === undefined) refuse(`${where} is missing`, expected);
  return value;
}

/** @param {any} value @param {string} where @returns {Record<string, any>} */
function table(value, where) {
  const fits = typeof value === "object" && value !== null && !Array.isArray(value);
  if (!fits) refuse(`${where} is ${shown(value)}`, "a table");
  return value;
}

/** @param {any} value @param {string} where @returns {any[]} */
function list(value, where) {
  if (!Array.isArray(value)) refuse(`${where} is ${shown(value)}`, "a list");
  return value;
}

/** @param {any} value @param {string} where @returns {string} */
function text(value, where) {
  if (typeof value !== "string") refuse(`${where} is ${shown(value)}`, "a text");
  return value;
}

/** @param {any} value @param {string} where @returns {boolean} */
function flag(value, where) {
  if (typeof value !== "boolean") refuse(`${where} is ${shown(value)}`, "true or false");
  return value;
}

/** @param {any} value @param {string} where @returns {number} */
function whole(value, where) {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 24) refuse(`${where} is ${shown(value)}`, "a whole number from 0 to 16777215");
  return value;
}

/** @param {any} value */
function shown(value) {
  const written = value === undefined ? "missing" : JSON.stringify(value);
  return written.length <= 60 ? written : `${written.slice(0, 57)}...`;
}
