/**
 * The code points of a text in canonical decomposition (NFD).
 * @param {number[]} codes
 * @returns {number[]}
 */
export function decomposed(codes: number[]): number[];
/**
 * The code points in lower case, each for itself: no final sigma, no Turkish.
 * @param {number[]} codes
 * @returns {number[]}
 */
export function lowered(codes: number[]): number[];
export const REMOVED: 1;
export const WHITE: 2;
export const CHINESE: 4;
export const MARK: 8;
export const PUNCTUATION: 16;
/** Of each code point the sum of what it is; of half a pair nothing. */
export const KINDS: Uint8Array<ArrayBuffer>;
