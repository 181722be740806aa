// JPEG to bytes (baseline and progressive, 8 bits): the whole numbers of libjpeg's accurate DCT and its smooth upsampling,
// so that a student sees the pixels that Pillow showed it in training, whichever browser it is in.
// Sources: ITU-T T.81; libjpeg's jidctint.c, jdsample.c and jdcolor.c for the arithmetic.
import { readScan } from "./jpeg_scans.js";

/**
 * @typedef {object} Component
 * @property {number} id
 * @property {number} h samples across, of one unit
 * @property {number} v samples down
 * @property {Uint16Array} quantization in the order of the file, zigzag; filled in when the first scan starts
 * @property {number} table which quantization
 * @property {number} columns samples across, of the picture
 * @property {number} rows
 * @property {number} blocksAcross with those that only fill up units
 * @property {number} blocksDown
 * @property {Int16Array} coefficients 64 for each block, zigzag
 * @property {number} dc
 * @property {import("./jpeg_scans.js").Huffman | undefined} dcTable
 * @property {import("./jpeg_scans.js").Huffman | undefined} acTable
 * @typedef {object} Frame
 * @property {boolean} progressive
 * @property {number} height
 * @property {number} width
 * @property {number} maxH
 * @property {number} maxV
 * @property {Component[]} components
 */

const ZIGZAG = Uint8Array.from([
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
  35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55,
  62, 63,
]);

/** @param {Uint8Array} bytes */
export function isJpeg(bytes) {
  return bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;
}

/**
 * A JPEG with 1 (grey) or 3 (RGB) channels. Throws an Error that says what is damaged or not supported.
 * @param {Uint8Array} bytes
 * @param {{maxPixels: number, readOrientation: (tiff: Uint8Array) => number}} options
 * @returns {import("./png.js").Picture}
 */
export function decodeJpeg(bytes, { maxPixels, readOrientation }) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** @type {Uint16Array[]} */
  const quantizations = [];
  /** @type {{dc: import("./jpeg_scans.js").Huffman[], ac: import("./jpeg_scans.js").Huffman[]}} */
  const tables = { dc: [], ac: [] };
  /** @type {Frame | undefined} */
  let frame;
  let [restart, orientation, adobe, scans] = [0, 1, -1, 0];
  let jfif = false;
  for (let at = 2; ; ) {
    while (at < bytes.length && bytes[at] !== 0xff) at += 1;
    while (bytes[at] === 0xff) at += 1;
    const marker = bytes[at];
    at += 1;
    if (marker === 0xd9 && scans > 0) break;
    if (at + 2 > bytes.length) throw new Error("the JPEG is cut off");
    if (marker === 0x01 || marker === 0 || (marker >= 0xd0 && marker <= 0xd8)) continue;
    const end = at + data.getUint16(at);
    const part = bytes.subarray(at + 2, end);
    if (end > bytes.length) throw new Error("the JPEG is cut off");
    if (marker === 0xdb) readQuantizations(part, quantizations);
    else if (marker === 0xc4) readHuffman(part, tables);
    else if (marker === 0xdd) restart = (part[0] << 8) | part[1];
    else if (marker === 0xe0) jfif ||= starts(part, "JFIF");
    else if (marker === 0xee && starts(part, "Adobe")) adobe = part[11];
    else if (marker === 0xe1 && starts(part, "Exif\0")) orientation = readOrientation(part.subarray(6));
    else if (marker >= 0xc0 && marker <= 0xcf && marker !== 0xc8 && marker !== 0xcc) {
      if (marker > 0xc2) throw new Error("this kind of JPEG (lossless or arithmetic) is not supported; save it as baseline");
      if (frame !== undefined) throw new Error("the JPEG holds two frames");
      frame = readFrame(part, marker === 0xc2, maxPixels);
    } else if (marker === 0xda) {
      if (frame === undefined) throw new Error("the JPEG has no frame");
      for (const component of frame.components) {
        if (component.quantization.length === 0 && quantizations[component.table] !== undefined) {
          component.quantization = quantizations[component.table];
        }
      }
      at = readScan(bytes, end, part, frame, tables, restart);
      scans += 1;
      continue;
    }
    at = end;
  }
  if (frame === undefined) throw new Error("the JPEG has no frame");
  const planes = frame.components.map((component) => upsample(component, frame.maxH, frame.maxV, frame));
  const channels = planes.length === 1 ? 1 : 3;
  return { height: frame.height, width: frame.width, channels, data: colours(planes, frame, adobe, jfif), orientation };
}

