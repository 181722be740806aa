/**
 * One sample through decode, to_rgb, to_grey, resize and center_crop: (H, W, C), bytes stay bytes.
 * @param {import("./steps.js").Step[]} steps
 * @param {Uint8Array | string | Sample} raw the bytes of an image file, or an array
 * @param {import("./images.js").OtherFormats} [others]
 * @returns {Promise<{shape: number[], data: Pixels}>}
 */
export function prepare(steps: import("./steps.js").Step[], raw: Uint8Array | string | Sample, others?: import("./images.js").OtherFormats): Promise<{
    shape: number[];
    data: Pixels;
}>;
/**
 * The ids (max_length) of a text, padded, and whether it was longer; ids are taken as they are.
 * @param {import("./steps.js").Tokenize} step
 * @param {import("./tokenizer.js").Tokenizer} tokenizer
 * @param {Uint8Array | string | Sample} raw a text, its bytes in UTF-8, or the ids of its tokens
 * @returns {{shape: number[], data: Float32Array, truncated: boolean}}
 */
export function tokenized(step: import("./steps.js").Tokenize, tokenizer: import("./tokenizer.js").Tokenizer, raw: Uint8Array | string | Sample): {
    shape: number[];
    data: Float32Array;
    truncated: boolean;
};
/**
 * A batch (N, ...) of prepared samples through scale, normalize and layout, or of ids through trim, in float32, which
 * holds every id.
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
