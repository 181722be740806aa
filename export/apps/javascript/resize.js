// Resizing as Pillow does it: a separable filter, bytes in fixed point. Source: Pillow, src/libImaging/Resample.c.

/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {{first: number, weights: Float64Array, fixed: Int32Array}} Taps of one new pixel */

const PRECISION_BITS = 22; // 32 - 8 bits of a pixel - 2 for overshoot

/**
 * `image` at `height` x `width`; bytes give bytes, float32 gives float32. Width first: bytes are rounded in between.
 * @param {Image} image
 * @param {number} height
 * @param {number} width
 * @param {"nearest" | "bilinear" | "bicubic"} filter
 * @param {boolean} antialias whether the filter widens with the shrinking
 * @returns {Image}
 */
export function resize(image, height, width, filter, antialias) {
  if (filter === "nearest") return nearest(image, height, width);
  const { channels } = image;
  let { data } = image;
  if (image.width !== width) {
    data = resample(data, taps(image.width, width, filter, antialias), image.height, image.width * channels, channels, channels);
  }
  if (image.height !== height) {
    data = resample(data, taps(image.height, height, filter, antialias), 1, 0, width * channels, width * channels);
  }
  return { height, width, channels, data };
}

/**
 * Along one axis: `lines` apart, each new pixel is `inner` numbers, its sources are `step` apart.
 * @param {Uint8Array | Float32Array} data @param {Taps[]} all
 * @param {number} lines @param {number} line numbers from a line to the next, before
 * @param {number} step @param {number} inner
 */
function resample(data, all, lines, line, step, inner) {
  const count = lines * all.length * inner;
  const bytes = data instanceof Uint8Array;
  const result = bytes ? new Uint8Array(count) : new Float32Array(count);
  const half = 1 << (PRECISION_BITS - 1);
  let to = 0;
  for (let at = 0; at < lines; at += 1) {
    for (const { first, weights, fixed } of all) {
      const start = at * line + first * step;
      for (let channel = 0; channel < inner; channel += 1, to += 1) {
        if (bytes) {
          let total = half;
          for (let tap = 0; tap < fixed.length; tap += 1) total += data[start + tap * step + channel] * fixed[tap];
          total >>= PRECISION_BITS;
          result[to] = total < 0 ? 0 : total > 255 ? 255 : total;
        } else {
          let total = 0;
          for (let tap = 0; tap < weights.length; tap += 1) total += data[start + tap * step + channel] * weights[tap];
          result[to] = total;
        }
      }
    }
  }
  return result;
}

/** @param {number} before @param {number} after @param {"bilinear" | "bicubic"} filter @param {boolean} antialias @returns {Taps[]} */
function taps(before, after, filter, antialias) {
  const scale = before / after;
  const stretch = antialias ? Math.max(scale, 1) : 1;
  const support = (filter === "bilinear" ? 1 : 2) * stretch;
  return Array.from({ length: after }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), before);
    const weights = Float64Array.from({ length: last - first }, (_, tap) =>
      kernel(Math.abs((tap + first - centre + 0.5) / stretch), filter),
    );
    const sum = weights.reduce((total, weight) => total + weight, 0);
    for (let tap = 0; tap < weights.length; tap += 1) weights[tap] /= sum;
    const fixed = Int32Array.from(weights, (weight) => Math.trunc(weight * 2 ** PRECISION_BITS + (weight < 0 ? -0.5 : 0.5)));
    return { first, weights, fixed };
  });
}

/** @param {number} x its distance @param {"bilinear" | "bicubic"} filter */
function kernel(x, filter) {
  if (filter === "bilinear") return Math.max(1 - x, 0);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** @param {Image} image @param {number} height @param {number} width @returns {Image} */
function nearest({ height: rows, width: columns, channels, data }, height, width) {
  const [ys, xs] = [sources(rows, height), sources(columns, width)];
  const result = data instanceof Uint8Array ? new Uint8Array(height * width * channels) : new Float32Array(height * width * channels);
  let to = 0;
  for (const y of ys) {
    for (const x of xs) {
      for (let channel = 0; channel < channels; channel += 1, to += 1) result[to] = data[(y * columns + x) * channels + channel];
    }
  }
  return { height, width, channels, data: result };
}

/** The source of each new pixel, positions summed step by step. @param {number} before @param {number} after */
function sources(before, after) {
  let position = before / after / 2;
  return Array.from({ length: after }, (_, at) => {
    if (at > 0) position += before / after;
    return Math.min(Math.trunc(position), before - 1);
  });
}
