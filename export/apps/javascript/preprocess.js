// From an image, text or array to what the model reads: what training did, number for number, and never with a canvas.
import { StudentError } from "./errors.js";
import { decodeImage, withoutAlpha } from "./images.js";
import { resize } from "./resize.js";
import { isSpatial } from "./steps.js";

/**
 * @typedef {import("./archive.js").NdArray} NdArray
 * @typedef {import("./steps.js").Step} Step
 * @typedef {Uint8Array | Float32Array} Pixels
 * @typedef {{height: number, width: number, channels: number, data: Pixels}} Image rows, then columns, then channels
 * @typedef {{shape: number[], data: ArrayLike<number>}} Sample an array without batch axis; a Uint8Array holds bytes
 */

const MAX_SIDE = 16384;
const GREY_WEIGHTS = [19595, 38470, 7471]; // ITU-R 601-2 luma in 1/65536

/**
 * One sample through decode, to_rgb, to_grey, resize and center_crop: (H, W, C), bytes stay bytes.
 * @param {import("./steps.js").Step[]} steps
 * @param {Uint8Array | string | Sample} raw the bytes of an image file, or an array
 * @param {import("./images.js").OtherFormats} [others]
 * @returns {Promise<{shape: number[], data: Pixels}>}
 */
export async function prepare(steps, raw, others) {
  const spatial = /** @type {import("./steps.js").ImageStep[]} */ (steps.filter(isSpatial));
  const first = spatial[0];
  if (typeof raw === "string") throw new StudentError("found a text, but this model reads no texts; pass an image or array");
  let image;
  if (raw instanceof Uint8Array) {
    if (first?.op !== "decode") throw new StudentError("this preprocessing decodes no files; pass {shape, data}");
    image = await decodeImage(raw, first, others);
  } else {
    const { shape, data } = asNumbers(raw);
    if (spatial.length === 0) return { shape, data };
    const [height, width, channels = 1] = shape;
    if (shape.length < 2 || shape.length > 3) {
      throw new StudentError(`found an array of shape ${shape}, expected an image (H, W) or (H, W, C)`);
    }
    image = { height, width, channels, data };
  }
  for (const step of spatial) image = applySpatial(step, image);
  return { shape: [image.height, image.width, image.channels], data: image.data };
}

/**
 * The ids (max_length) of a text, padded, and whether it was longer; ids are taken as they are.
 * @param {import("./steps.js").Tokenize} step
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @param {Uint8Array | string | Sample} raw a text, its bytes in UTF-8, or the ids of its tokens
 * @returns {{shape: number[], data: Float32Array, truncated: boolean}}
 */
export function tokenized(step, tokenizer, raw) {
  const length = step.max_length ?? 128;
  const { ids, truncated } =
    raw instanceof Uint8Array || typeof raw === "string"
      ? tokenizer.encode(asText(raw), length)
      : { ids: asNumbers(raw).data, truncated: false };
  const rare = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= tokenizer.size);
  if (rare !== undefined) throw new StudentError(`found the id ${rare}, expected 0 to ${tokenizer.size - 1}`);
  if (ids.length > length) throw new StudentError(`found ${ids.length} ids, expected a text, or 1 to ${length} ids of tokens`);
  const data = new Float32Array(length).fill(tokenizer.pad);
  data.set(ids);
  return { shape: [length], data, truncated };
}

/** @param {Uint8Array | string} raw */
function asText(raw) {
  if (typeof raw === "string") return raw;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw);
  } catch {
    throw new StudentError("the text is not valid UTF-8; decode it first, and pass it as a string");
  }
}

/** @param {Sample} raw @returns {{shape: number[], data: Pixels}} */
function asNumbers(raw) {
  const { shape, data } = raw ?? {};
  const sound = Array.isArray(shape) && shape.every((side) => Number.isInteger(side) && side > 0);
  const count = sound ? shape.reduce((product, side) => product * side, 1) : 0;
  if (!sound || shape.length === 0 || data?.length !== count) {
    throw new StudentError("expected an image file, or {shape, data} with as many numbers as the shape says");
  }
  const bytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  return { shape, data: bytes ? new Uint8Array(data.buffer, data.byteOffset, data.length) : Float32Array.from(data) };
}

/** @param {import("./steps.js").ImageStep} step @param {Image} image @returns {Image} */
function applySpatial(step, image) {
  const { channels, data, height, width } = image;
  switch (step.op) {
    case "decode":
      return data instanceof Uint8Array && [2, 4].includes(channels) ? withoutAlpha(image, step) : image;
    case "to_rgb":
    case "to_grey":
      if (channels !== 1 && channels !== 3) {
        throw new StudentError(`${step.op}: found ${channels} channels, expected 1 or 3`);
      }
      if (step.op === "to_grey") return channels === 1 ? image : toGrey(image);
      return channels === 3 ? image : { ...image, channels: 3, data: tripled(data) };
    case "resize": {
      const [tall, wide] = targetSize(step.size, height, width);
      return resize(image, tall, wide, step.filter ?? "bilinear", step.antialias ?? true);
    }
    case "center_crop":
      return crop(image, ...step.size);
  }
}

/** @param {Pixels} data @returns {Pixels} */
function tripled(data) {
  const result = data instanceof Uint8Array ? new Uint8Array(3 * data.length) : new Float32Array(3 * data.length);
  for (let at = 0; at < result.length; at += 1) result[at] = data[Math.floor(at / 3)];
  return result;
}

