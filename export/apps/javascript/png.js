// PNG to bytes, as Pillow reads it: colours are not managed, nothing is multiplied by alpha, of 16 bits the upper 8 stay.
import { inflate } from "./archive.js";

/** @typedef {{height: number, width: number, channels: number, data: Uint8Array, orientation: number}} Picture */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** Channels by colour type. @type {Record<number, number>} */
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
/** Bits a sample may have, by colour type. @type {Record<number, number[]>} */
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const ADAM7 = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** @param {Uint8Array} bytes */
export function isPng(bytes) {
  return SIGNATURE.every((byte, at) => bytes[at] === byte);
}

/**
 * The first picture in a PNG with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels; `orientation` as EXIF counts.
 * Throws an Error that says what is damaged.
 * @param {Uint8Array} bytes
 * @param {{maxPixels: number, readOrientation: (tiff: Uint8Array) => number}} options
 * @returns {Promise<Picture>}
 */
export async function decodePng(bytes, { maxPixels, readOrientation }) {
  const chunks = readChunks(bytes);
  const header = chunks.get("IHDR")?.[0];
  if (header === undefined || header.length < 13) throw new Error("the PNG has no header");
  const sides = new DataView(header.buffer, header.byteOffset);
  const [width, height] = [sides.getUint32(0), sides.getUint32(4)];
  const [depth, kind, packing, filtering, interlaced] = /** @type {number[]} */ ([...header.subarray(8)]);
  if (!DEPTHS[kind]?.includes(depth) || packing || filtering || interlaced > 1) throw new Error("the PNG's header is none");
  if (width === 0 || height === 0) throw new Error("the PNG has no pixels");
  if (width * height > maxPixels) throw new Error(`${width} x ${height} pixels, expected at most ${maxPixels}`);
  const planes = CHANNELS[kind];
  const passes = interlaced ? ADAM7 : [[0, 0, 1, 1]];
  const parts = passes
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, columns: Math.ceil((width - x) / dx), rows: Math.ceil((height - y) / dy) }))
    .filter((part) => part.columns > 0 && part.rows > 0)
    .map((part) => ({ ...part, line: Math.ceil((part.columns * planes * depth) / 8) }));
  const needed = parts.reduce((sum, part) => sum + part.rows * (part.line + 1), 0);
  const raw = await inflate(joined(chunks.get("IDAT") ?? []), "deflate", needed);
  if (raw.length < needed) throw new Error(`the PNG is cut off: ${raw.length} of ${needed} bytes`);
  const step = Math.max(1, (planes * depth) >> 3);
  const samples = new Uint8Array(width * height * planes);
  let at = 0;
  for (const part of parts) {
    const lines = raw.subarray(at, (at += part.rows * (part.line + 1)));
    unfilter(lines, part.line, step);
    place(lines, part, samples, width, planes, depth);
  }
  const tiff = chunks.get("eXIf")?.[0];
  const orientation = tiff === undefined ? 1 : readOrientation(tiff);
  const picture = { height, width, channels: planes, data: samples, orientation };
  const transparent = chunks.get("tRNS")?.[0];
  if (kind === 3) return withPalette(picture, chunks.get("PLTE")?.[0], transparent);
  if (depth < 8) for (let i = 0; i < samples.length; i += 1) samples[i] *= 255 / ((1 << depth) - 1);
  // Pillow has no mode for grey with alpha in 16 bits: there it is RGBA.
  if (kind === 4 && depth === 16) return { ...picture, channels: 4, data: spread(samples) };
  // Nor does it look for a transparent grey in 16 bits.
  const keyed = transparent !== undefined && (kind === 2 || (kind === 0 && depth < 16));
  return keyed ? withKey(picture, transparent, depth) : picture;
}

/** @param {Uint8Array} bytes @returns {Map<string, Uint8Array[]>} */
function readChunks(bytes) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = new Map();
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = data.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IEND") break;
    if (at + 12 + length > bytes.length) throw new Error(`the PNG is cut off in ${name}`);
    if (crc(bytes.subarray(at + 4, at + 8 + length)) !== data.getUint32(at + 8 + length)) {
      throw new Error(`the PNG is damaged in ${name}`);
    }
    chunks.set(name, [...(chunks.get(name) ?? []), bytes.subarray(at + 8, at + 8 + length)]);
    at += 12 + length;
  }
  return chunks;
}

