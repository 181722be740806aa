/**
 * `image` at `height` x `width`; bytes give bytes, float32 gives float32. Width first: bytes are rounded in between.
 * @param {Image} image
 * @param {number} height
 * @param {number} width
 * @param {"nearest" | "bilinear" | "bicubic"} filter
 * @param {boolean} antialias whether the filter widens with the shrinking
 * @returns {Image}
 */
export function resize(image: Image, height: number, width: number, filter: "nearest" | "bilinear" | "bicubic", antialias: boolean): Image;
export type Image = import("./preprocess.js").Image;
/**
 * of one new pixel
 */
export type Taps = {
    first: number;
    weights: Float64Array;
    fixed: Int32Array;
};
