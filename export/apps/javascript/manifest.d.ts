/**
 * The checked manifest in the bytes of a bundle.json. Throws a `StudentError` that names the field.
 * @param {Uint8Array} bytes
 * @returns {Manifest}
 */
export function parseManifest(bytes: Uint8Array): Manifest;
/**
 * Why `name` must not be opened inside a bundle; null when it may.
 * @param {string} name
 * @returns {string | null}
 */
export function nameProblem(name: string): string | null;
/**
 * The variant that the bundle names for a kind of CPU: the exact kind, else the longest pattern that fits it.
 * @param {Manifest} manifest
 * @param {string} kind "x86_64-vnni", "aarch64", "wasm32", ...
 * @returns {string}
 */
export function defaultVariant(manifest: Manifest, kind: string): string;
/**
 * @typedef {{name: string, dtype: string, shape: (number | string)[]}} TensorSpec
 * @typedef {{abs: number, rel: number, label_agreement: number}} Tolerance
 * @typedef {{graphs: Record<string, string>, tolerance?: Partial<Tolerance>, size_bytes?: number}} Variant
 * @typedef {{file: string, inputs: string[], outputs: Record<string, string[]>, synthetic?: boolean}} Golden
 * @typedef {object} Manifest
 * @property {number} version
 * @property {string} [id]
 * @property {string} name
 * @property {"classification" | "multilabel" | "regression" | "embedding"} task
 * @property {string} [licence]
 * @property {string} [intended_use]
 * @property {string[]} labels
 * @property {TensorSpec[]} inputs
 * @property {TensorSpec[]} outputs
 * @property {import("./steps.js").Step[]} preprocess
 * @property {import("./steps.js").PostStep[]} postprocess
 * @property {Record<string, Variant>} variants
 * @property {Record<string, string>} [default]
 * @property {Golden} golden
 * @property {Record<string, {sha256: string, size_bytes: number}>} files
 */
export const MANIFEST: "bundle.json";
export const MAX_MANIFEST_BYTES: 1000000;
export const MAX_FILE_BYTES: number;
export type TensorSpec = {
    name: string;
    dtype: string;
    shape: (number | string)[];
};
export type Tolerance = {
    abs: number;
    rel: number;
    label_agreement: number;
};
export type Variant = {
    graphs: Record<string, string>;
    tolerance?: Partial<Tolerance>;
    size_bytes?: number;
};
export type Golden = {
    file: string;
    inputs: string[];
    outputs: Record<string, string[]>;
    synthetic?: boolean;
};
export type Manifest = {
    version: number;
    id?: string | undefined;
    name: string;
    task: "classification" | "multilabel" | "regression" | "embedding";
    licence?: string | undefined;
    intended_use?: string | undefined;
    labels: string[];
    inputs: TensorSpec[];
    outputs: TensorSpec[];
    preprocess: import("./steps.js").Step[];
    postprocess: import("./steps.js").PostStep[];
    variants: Record<string, Variant>;
    default?: Record<string, string> | undefined;
    golden: Golden;
    files: Record<string, {
        sha256: string;
        size_bytes: number;
    }>;
};
