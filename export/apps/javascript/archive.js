// Zip files and numpy's arrays, from bytes in memory. Plain numbers only: nothing is unpickled, nothing is unpacked.
import { nameProblem } from "./manifest.js";

/** @typedef {Float32Array | Float64Array | Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array} Numbers */
/** @typedef {{shape: number[], data: Numbers}} NdArray row by row, the last axis fastest */
/** @typedef {{method: number, start: number, packed: number, size: number}} Entry */

const MAX_ENTRIES = 10_000;
const MAX_ARRAYS_BYTES = 2 ** 28;
const HEADER =
  /^\{'descr': '([<>|=]?)([buif][1248])', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18},? ?){0,32})\),? ?\}\s*$/;

/** @param {Uint8Array} bytes */
function view(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * The entries of a zip by their name. Throws an Error that says why it is refused.
 * @param {Uint8Array} bytes
 * @returns {Map<string, Entry>}
 */
export function zipEntries(bytes) {
  const data = view(bytes);
  let end = bytes.length - 22;
  while (end >= 0 && end > bytes.length - 65_558 && data.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0 || data.getUint32(end, true) !== 0x06054b50) throw new Error("no end of a zip is there");
  const count = data.getUint16(end + 10, true);
  let at = data.getUint32(end + 16, true);
  if (count > MAX_ENTRIES) throw new Error(`${count} entries, expected at most ${MAX_ENTRIES}`);
  const entries = new Map();
  for (let index = 0; index < count; index += 1) {
    if (data.getUint32(at, true) !== 0x02014b50) throw new Error("the list of its entries is damaged");
    const [flags, method] = [data.getUint16(at + 8, true), data.getUint16(at + 10, true)];
    const [packed, size] = [data.getUint32(at + 20, true), data.getUint32(at + 24, true)];
    const [long, extra, comment] = [28, 30, 32].map((offset) => data.getUint16(at + offset, true));
    const kind = (data.getUint32(at + 38, true) >>> 28) & 15;
    const start = data.getUint32(at + 42, true);
    if (at + 46 + long > bytes.length) throw new Error("the list of its entries is damaged");
    const name = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(at + 46, at + 46 + long));
    const problem =
      nameProblem(name.replace(/\/$/, "")) ??
      (entries.has(name) ? "it comes twice" : null) ??
      (flags & 1 ? "expected no encryption" : null) ??
      (method !== 0 && method !== 8 ? "expected it stored or deflated" : null) ??
      (![0, 4, 8].includes(kind) ? "expected a plain file, no link" : null);
    if (problem !== null) throw new Error(`the entry '${name}': ${problem}`);
    entries.set(name, { method, start, packed, size });
    at += 46 + long + extra + comment;
  }
  return entries;
}

/**
 * The content of an entry, at most `limit` bytes and one more.
 * @param {Uint8Array} bytes
 * @param {Entry} entry
 * @param {number} limit
 * @returns {Promise<Uint8Array>}
 */
export async function unzip(bytes, entry, limit) {
  const data = view(bytes);
  if (data.getUint32(entry.start, true) !== 0x04034b50) throw new Error("an entry is damaged");
  const at = entry.start + 30 + data.getUint16(entry.start + 26, true) + data.getUint16(entry.start + 28, true);
  if (at + entry.packed > bytes.length) throw new Error("an entry is cut off");
  const packed = bytes.subarray(at, at + entry.packed);
  const content = entry.method === 0 ? packed : await inflate(packed, "deflate-raw", limit + 1);
  if (content.length !== entry.size && content.length <= limit) throw new Error("an entry has another size than told");
  return content;
}

/**
 * At most `limit` bytes of what was compressed; what comes after them is not looked at.
 * @param {Uint8Array} packed
 * @param {"deflate" | "deflate-raw"} format
 * @param {number} limit
 * @returns {Promise<Uint8Array>}
 */
export async function inflate(packed, format, limit) {
  const stream = new Blob([/** @type {BlobPart} */ (packed)]).stream().pipeThrough(new DecompressionStream(format));
  const reader = stream.getReader();
  const chunks = [];
  let total = 0;
  while (total < limit) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    total += value.length;
  }
  reader.cancel().catch(() => {}); // the rest may be damaged: nobody reads it
  const whole = new Uint8Array(Math.min(total, limit));
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk.subarray(0, whole.length - at), at);
    at += chunk.length;
  }
  return whole;
}

