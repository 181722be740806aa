/**
 * @typedef {{clean_text: boolean, handle_chinese_chars: boolean, strip_accents: boolean, lowercase: boolean}} Normalizer
 * @typedef {{content: string, id: number, lstrip: boolean, rstrip: boolean}} Added
 * @typedef {{pattern: RegExp, tokens: Map<string, Added>}} Finder of added tokens
 * @typedef {{ids: Int32Array, truncated: boolean}} Encoded ids without padding; whether the text was longer
 */
export const TOKENIZER: "tokenizer.json";
export class Tokenizer {
    /**
     * Throws a `StudentError` for what is no tokenizer.json, or one of another kind.
     * @param {Uint8Array} bytes of a tokenizer.json
     */
    constructor(bytes: Uint8Array);
    /** @private */
    private _normalizer;
    /** @private @type {Map<string, number>} */
    private _vocabulary;
    /** @private what may follow within a word, without the prefix @type {Map<string, number>} */
    private _following;
    /** @private the longest token, in UTF-16 units */
    private _longest;
    /** @private */
    private _longestWord;
    /** @private */
    private _unknown;
    /** @private @type {Finder | null} tokens that are looked for in the text as it came */
    private _raw;
    /** @private @type {Finder | null} tokens that are looked for in the normalized text */
    private _normalized;
    /** @private special tokens */
    private _before;
    /** @private */
    private _after;
    /** The id that fills up short texts. @type {number} */
    pad: number;
    /** One more than the largest id. */
    size: number;
    /**
     * The ids of a text, with the tokenizer's special tokens around them, at most `maxLength`: what is too much at the end
     * is cut off. Half of a surrogate pair counts as U+FFFD.
     * @param {string} input
     * @param {number} maxLength
     * @returns {Encoded}
     */
    encode(input: string, maxLength: number): Encoded;
    /**
     * @private
     * @param {any[]} tokens
     */
    private _readAdded;
    /**
     * What lies between added tokens goes to `other`, the tokens themselves to `ids`.
     * @private
     * @param {string} input
     * @param {Finder | null} wanted
     * @param {number[]} ids
     * @param {(rest: string) => void} other
     */
    private _split;
    /**
     * BERT's normalizer: the code points of a text, cleaned, without accents, in lower case.
     * @private
     * @param {string} input
     * @returns {number[]}
     */
    private _normalize;
    /**
     * The words and punctuation marks of a normalized text, as ids; it stops when there are more than `room`.
     * @private
     * @param {string} input
     * @param {number[]} ids
     * @param {number} room
     */
    private _words;
    /**
     * One word as the longest tokens from its front; unknown as a whole where one is missing.
     * @private
     * @param {string} word
     * @param {number} length in code points
     * @param {number[]} ids
     */
    private _pieces;
}
export type Normalizer = {
    clean_text: boolean;
    handle_chinese_chars: boolean;
    strip_accents: boolean;
    lowercase: boolean;
};
export type Added = {
    content: string;
    id: number;
    lstrip: boolean;
    rstrip: boolean;
};
/**
 * of added tokens
 */
export type Finder = {
    pattern: RegExp;
    tokens: Map<string, Added>;
};
/**
 * ids without padding; whether the text was longer
 */
export type Encoded = {
    ids: Int32Array;
    truncated: boolean;
};
