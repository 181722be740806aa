export class Student {
    /**
     * Load a variant of a bundle. Throws a `StudentError` that says what is wrong.
     * @param {Files} files
     * @param {Runtime} runtime
     * @param {Options & {kind: string, others?: import("./images.js").OtherFormats}} options `kind` of the machine:
     *   "wasm32", "x86_64-vnni", ...; `others` decodes what is neither PNG nor JPEG
     * @returns {Promise<Student>}
     */
    static open(files: Files, runtime: Runtime, { variant, threads, kind, others }: Options & {
        kind: string;
        others?: import("./images.js").OtherFormats;
    }): Promise<Student>;
    /**
     * @param {Files} files
     * @param {Runtime} runtime
     * @param {Session} session
     * @param {string} variant
     * @param {import("./images.js").OtherFormats | undefined} others
     * @param {Tokenizer | null} tokenizer of a model of texts
     * @param {boolean} oneByOne whether a sample's answer would depend on its neighbours in a call
     */
    constructor(files: Files, runtime: Runtime, session: Session, variant: string, others: import("./images.js").OtherFormats | undefined, tokenizer: Tokenizer | null, oneByOne: boolean);
    manifest: import("./manifest.js").Manifest;
    labels: string[];
    variant: string;
    /** @private */
    private _files;
    /** @private */
    private _runtime;
    /** @private @type {Session | null} */
    private _session;
    /** Whether samples are texts: as many tokens as are read, else null. @type {number | null} */
    maxTokens: number | null;
    /** @private */
    private _others;
    /** @private */
    private _tokenizer;
    /** @private */
    private _oneByOne;
    /**
     * The answer for one sample: a text; the bytes of an image file, a Blob or File; or {shape, data} without batch axis.
     * @param {string | Uint8Array | ArrayBuffer | Blob | Sample} x
     * @param {{topK?: number}} [options]
     * @returns {Promise<Answer>}
     */
    predict(x: string | Uint8Array | ArrayBuffer | Blob | Sample, options?: {
        topK?: number;
    }): Promise<Answer>;
    /**
     * The answers for several samples of one shape, in their order: those of `predict`, run together if possible.
     * @param {(string | Uint8Array | ArrayBuffer | Blob | Sample)[]} xs
     * @param {{topK?: number}} [options]
     * @returns {Promise<Answer[]>}
     */
    predictBatch(xs: (string | Uint8Array | ArrayBuffer | Blob | Sample)[], { topK }?: {
        topK?: number;
    }): Promise<Answer[]>;
    /**
     * The graph's outputs for preprocessed inputs (N, ...); a graph with a fixed batch gets them in pieces.
     * @param {{shape: number[], data: Float32Array}} batch
     * @returns {Promise<Map<string, {shape: number[], data: any}>>}
     */
    run({ shape, data }: {
        shape: number[];
        data: Float32Array;
    }): Promise<Map<string, {
        shape: number[];
        data: any;
    }>>;
    /** Run once on zeros, so that the first answer is not the slow one. */
    warmUp(): Promise<void>;
    /**
     * The bundle's golden vectors through this machine's preprocessing and runtime.
     * @returns {Promise<SelfTest>}
     */
    selfTest(): Promise<SelfTest>;
    /** Free the model. */
    close(): Promise<void>;
    /**
     * @private
     * @param {string | Uint8Array | Sample} raw
     * @returns {Promise<Prepared>}
     */
    private _prepare;
    /**
     * @private
     * @param {Map<string, {shape: number[], data: any}>} all
     * @param {number} row
     * @param {number} topK
     */
    private _answer;
}
export type NdArray = import("./archive.js").NdArray;
export type Files = import("./files.js").Files;
export type Sample = import("./preprocess.js").Sample;
export type Prepared = {
    shape: number[];
    data: Uint8Array | Float32Array;
    truncated?: boolean;
};
export type Tensor = {
    dims: readonly number[];
    data: any;
    dispose?: () => void;
};
export type Session = {
    outputNames: readonly string[];
    run(feeds: Record<string, any>): Promise<Record<string, any>>;
    release(): Promise<void>;
};
/**
 * what is used of onnxruntime-web and onnxruntime-node
 */
export type Runtime = {
    InferenceSession: {
        create(graph: Uint8Array, options: Record<string, any>): Promise<Session>;
    };
    Tensor: new (type: any, data: any, dims: readonly number[]) => Tensor;
};
export type Options = {
    /**
     * default: the bundle's choice for this machine
     */
    variant?: string | undefined;
    /**
     * default: 1
     */
    threads?: number | undefined;
};
export type Answer = {
    /**
     * the best one; null where a multilabel model finds none present, and for an embedding
     */
    label: string | null;
    index: number | null;
    /**
     * of the label; of an embedding the length of its vector
     */
    score: number;
    /**
     * the topK classes, the labels that are present, or all targets
     */
    top: import("./postprocess.js").Ranked[];
    /**
     * of probabilities: 0 (sure of one class) to 1 (all alike)
     */
    uncertainty: number | null;
    /**
     * what the graph gave for this sample, by name: the
     * vector of an embedding
     */
    outputs: Record<string, {
        shape: number[];
        data: any;
    }>;
    /**
     * preprocessing, inference and postprocessing; in a batch, its share of the whole
     */
    latencyMs: number;
    /**
     * whether the text was longer than the model reads: its end was not looked at
     */
    truncated: boolean;
};
export type SelfTest = {
    variant: string;
    ok: boolean;
    maxAbsDiff: number;
    samples: number;
    problems: string[];
};
import { Tokenizer } from "./tokenizer.js";
