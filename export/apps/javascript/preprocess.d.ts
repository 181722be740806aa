/**
 * One sample through decode, to_rgb, to_grey, resize and center_crop: (H, W, C), bytes stay bytes.
 * @param {Step[]} steps
 * @param {Uint8Array | Sample} raw the bytes of an image file, or an array
 * @param {import("./images.js").OtherFormats} [others]
 * @returns {Promise<{shape: number[], data: Pixels}>}
 */
export function prepare(steps: Step[], raw: Uint8Array | Sample, others?: import("./images.js").OtherFormats): Promise<{
    shape: number[];
    data: Pixels;
}>;
/**
 * A batch (N, ...) of prepared samples through scale, normalize and layout, in float32.
 * @param {Step[]} steps
 * @param {NdArray} batch
 * @returns {{shape: number[], data: Float32Array}}
 */
export function applyArithmetic(steps: Step[], batch: NdArray): {
    shape: number[];
    data: Float32Array;
};
export type NdArray = import("./archive.js").NdArray;
export type Step = import("./steps.js").Step;
export type Pixels = Uint8Array | Float32Array;
/**
 * rows, then columns, then channels
 */
export type Image = {
    height: number;
    width: number;
    channels: number;
    data: Pixels;
};
/**
 * an array without batch axis; a Uint8Array holds bytes
 */
export type Sample = {
    shape: number[];
    data: ArrayLike<number>;
};
