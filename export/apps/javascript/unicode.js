// Characters as Hugging Face's tokenizers sees them. Every browser has tables of another Unicode version, and Rust of yet
// another: this one comes along, so that a text gives the same tokens everywhere.
import { TABLE } from "./unicode_table.js";

export const REMOVED = 1; // by clean_text: controls, formats, private use
export const WHITE = 2;
export const CHINESE = 4; // gets blanks around it
export const MARK = 8; // dropped by strip_accents
export const PUNCTUATION = 16;

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const [HANGUL, SYLLABLES, LEADS, VOWELS, TAILS] = [0xac00, 11172, 0x1100, 0x1161, 0x11a7];
const DOTTED_I = 0x130;

/** Of each code point the sum of what it is; of half a pair nothing. */
export const KINDS = new Uint8Array(0x110000);
/** Of each code point its canonical combining class. */
const CLASSES = new Uint8Array(0x110000);
/** @type {Map<number, [number, number]>} the two parts of a character, the second 0 where there is but one */
const PARTS = new Map();
/** @type {Map<number, number>} */
const LOWER = new Map();

/** The whole numbers in the table, one after the other. */
function* numbers() {
  let [value, shift] = [0, 0];
  for (const digit of TABLE) {
    const bits = DIGITS.indexOf(digit);
    value += (bits & 31) << shift;
    shift += 5;
    if (bits < 32) {
      yield value;
      [value, shift] = [0, 0];
    }
  }
}

{
  const given = numbers();
  const next = () => /** @type {number} */ (given.next().value);
  const signed = () => {
    const value = next();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  };
  for (const kind of [REMOVED, WHITE, CHINESE, MARK, PUNCTUATION]) {
    for (let count = next(), at = 0; count > 0; count -= 1) {
      at += next();
      for (const end = at + next(); ; at += 1) {
        KINDS[at] = /** @type {number} */ (KINDS[at]) | kind;
        if (at === end) break;
      }
    }
  }
  for (let count = next(), at = 0, first = 0, second = 0; count > 0; count -= 1) {
    [at, first, second] = [at + next(), first + signed(), second + signed()];
    PARTS.set(at, [first, second]);
  }
  for (let count = next(), at = 0; count > 0; count -= 1) {
    at += next();
    const [end, number] = [at + next(), next()];
    CLASSES.fill(number, at, end + 1);
    at = end;
  }
  for (let count = next(), at = 0; count > 0; count -= 1) {
    at += next();
    const [steps, stride, distance] = [next(), next() + 1, signed()];
    for (let step = 0; step <= steps; step += 1) LOWER.set(at + step * stride, at + step * stride + distance);
  }
}

/**
 * The code points of a text in canonical decomposition (NFD).
 * @param {number[]} codes
 * @returns {number[]}
 */
export function decomposed(codes) {
  /** @type {number[]} */
  const result = [];
  let start = 0; // of the marks at the end, which are put in order when something else comes
  const settle = () => {
    if (result.length - start < 2) return;
    const marks = result.slice(start).sort((a, b) => /** @type {number} */ (CLASSES[a]) - /** @type {number} */ (CLASSES[b]));
    for (const mark of marks) result[start++] = mark;
  };
  /** @param {number} code */
  const add = (code) => {
    if (CLASSES[code] === 0) {
      settle();
      start = result.length + 1;
    }
    result.push(code);
  };
  /** @param {number} code */
  const take = (code) => {
    const syllable = code - HANGUL;
    const parts = code < 0xc0 ? undefined : PARTS.get(code);
    if (parts !== undefined) {
      take(parts[0]);
      if (parts[1] !== 0) take(parts[1]);
    } else if (syllable >= 0 && syllable < SYLLABLES) {
      add(LEADS + Math.floor(syllable / 588));
      add(VOWELS + Math.floor((syllable % 588) / 28));
      if (syllable % 28 !== 0) add(TAILS + (syllable % 28));
    } else {
      add(code);
    }
  };
  for (const code of codes) take(code);
  settle();
  return result;
}

/**
 * The code points in lower case, each for itself: no final sigma, no Turkish.
 * @param {number[]} codes
 * @returns {number[]}
 */
export function lowered(codes) {
  /** @type {number[]} */
  const result = [];
  for (const code of codes) {
    if (code < 0x80) {
      result.push(code >= 65 && code <= 90 ? code + 32 : code);
    } else if (code === DOTTED_I) {
      result.push(105, 0x307);
    } else {
      result.push(LOWER.get(code) ?? code);
    }
  }
  return result;
}