/** @param {Uint8Array} part @param {string} text */
function starts(part, text) {
  return [...text].every((letter, at) => part[at] === letter.charCodeAt(0));
}

/** @param {Uint8Array} part @param {Uint16Array[]} quantizations */
function readQuantizations(part, quantizations) {
  for (let at = 0; at < part.length; ) {
    const [wide, number] = [part[at] >> 4, part[at] & 15];
    if (wide > 1 || number > 3 || at + 1 + 64 * (wide + 1) > part.length) throw new Error("the JPEG's tables are damaged");
    const from = at + 1;
    quantizations[number] = Uint16Array.from({ length: 64 }, (_, i) =>
      wide ? (part[from + 2 * i] << 8) | part[from + 2 * i + 1] : part[from + i],
    );
    at += 1 + 64 * (wide + 1);
  }
}

/** @param {Uint8Array} part @param {{dc: import("./jpeg_scans.js").Huffman[], ac: import("./jpeg_scans.js").Huffman[]}} tables */
function readHuffman(part, tables) {
  for (let at = 0; at < part.length; ) {
    const [kind, number] = [part[at] >> 4, part[at] & 15];
    const counts = part.subarray(at + 1, at + 17);
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (kind > 1 || number > 3 || total > 256 || at + 17 + total > part.length) {
      throw new Error("the JPEG's tables are damaged");
    }
    const table = { values: part.subarray(at + 17, at + 17 + total), first: new Int32Array(17), last: new Int32Array(17).fill(-1), offset: new Int32Array(17) };
    for (let length = 1, code = 0, index = 0; length <= 16; length += 1, code <<= 1) {
      const count = counts[length - 1];
      table.first[length] = code;
      table.offset[length] = index;
      if (count > 0) table.last[length] = code + count - 1;
      code += count;
      index += count;
    }
    tables[kind === 0 ? "dc" : "ac"][number] = table;
    at += 17 + total;
  }
}

/** @param {Uint8Array} part @param {boolean} progressive @param {number} maxPixels @returns {Frame} */
function readFrame(part, progressive, maxPixels) {
  const [height, width, count] = [(part[1] << 8) | part[2], (part[3] << 8) | part[4], part[5]];
  if (part[0] !== 8) throw new Error(`a JPEG of ${part[0]} bits is not supported; save it with 8`);
  if (![1, 3, 4].includes(count) || part.length < 6 + 3 * count) throw new Error(`a JPEG of ${count} channels is not supported`);
  if (height === 0 || width === 0) throw new Error("the JPEG has no pixels");
  if (width * height > maxPixels) throw new Error(`${width} x ${height} pixels, expected at most ${maxPixels}`);
  const told = Array.from({ length: count }, (_, at) => part.subarray(6 + 3 * at, 9 + 3 * at));
  const factors = told.map((entry) => ({ id: entry[0], h: entry[1] >> 4, v: entry[1] & 15, table: entry[2] & 3 }));
  if (factors.some(({ h, v }) => h < 1 || h > 4 || v < 1 || v > 4)) throw new Error("the JPEG's frame is damaged");
  const [maxH, maxV] = [Math.max(...factors.map((one) => one.h)), Math.max(...factors.map((one) => one.v))];
  const components = factors.map((one) => {
    const blocksAcross = Math.ceil(width / (8 * maxH)) * one.h;
    const blocksDown = Math.ceil(height / (8 * maxV)) * one.v;
    return {
      ...one,
      quantization: new Uint16Array(0),
      columns: Math.ceil((width * one.h) / maxH),
      rows: Math.ceil((height * one.v) / maxV),
      blocksAcross,
      blocksDown,
      coefficients: new Int16Array(64 * blocksAcross * blocksDown),
      dc: 0,
      dcTable: undefined,
      acTable: undefined,
    };
  });
  return { progressive, height, width, maxH, maxV, components };
}

