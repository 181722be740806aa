/**
 * The entries of a zip by their name. Throws an Error that says why it is refused.
 * @param {Uint8Array} bytes
 * @returns {Map<string, Entry>}
 */
export function zipEntries(bytes: Uint8Array): Map<string, Entry>;
/**
 * The content of an entry, at most `limit` bytes and one more.
 * @param {Uint8Array} bytes
 * @param {Entry} entry
 * @param {number} limit
 * @returns {Promise<Uint8Array>}
 */
export function unzip(bytes: Uint8Array, entry: Entry, limit: number): Promise<Uint8Array>;
/**
 * At most `limit` bytes of what was compressed; what comes after them is not looked at.
 * @param {Uint8Array} packed
 * @param {"deflate" | "deflate-raw"} format
 * @param {number} limit
 * @returns {Promise<Uint8Array>}
 */
export function inflate(packed: Uint8Array, format: "deflate" | "deflate-raw", limit: number): Promise<Uint8Array>;
/**
 * The arrays of an .npz. Throws an Error that says why it is refused.
 * @param {Uint8Array} bytes
 * @returns {Promise<Map<string, NdArray>>}
 */
export function readNpz(bytes: Uint8Array): Promise<Map<string, NdArray>>;
/**
 * The array in an .npy file: numbers in C or Fortran order; 64-bit integers become float64.
 * @param {Uint8Array} bytes
 * @returns {NdArray}
 */
export function readNpy(bytes: Uint8Array): NdArray;
export type Numbers = Float32Array | Float64Array | Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array;
/**
 * row by row, the last axis fastest
 */
export type NdArray = {
    shape: number[];
    data: Numbers;
};
export type Entry = {
    method: number;
    start: number;
    packed: number;
    size: number;
};
