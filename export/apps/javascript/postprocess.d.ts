/**
 * @typedef {import("./steps.js").PostStep} PostStep
 * @typedef {{label: string, index: number, score: number}} Ranked
 */
/**
 * The graph's output for one sample as scores; float64 inside, float32 out.
 * @param {PostStep[]} steps
 * @param {Float32Array | Float64Array} outputs
 * @returns {Float32Array}
 */
export function applyPost(steps: PostStep[], outputs: Float32Array | Float64Array): Float32Array;
/**
 * What the scores say: the best `topK` classes, the labels that are present, or all targets; of a vector nothing.
 * @param {import("./manifest.js").Manifest} manifest
 * @param {Float32Array} scores
 * @param {number} topK
 * @returns {Ranked[]}
 */
export function ranked({ task, labels, postprocess }: import("./manifest.js").Manifest, scores: Float32Array, topK: number): Ranked[];
/**
 * The entropy of probabilities as a share of the largest possible, 0 (sure of one) to 1; null where they are none.
 * @param {Float32Array} scores
 * @returns {number | null}
 */
export function uncertainty(scores: Float32Array): number | null;
/**
 * A vector for people: how many numbers, and the first three.
 * @param {Float32Array} vector
 * @returns {string}
 */
export function shown(vector: Float32Array): string;
export type PostStep = import("./steps.js").PostStep;
export type Ranked = {
    label: string;
    index: number;
    score: number;
};