/** The samples of a component, blocks side by side. @param {Component} component @returns {Uint8Array} */
function samples({ quantization, coefficients, blocksAcross, blocksDown }) {
  if (quantization.length === 0) throw new Error("the JPEG lacks a table");
  const stride = blocksAcross * 8;
  const plane = new Uint8Array(stride * blocksDown * 8);
  const block = new Int32Array(64);
  for (let down = 0, at = 0; down < blocksDown; down += 1) {
    for (let across = 0; across < blocksAcross; across += 1, at += 64) {
      for (let i = 0; i < 64; i += 1) block[ZIGZAG[i]] = coefficients[at + i] * quantization[i];
      inverse(block, plane, down * 8 * stride + across * 8, stride);
    }
  }
  return plane;
}

/**
 * The inverse DCT in whole numbers: 13 bits of fraction, 2 of them kept between the passes.
 * @param {Int32Array} block @param {Uint8Array} plane @param {number} start @param {number} stride
 */
function inverse(block, plane, start, stride) {
  for (let pass = 0; pass < 2; pass += 1) {
    const [step, across] = pass === 0 ? [8, 1] : [1, 8];
    const shift = pass === 0 ? 11 : 18;
    const round = 1 << (shift - 1);
    for (let line = 0; line < 8; line += 1) {
      const at = line * across;
      const z1 = Math.imul(block[at + 2 * step] + block[at + 6 * step], 4433);
      const even2 = (z1 - Math.imul(block[at + 6 * step], 15137)) | 0;
      const even3 = (z1 + Math.imul(block[at + 2 * step], 6270)) | 0;
      const even0 = (block[at] + block[at + 4 * step]) << 13;
      const even1 = (block[at] - block[at + 4 * step]) << 13;
      const [a0, a3, a1, a2] = [even0 + even3, even0 - even3, even1 + even2, even1 - even2];
      const [x7, x5, x3, x1] = [block[at + 7 * step], block[at + 5 * step], block[at + 3 * step], block[at + step]];
      const z5 = Math.imul(x7 + x3 + x5 + x1, 9633);
      const y1 = Math.imul(x7 + x1, -7373);
      const y2 = Math.imul(x5 + x3, -20995);
      const y3 = Math.imul(x7 + x3, -16069) + z5;
      const y4 = Math.imul(x5 + x1, -3196) + z5;
      const b0 = (Math.imul(x7, 2446) + y1 + y3) | 0;
      const b1 = (Math.imul(x5, 16819) + y2 + y4) | 0;
      const b2 = (Math.imul(x3, 25172) + y2 + y3) | 0;
      const b3 = (Math.imul(x1, 12299) + y1 + y4) | 0;
      block[at] = (a0 + b3 + round) >> shift;
      block[at + 7 * step] = (a0 - b3 + round) >> shift;
      block[at + step] = (a1 + b2 + round) >> shift;
      block[at + 6 * step] = (a1 - b2 + round) >> shift;
      block[at + 2 * step] = (a2 + b1 + round) >> shift;
      block[at + 5 * step] = (a2 - b1 + round) >> shift;
      block[at + 3 * step] = (a3 + b0 + round) >> shift;
      block[at + 4 * step] = (a3 - b0 + round) >> shift;
    }
  }
  for (let i = 0; i < 64; i += 1) plane[start + (i >> 3) * stride + (i & 7)] = clamp(block[i] + 128);
}