/**
 * The arrays of an .npz. Throws an Error that says why it is refused.
 * @param {Uint8Array} bytes
 * @returns {Promise<Map<string, NdArray>>}
 */
export async function readNpz(bytes) {
  const arrays = new Map();
  let left = MAX_ARRAYS_BYTES;
  for (const [name, entry] of zipEntries(bytes)) {
    const content = await unzip(bytes, entry, left);
    left -= content.length;
    if (left < 0) throw new Error(`more than ${MAX_ARRAYS_BYTES} bytes of arrays`);
    arrays.set(name.replace(/\.npy$/, ""), readNpy(content));
  }
  return arrays;
}

/**
 * The array in an .npy file: numbers in C or Fortran order; 64-bit integers become float64.
 * @param {Uint8Array} bytes
 * @returns {NdArray}
 */
export function readNpy(bytes) {
  const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
  const [major, minor] = [bytes[6], bytes[7]];
  if (!magic.every((byte, at) => bytes[at] === byte) || (major !== 1 && major !== 2) || minor !== 0 || bytes.length < 12) {
    throw new Error("it is no array of numpy");
  }
  const start = major === 1 ? 10 : 12;
  const end = start + (major === 1 ? view(bytes).getUint16(8, true) : view(bytes).getUint32(8, true));
  const header = HEADER.exec(String.fromCharCode(...bytes.subarray(start, Math.min(end, start + 4096))));
  if (header === null || end > bytes.length) throw new Error("an array header is none of plain numbers");
  const [, order, kind, fortran, sides] = /** @type {[string, string, string, string, string]} */ (/** @type {unknown} */ (header));
  const shape = sides.split(/[, ]+/).filter(Boolean).map(Number);
  const count = shape.reduce((product, side) => product * side, 1);
  const width = Number(kind[1]);
  if (count * width !== bytes.length - end) throw new Error(`${bytes.length - end} bytes for the shape ${shape}`);
  const own = new Uint8Array(bytes.subarray(end)); // a copy: slice of a Buffer would be none
  if (order === ">") for (let at = 0; at < own.length; at += width) own.subarray(at, at + width).reverse();
  const data = numbers(kind, own.buffer);
  return { shape, data: fortran === "True" ? fromFortran(shape, data) : data };
}

/** @param {string} kind @param {ArrayBuffer} buffer @returns {Numbers} */
function numbers(kind, buffer) {
  switch (kind) {
    case "b1":
    case "u1":
      return new Uint8Array(buffer);
    case "i1":
      return new Int8Array(buffer);
    case "u2":
      return new Uint16Array(buffer);
    case "i2":
      return new Int16Array(buffer);
    case "u4":
      return new Uint32Array(buffer);
    case "i4":
      return new Int32Array(buffer);
    case "f2":
      return Float32Array.from(new Uint16Array(buffer), half);
    case "f4":
      return new Float32Array(buffer);
    case "f8":
      return new Float64Array(buffer);
    case "u8":
      return Float64Array.from(new BigUint64Array(buffer), Number);
    case "i8":
      return Float64Array.from(new BigInt64Array(buffer), Number);
    default:
      throw new Error(`numbers of the kind ${kind}`);
  }
}

/** A float16 as a number. @param {number} bits */
function half(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** @param {number[]} shape @param {Numbers} data @returns {Numbers} */
function fromFortran(shape, data) {
  const result = /** @type {Numbers} */ (data.slice());
  const place = shape.map(() => 0);
  const strides = shape.map((_, axis) => shape.slice(0, axis).reduce((product, side) => product * side, 1));
  for (let at = 0; at < data.length; at += 1) {
    result[at] = /** @type {number} */ (data[place.reduce((sum, index, axis) => sum + index * strides[axis], 0)]);
    for (let axis = shape.length - 1; axis >= 0 && ++place[axis] === shape[axis]; axis -= 1) place[axis] = 0;
  }
  return result;
}