/** @param {Image} image @returns {Image} */
function toGrey({ height, width, data }) {
  const bytes = data instanceof Uint8Array;
  const result = bytes ? new Uint8Array(height * width) : new Float32Array(height * width);
  const [red, green, blue] = GREY_WEIGHTS;
  for (let at = 0; at < result.length; at += 1) {
    const [r, g, b] = [data[3 * at], data[3 * at + 1], data[3 * at + 2]];
    result[at] = bytes
      ? (r * red + g * green + b * blue + 0x8000) >> 16
      : r * (red / 65536) + g * (green / 65536) + b * (blue / 65536);
  }
  return { height, width, channels: 1, data: result };
}

/** @param {number | [number, number]} size @param {number} height @param {number} width @returns {[number, number]} */
function targetSize(size, height, width) {
  if (typeof size !== "number") return size;
  const longer = Math.floor((size * Math.max(height, width)) / Math.min(height, width));
  if (longer > MAX_SIDE) {
    throw new StudentError(
      `resize: an image of ${height} x ${width} with its shorter side at ${size} would be ${longer} pixels long, ` +
        `expected at most ${MAX_SIDE}; crop it first`,
    );
  }
  return height <= width ? [size, longer] : [longer, size];
}

/** @param {Image} image @param {number} tall @param {number} wide @returns {Image} */
function crop({ height, width, channels, data }, tall, wide) {
  if (height < tall || width < wide) {
    throw new StudentError(`center_crop: found an image of ${height} x ${width}, expected at least ${tall} x ${wide}`);
  }
  const [top, left] = [halfToEven(height - tall), halfToEven(width - wide)];
  const line = wide * channels;
  const result = data instanceof Uint8Array ? new Uint8Array(tall * line) : new Float32Array(tall * line);
  for (let row = 0; row < tall; row += 1) {
    const from = ((top + row) * width + left) * channels;
    result.set(data.subarray(from, from + line), row * line);
  }
  return { height: tall, width: wide, channels, data: result };
}

/** Half of a whole number, a half rounded to the even side. @param {number} twice */
function halfToEven(twice) {
  const low = Math.floor(twice / 2);
  return twice % 2 === 1 && low % 2 === 1 ? low + 1 : low;
}

/**
 * A batch (N, ...) of prepared samples through scale, normalize and layout, or of ids through trim, in float32, which
 * holds every id.
 * @param {Step[]} steps
 * @param {NdArray} batch
 * @returns {{shape: number[], data: Float32Array}}
 */
export function applyArithmetic(steps, batch) {
  const arithmetic = steps.filter((step) => !isSpatial(step));
  let { shape } = batch;
  let data = Float32Array.from(batch.data);
  if (shape.length === 3 && arithmetic.some((step) => step.op === "layout" && step.to !== "flat")) shape = [...shape, 1];
  for (const step of arithmetic) {
    if (step.op === "scale") {
      const factor = Math.fround(step.factor ?? 1 / 255);
      data = data.map((value) => value * factor);
    } else if (step.op === "normalize") {
      normalize(data, shape, step);
    } else if (step.op === "layout") {
      [shape, data] = layOut(data, shape, step.to ?? "CHW");
    } else if (step.op === "trim") {
      [shape, data] = trim(data, shape, step.pad);
    }
  }
  return { shape, data };
}

/**
 * Without the columns at the end that are padding in every row; one stays.
 * @param {Float32Array<ArrayBuffer>} data @param {number[]} shape @param {number} pad @returns {[number[], Float32Array<ArrayBuffer>]}
 */
function trim(data, shape, pad) {
  const [count, width] = /** @type {[number, number]} */ (shape);
  if (shape.length !== 2) throw new StudentError(`trim: found the shape ${shape}, expected ids (N, T)`);
  let kept = 1;
  data.forEach((id, at) => {
    if (id !== pad) kept = Math.max(kept, (at % width) + 1);
  });
  const result = new Float32Array(count * kept);
  for (let row = 0; row < count; row += 1) result.set(data.subarray(row * width, row * width + kept), row * kept);
  return [[count, kept], result];
}

/** @param {Float32Array} data @param {number[]} shape @param {{mean?: number[], std?: number[]}} step */
function normalize(data, shape, { mean: means = [0], std: stds = [1] }) {
  const last = /** @type {number} */ (shape[shape.length - 1]);
  if ([means, stds].some(({ length }) => length !== 1 && length !== last)) {
    throw new StudentError(`normalize: ${means.length} mean and ${stds.length} std for a last axis of ${last}`);
  }
  const mean = Float32Array.from({ length: last }, (_, at) => means[means.length === 1 ? 0 : at]);
  const std = Float32Array.from({ length: last }, (_, at) => stds[stds.length === 1 ? 0 : at]);
  for (let at = 0; at < data.length; at += 1) data[at] = Math.fround(data[at] - mean[at % last]) / std[at % last];
}

/** @param {Float32Array<ArrayBuffer>} data @param {number[]} shape @param {"CHW" | "HWC" | "flat"} to @returns {[number[], Float32Array<ArrayBuffer>]} */
function layOut(data, shape, to) {
  const [count, height, width, channels] = /** @type {[number, number, number, number]} */ (shape);
  if (to === "flat") return [[count, shape.slice(1).reduce((product, side) => product * side, 1)], data];
  if (shape.length !== 4) throw new StudentError(`layout ${to}: found the shape ${shape}, expected images (N, H, W, C)`);
  if (to === "HWC") return [shape, data];
  const result = new Float32Array(data.length);
  const area = height * width;
  for (let at = 0, sample = 0; sample < count; sample += 1) {
    for (let pixel = 0; pixel < area; pixel += 1) {
      for (let channel = 0; channel < channels; channel += 1, at += 1) {
        result[(sample * channels + channel) * area + pixel] = data[at];
      }
    }
  }
  return [[count, channels, height, width], result];
}
