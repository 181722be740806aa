// The entropy-coded part of a JPEG: Huffman codes to coefficients, one pass or progressive. Source: ITU-T T.81, F and G.

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
export function readScan(bytes, start, head, frame, tables, restart) {
  const parts = Array.from({ length: head[0] }, (_, at) => {
    const found = frame.components.find(({ id }) => id === head[1 + 2 * at]);
    if (found === undefined) throw new Error("the JPEG's scan is damaged");
    found.dcTable = tables.dc[head[2 + 2 * at] >> 4];
    found.acTable = tables.ac[head[2 + 2 * at] & 15];
    return found;
  });
  const [from, to, bits] = head.subarray(1 + 2 * head[0]);
  const [high, low] = [bits >> 4, bits & 15];
  const sane = frame.progressive ? from <= to && to < 64 && low < 14 && (from === 0) === (to === 0) : true;
  if (parts.length === 0 || !sane || (from > 0 && parts.length > 1)) throw new Error("the JPEG's scan is damaged");
  const reader = new Bits(bytes, start);
  let skip = 0; // blocks that are known to hold nothing more in this band

  /** @param {Component} part @param {number} at */
  function block(part, at) {
    const values = part.coefficients;
    if (!frame.progressive) return sequential(part, values, at);
    if (from === 0) {
      if (high === 0) {
        part.dc += reader.signed(reader.symbol(part.dcTable));
        values[at] = part.dc << low;
      } else if (reader.bit()) values[at] |= 1 << low;
    } else if (high === 0) first(part, values, at);
    else refine(part, values, at);
  }

  /** @param {Component} part @param {Int16Array} values @param {number} at */
  function sequential(part, values, at) {
    part.dc += reader.signed(reader.symbol(part.dcTable));
    values[at] = part.dc;
    for (let k = 1; k < 64; k += 1) {
      const symbol = reader.symbol(part.acTable);
      const size = symbol & 15;
      if (size === 0 && symbol !== 0xf0) return;
      k += symbol >> 4;
      if (k > 63) throw new Error("the JPEG is damaged");
      if (size > 0) values[at + k] = reader.signed(size);
    }
  }

  /** @param {Component} part @param {Int16Array} values @param {number} at */
  function first(part, values, at) {
    if (skip > 0) {
      skip -= 1;
      return;
    }
    for (let k = from; k <= to; k += 1) {
      const symbol = reader.symbol(part.acTable);
      const [run, size] = [symbol >> 4, symbol & 15];
      if (size === 0 && run < 15) {
        skip = (1 << run) - 1 + (run > 0 ? reader.bits(run) : 0);
        return;
      }
      k += run;
      if (k > 63) throw new Error("the JPEG is damaged");
      if (size > 0) values[at + k] = reader.signed(size) * (1 << low);
    }
  }

  /** @param {Component} part @param {Int16Array} values @param {number} at */
  function refine(part, values, at) {
    const one = 1 << low;
    let k = from;
    if (skip === 0) {
      for (; k <= to; k += 1) {
        const symbol = reader.symbol(part.acTable);
        let run = symbol >> 4;
        let value = 0;
        if ((symbol & 15) !== 0) value = reader.bit() ? one : -one;
        else if (run < 15) {
          skip = (1 << run) + (run > 0 ? reader.bits(run) : 0);
          break;
        }
        for (; k <= to; k += 1) {
          if (values[at + k] !== 0) correct(values, at + k, one);
          else if (run === 0) break;
          else run -= 1;
        }
        if (value !== 0 && k <= to) values[at + k] = value;
      }
    }
    if (skip > 0) {
      for (; k <= to; k += 1) if (values[at + k] !== 0) correct(values, at + k, one);
      skip -= 1;
    }
  }

  /** @param {Int16Array} values @param {number} at @param {number} one */
  function correct(values, at, one) {
    if (reader.bit() && (Math.abs(values[at]) & one) === 0) values[at] += values[at] > 0 ? one : -one;
  }

  const [single] = parts;
  const alone = parts.length === 1;
  const across = alone ? Math.ceil(single.columns / 8) : Math.ceil(frame.width / (8 * frame.maxH));
  const down = alone ? Math.ceil(single.rows / 8) : Math.ceil(frame.height / (8 * frame.maxV));
  for (const part of parts) part.dc = 0;
  for (let unit = 0; unit < across * down; unit += 1) {
    if (restart > 0 && unit > 0 && unit % restart === 0) {
      reader.restart();
      skip = 0;
      for (const part of parts) part.dc = 0;
    }
    const [row, column] = [Math.floor(unit / across), unit % across];
    if (alone) {
      block(single, 64 * (row * single.blocksAcross + column));
      continue;
    }
    for (const part of parts) {
      for (let y = 0; y < part.v; y += 1) {
        for (let x = 0; x < part.h; x += 1) block(part, 64 * ((row * part.v + y) * part.blocksAcross + column * part.h + x));
      }
    }
  }
  return reader.at;
}

class Bits {
  /** @param {Uint8Array} bytes @param {number} at */
  constructor(bytes, at) {
    this.bytes = bytes;
    this.at = at;
    this.held = 0;
    this.count = 0;
  }

  /** @returns {number} 0 or 1 */
  bit() {
    if (this.count === 0) {
      const byte = this.bytes[this.at];
      if (byte === undefined || (byte === 0xff && this.bytes[this.at + 1] !== 0)) throw new Error("the JPEG is cut off");
      this.at += byte === 0xff ? 2 : 1;
      this.held = byte;
      this.count = 8;
    }
    this.count -= 1;
    return (this.held >> this.count) & 1;
  }

  /** @param {number} count @returns {number} */
  bits(count) {
    let value = 0;
    for (let at = 0; at < count; at += 1) value = (value << 1) | this.bit();
    return value;
  }

  /** A number of `size` bits, of which the lower half stands for negative ones. @param {number} size */
  signed(size) {
    if (size === 0) return 0;
    const value = this.bits(size);
    return value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
  }

  /** @param {Huffman | undefined} table @returns {number} */
  symbol(table) {
    if (table === undefined) throw new Error("the JPEG lacks a table");
    for (let length = 1, code = 0; length <= 16; length += 1) {
      code = (code << 1) | this.bit();
      if (code <= table.last[length]) return table.values[table.offset[length] + code - table.first[length]];
    }
    throw new Error("the JPEG is damaged");
  }

  /** Go on behind the next restart marker. */
  restart() {
    this.count = 0;
    if (this.bytes[this.at] !== 0xff || (this.bytes[this.at + 1] & 0xf8) !== 0xd0) throw new Error("the JPEG is damaged");
    this.at += 2;
  }
}