/** @param {Uint8Array} bytes */
function crc(bytes) {
  let value = 0xffffffff;
  for (let at = 0; at < bytes.length; at += 1) value = CRC[(value ^ bytes[at]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/**
 * Undo the filters in place: each line is one byte that names the filter, then `line` bytes.
 * @param {Uint8Array} lines @param {number} line @param {number} step bytes from a pixel to the next
 */
function unfilter(lines, line, step) {
  for (let start = 0; start < lines.length; start += line + 1) {
    const filter = lines[start];
    if (filter > 4) throw new Error(`the PNG has a line filter ${filter}`);
    const above = start - line - 1;
    for (let x = 1; x <= line; x += 1) {
      const left = x > step ? lines[start + x - step] : 0;
      const up = above >= 0 ? lines[above + x] : 0;
      if (filter === 1) lines[start + x] += left;
      else if (filter === 2) lines[start + x] += up;
      else if (filter === 3) lines[start + x] += (left + up) >> 1;
      else if (filter === 4) lines[start + x] += paeth(left, up, above >= 0 && x > step ? lines[above + x - step] : 0);
    }
  }
}

/** @param {number} left @param {number} up @param {number} corner */
function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

/**
 * The samples of a pass at their places; of 16 bits the upper 8.
 * @param {Uint8Array} lines
 * @param {{x: number, y: number, dx: number, dy: number, columns: number, rows: number, line: number}} part
 * @param {Uint8Array} samples @param {number} width @param {number} planes @param {number} depth
 */
function place(lines, part, samples, width, planes, depth) {
  const mask = (1 << depth) - 1;
  for (let row = 0; row < part.rows; row += 1) {
    const start = row * (part.line + 1) + 1;
    for (let column = 0; column < part.columns; column += 1) {
      const to = ((part.y + row * part.dy) * width + part.x + column * part.dx) * planes;
      for (let plane = 0; plane < planes; plane += 1) {
        const at = column * planes + plane;
        if (depth >= 8) samples[to + plane] = lines[start + at * (depth >> 3)];
        else samples[to + plane] = (lines[start + ((at * depth) >> 3)] >> (8 - depth - ((at * depth) & 7))) & mask;
      }
    }
  }
}

/** @param {Picture} picture @param {Uint8Array | undefined} palette @param {Uint8Array | undefined} alphas */
function withPalette(picture, palette, alphas) {
  if (palette === undefined) throw new Error("the PNG has no palette");
  const channels = alphas === undefined ? 3 : 4;
  const data = new Uint8Array(picture.data.length * channels);
  picture.data.forEach((index, at) => {
    for (let plane = 0; plane < 3; plane += 1) data[at * channels + plane] = palette[3 * index + plane] ?? 0;
    if (alphas !== undefined) data[at * 4 + 3] = alphas[index] ?? 255;
  });
  return { ...picture, channels, data };
}

/** One value of grey, or one colour, is transparent. @param {Picture} picture @param {Uint8Array} key @param {number} depth */
function withKey(picture, key, depth) {
  const { channels, data } = picture;
  if (key.length < 2 * channels) throw new Error("the PNG is damaged in tRNS");
  const wanted = Array.from({ length: channels }, (_, plane) => key[2 * plane + 1]);
  if (depth === 1) wanted[0] = wanted[0] || key[0] ? 255 : 0;
  const result = new Uint8Array((data.length / channels) * (channels + 1));
  for (let at = 0, to = 0; at < data.length; at += channels, to += channels + 1) {
    result.set(data.subarray(at, at + channels), to);
    result[to + channels] = wanted.every((value, plane) => data[at + plane] === value) ? 0 : 255;
  }
  return { ...picture, channels: channels + 1, data: result };
}

/** Grey and alpha as RGBA. @param {Uint8Array} samples */
function spread(samples) {
  const data = new Uint8Array(samples.length * 2);
  for (let at = 0; at < samples.length; at += 2) data.set([samples[at], samples[at], samples[at], samples[at + 1]], at * 2);
  return data;
}