/** @param {number} value */
function clamp(value) {
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/**
 * A component at the picture's size. Twice as many samples are made by a triangle, others are repeated.
 * @param {Component} component @param {number} maxH @param {number} maxV @param {Frame} frame
 * @returns {{data: Uint8Array, stride: number}}
 */
function upsample(component, maxH, maxV, frame) {
  const plane = samples(component);
  const stride = component.blocksAcross * 8;
  const [across, down] = [maxH / component.h, maxV / component.v];
  const { columns, rows } = component;
  const { width, height } = frame;
  if (across === 1 && down === 1) return { data: plane, stride };
  const wide = columns * across + 1;
  const result = new Uint8Array(wide * height);
  const smooth = across === 2 && columns > 2;
  const sums = new Int32Array(columns);
  for (let y = 0; y < height; y += 1) {
    const row = Math.min(rows - 1, Math.floor(y / down));
    const other = Math.min(rows - 1, Math.max(0, y % 2 === 0 ? row - 1 : row + 1));
    const to = y * wide;
    if (down === 2 && (smooth || across === 1)) {
      for (let x = 0; x < columns; x += 1) sums[x] = 3 * plane[row * stride + x] + plane[other * stride + x];
      if (across === 1) {
        const bias = y % 2 === 0 ? 1 : 2;
        for (let x = 0; x < columns; x += 1) result[to + x] = (sums[x] + bias) >> 2;
      } else triangle(sums, columns, result, to, 4, 8, 7);
    } else if (down === 1 && smooth) {
      for (let x = 0; x < columns; x += 1) sums[x] = plane[row * stride + x];
      triangle(sums, columns, result, to, 2, 1, 2);
    } else {
      for (let x = 0; x < width; x += 1) result[to + x] = plane[row * stride + Math.min(columns - 1, Math.floor(x / across))];
    }
  }
  return { data: result, stride: wide };
}

/**
 * Two samples for each, weighted 3 to 1 with the neighbour on their side.
 * @param {Int32Array} sums @param {number} count @param {Uint8Array} result @param {number} to
 * @param {number} shift @param {number} left what rounds the left one @param {number} right
 */
function triangle(sums, count, result, to, shift, left, right) {
  for (let x = 0; x < count; x += 1) {
    const before = sums[x === 0 ? 0 : x - 1];
    const after = sums[x === count - 1 ? x : x + 1];
    result[to + 2 * x] = (3 * sums[x] + before + left) >> shift;
    result[to + 2 * x + 1] = (3 * sums[x] + after + right) >> shift;
  }
}

/**
 * The planes as grey or RGB; CMYK is taken as Adobe writes it, inverted.
 * @param {{data: Uint8Array, stride: number}[]} planes @param {Frame} frame @param {number} adobe @param {boolean} jfif
 */
function colours(planes, { height, width, components }, adobe, jfif) {
  const count = planes.length;
  const result = new Uint8Array(height * width * (count === 1 ? 1 : 3));
  const named = components.map(({ id }) => String.fromCharCode(id)).join("");
  const luma = count === 3 ? jfif || adobe === 1 || (adobe === -1 && named !== "RGB") : adobe === 2;
  let to = 0;
  for (let row = 0; row < height; row += 1) {
    const at = planes.map(({ stride }) => row * stride);
    for (let x = 0; x < width; x += 1) {
      let a = planes[0].data[at[0] + x];
      if (count === 1) {
        result[to++] = a;
        continue;
      }
      let b = planes[1].data[at[1] + x];
      let c = planes[2].data[at[2] + x];
      if (luma) {
        const [y, cb, cr] = [a, b - 128, c - 128];
        a = clamp(y + ((91881 * cr + 32768) >> 16));
        b = clamp(y + ((-22554 * cb - 46802 * cr + 32768) >> 16));
        c = clamp(y + ((116130 * cb + 32768) >> 16));
      }
      if (count === 4) {
        // YCCK holds 255 - RGB; Pillow inverts all four, then takes ink and black off white.
        const black = planes[3].data[at[3] + x];
        const ink = luma ? [a, b, c] : [255 - a, 255 - b, 255 - c];
        [a, b, c] = ink.map((value) => clamp(black - divided(value * black)));
      }
      result[to++] = a;
      result[to++] = b;
      result[to++] = c;
    }
  }
  return result;
}

/** `product` / 255, rounded. @param {number} product */
function divided(product) {
  const shifted = product + 128;
  return ((shifted >> 8) + shifted) >> 8;
}
