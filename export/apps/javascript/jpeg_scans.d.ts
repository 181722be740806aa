/** @typedef {{values: Uint8Array, first: Int32Array, last: Int32Array, offset: Int32Array}} Huffman codes by their length */
/** @typedef {import("./jpeg.js").Component} Component */
/**
 * Read one scan into the coefficients of its components.
 * @param {Uint8Array} bytes
 * @param {number} start where its codes begin
 * @param {Uint8Array} head
 * @param {import("./jpeg.js").Frame} frame
 * @param {{dc: Huffman[], ac: Huffman[]}} tables
 * @param {number} restart units between restarts; 0: none
 * @returns {number} where the next marker is
 */
export function readScan(bytes: Uint8Array, start: number, head: Uint8Array, frame: import("./jpeg.js").Frame, tables: {
    dc: Huffman[];
    ac: Huffman[];
}, restart: number): number;
/**
 * codes by their length
 */
export type Huffman = {
    values: Uint8Array;
    first: Int32Array;
    last: Int32Array;
    offset: Int32Array;
};
export type Component = import("./jpeg.js").Component;
