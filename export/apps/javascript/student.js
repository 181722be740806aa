// A student: a bundle, opened, with one variant loaded. Runs on onnxruntime-web and onnxruntime-node alike.
import { FRESH, StudentError, told } from "./errors.js";
import { defaultVariant } from "./manifest.js";
import { applyPost, ranked, uncertainty } from "./postprocess.js";
import { applyArithmetic, prepare, tokenized } from "./preprocess.js";
import { tokenizeStep } from "./steps.js";
import { Tokenizer } from "./tokenizer.js";

/**
 * @typedef {import("./archive.js").NdArray} NdArray
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./preprocess.js").Sample} Sample
 * @typedef {{shape: number[], data: Uint8Array | Float32Array, truncated?: boolean}} Prepared
 * @typedef {{dims: readonly number[], data: any, dispose?: () => void}} Tensor
 * @typedef {{outputNames: readonly string[], run(feeds: Record<string, any>): Promise<Record<string, any>>, release(): Promise<void>}} Session
 * @typedef {object} Runtime what is used of onnxruntime-web and onnxruntime-node
 * @property {{create(graph: Uint8Array, options: Record<string, any>): Promise<Session>}} InferenceSession
 * @property {new (type: any, data: any, dims: readonly number[]) => Tensor} Tensor
 *
 * @typedef {object} Options
 * @property {string} [variant] default: the bundle's choice for this machine
 * @property {number} [threads] default: 1
 *
 * @typedef {object} Answer
 * @property {string | null} label the best one; null where a multilabel model finds none present, and for an embedding
 * @property {number | null} index
 * @property {number} score of the label; of an embedding the length of its vector
 * @property {import("./postprocess.js").Ranked[]} top the topK classes, the labels that are present, or all targets
 * @property {number | null} uncertainty of probabilities: 0 (sure of one class) to 1 (all alike)
 * @property {Record<string, {shape: number[], data: any}>} outputs what the graph gave for this sample, by name: the
 *   vector of an embedding
 * @property {number} latencyMs preprocessing, inference and postprocessing; in a batch, its share of the whole
 * @property {boolean} truncated whether the text was longer than the model reads: its end was not looked at
 *
 * @typedef {object} SelfTest
 * @property {string} variant
 * @property {boolean} ok
 * @property {number} maxAbsDiff
 * @property {number} samples
 * @property {string[]} problems
 */

const DEFAULT_TOLERANCE = { abs: 1e-4, rel: 1e-3, label_agreement: 1 };
/** @type {Record<string, (data: Float32Array) => any>} */
const AS_DTYPE = {
  float32: (data) => data,
  float64: (data) => Float64Array.from(data),
  uint8: asBytes,
  int8: (data) => Int8Array.from(data),
  int32: (data) => Int32Array.from(data),
  int64: (data) => BigInt64Array.from(data, (value) => BigInt(Math.trunc(value))),
};

export class Student {
  /**
   * Load a variant of a bundle. Throws a `StudentError` that says what is wrong.
   * @param {Files} files
   * @param {Runtime} runtime
   * @param {Options & {kind: string, others?: import("./images.js").OtherFormats}} options `kind` of the machine:
   *   "wasm32", "x86_64-vnni", ...; `others` decodes what is neither PNG nor JPEG
   * @returns {Promise<Student>}
   */
  static async open(files, runtime, { variant, threads = 1, kind, others }) {
    const { manifest } = files;
    const name = variant ?? defaultVariant(manifest, kind);
    const entry = manifest.variants[name];
    if (entry === undefined) {
      throw new StudentError(`no variant '${name}', expected one of ${Object.keys(manifest.variants).join(", ")}`, 2);
    }
    if (entry.graphs.main === undefined) throw new StudentError(`the variant '${name}' has no graph 'main'; ${FRESH}`);
    const graph = await files.read(entry.graphs.main);
    const oneByOne = measures(graph);
    let session;
    try {
      session = await runtime.InferenceSession.create(graph, {
        executionProviders: ["cpu"],
        intraOpNumThreads: threads,
        interOpNumThreads: 1,
        logSeverityLevel: 4,
      });
    } catch (error) {
      throw new StudentError(`onnxruntime cannot load the graph of '${name}' (${told(error)}); ${FRESH}`);
    }
    const text = tokenizeStep(manifest.preprocess);
    const tokenizer = text === undefined ? null : new Tokenizer(await files.read(text.file));
    return new Student(files, runtime, session, name, others, tokenizer, oneByOne);
  }

  /**
   * @param {Files} files
   * @param {Runtime} runtime
   * @param {Session} session
   * @param {string} variant
   * @param {import("./images.js").OtherFormats | undefined} others
   * @param {Tokenizer | null} tokenizer of a model of texts
   * @param {boolean} oneByOne whether a sample's answer would depend on its neighbours in a call
   */
  constructor(files, runtime, session, variant, others, tokenizer, oneByOne) {
    this.manifest = files.manifest;
    this.labels = files.manifest.labels;
    this.variant = variant;
    /** @private */
    this._files = files;
    /** @private */
    this._runtime = runtime;
    /** @private @type {Session | null} */
    this._session = session;
    /** Whether samples are texts: as many tokens as are read, else null. @type {number | null} */
    this.maxTokens = tokenizer === null ? null : (tokenizeStep(this.manifest.preprocess)?.max_length ?? 128);
    /** @private */
    this._others = others;
    /** @private */
    this._tokenizer = tokenizer;
    /** @private */
    this._oneByOne = oneByOne;
  }

  /**
   * The answer for one sample: a text; the bytes of an image file, a Blob or File; or {shape, data} without batch axis.
   * @param {string | Uint8Array | ArrayBuffer | Blob | Sample} x
   * @param {{topK?: number}} [options]
   * @returns {Promise<Answer>}
   */
  async predict(x, options) {
    const [answer] = await this.predictBatch([x], options);
    return /** @type {Answer} */ (answer);
  }

  /**
   * The answers for several samples of one shape, in their order: those of `predict`, run together if possible.
   * @param {(string | Uint8Array | ArrayBuffer | Blob | Sample)[]} xs
   * @param {{topK?: number}} [options]
   * @returns {Promise<Answer[]>}
   */
  async predictBatch(xs, { topK = 1 } = {}) {
    if (!Number.isInteger(topK) || topK < 1) throw new StudentError(`topK is ${topK}, expected a whole number from 1`, 2);
    if (xs.length === 0) return [];
    if (this._oneByOne && xs.length > 1) {
      const answers = [];
      for (const x of xs) answers.push(await this.predict(x, { topK }));
      return answers;
    }
    const started = performance.now();
    /** @type {Prepared[]} */
    const samples = [];
    for (const x of xs) samples.push(await this._prepare(await asRaw(x)));
    const batch = stacked(samples);
    const outputs = await this.run(applyArithmetic(this.manifest.preprocess, batch));
    const answers = samples.map((_, row) => this._answer(outputs, row, topK));
    const latencyMs = (performance.now() - started) / xs.length;
    return answers.map((answer, at) => ({ ...answer, latencyMs, truncated: samples[at]?.truncated ?? false }));
  }

  /**
   * The graph's outputs for preprocessed inputs (N, ...); a graph with a fixed batch gets them in pieces.
   * @param {{shape: number[], data: Float32Array}} batch
   * @returns {Promise<Map<string, {shape: number[], data: any}>>}
   */
  async run({ shape, data }) {
    if (this._session === null) throw new StudentError("this student is closed; open it again", 2);
    const input = /** @type {import("./manifest.js").TensorSpec} */ (this.manifest.inputs[0]);
    const [size, ...sides] = input.shape;
    const found = shape.slice(1);
    if (sides.length !== found.length || sides.some((side, at) => typeof side === "number" && side !== found[at])) {
      throw new StudentError(`preprocessing gives samples of shape (${found}), the model reads (${sides})`);
    }
    const convert = AS_DTYPE[input.dtype];
    if (convert === undefined) throw new StudentError(`the model reads ${input.dtype}, which this app does not feed`);
    const width = found.reduce((product, side) => product * side, 1);
    const piece = typeof size === "number" ? size : /** @type {number} */ (shape[0]);
    /** @type {Record<string, Tensor>[]} */
    const parts = [];
    for (let at = 0; at < /** @type {number} */ (shape[0]); at += piece) {
      const rows = data.subarray(at * width, (at + piece) * width);
      const whole = new Float32Array(piece * width);
      for (let start = 0; start < whole.length; start += rows.length) {
        whole.set(rows.subarray(0, whole.length - start), start);
      }
      const tensor = new this._runtime.Tensor(input.dtype, convert(whole), [piece, ...found]);
      try {
        parts.push(await this._session.run({ [input.name]: tensor }));
      } catch (error) {
        throw new StudentError(`the graph refuses ${input.dtype} (${tensor.dims}): ${told(error)}; ${FRESH}`);
      }
    }
    return new Map(this._session.outputNames.map((name) => [name, joined(parts.map((part) => /** @type {Tensor} */ (part[name])), Number(shape[0]))]));
  }

  /** Run once on zeros, so that the first answer is not the slow one. */
  async warmUp() {
    const shape = (this.manifest.inputs[0]?.shape ?? []).map((side) => (typeof side === "number" ? side : 1));
    await this.run({ shape, data: new Float32Array(shape.reduce((product, side) => product * side, 1)) });
  }

  /**
   * The bundle's golden vectors through this machine's preprocessing and runtime.
   * @returns {Promise<SelfTest>}
   */
  async selfTest() {
    const { manifest, variant } = this;
    const golden = await this._files.golden();
    const tolerance = { ...DEFAULT_TOLERANCE, ...manifest.variants[variant]?.tolerance };
    const ready = wanted(golden, `input.${manifest.inputs[0]?.name}`);
    const problems = [];
    const raw = golden.get("raw");
    if (raw !== undefined) {
      const found = applyArithmetic(manifest.preprocess, raw);
      const apart = `${found.shape}` === `${ready.shape}` ? largest(found.data, ready.data) : NaN;
      if (!(apart <= 1e-6)) problems.push(`preprocessing differs by ${apart.toExponential(1)}, expected at most 1e-06`);
    }
    const outputs = await this.run({ shape: ready.shape, data: Float32Array.from(ready.data) });
    let maxAbsDiff = 0;
    const names = manifest.golden.outputs[variant] ?? [];
    if (names.length === 0) problems.push(`the golden arrays hold no output of the variant '${variant}'`);
    for (const name of names) {
      const expected = wanted(golden, `output.${variant}.${name}`);
      const found = outputs.get(name);
      if (found === undefined || `${found.shape}` !== `${expected.shape}`) {
        problems.push(`output '${name}' has the shape (${found?.shape}), expected (${expected.shape})`);
        continue;
      }
      const apart = largest(found.data, expected.data);
      maxAbsDiff = Math.max(maxAbsDiff, apart);
      const inside = Array.from(expected.data, (value, at) => Math.abs(Number(found.data[at]) - value) <= tolerance.abs + tolerance.rel * Math.abs(value));
      if (inside.includes(false)) {
        problems.push(`output '${name}' differs by up to ${apart.toExponential(1)}, expected ${tolerance.abs.toExponential(1)}`);
      }
      if (manifest.task === "classification" && expected.shape.length === 2) {
        const same = agreement(found.data, expected.data, Number(expected.shape[1]));
        if (same < tolerance.label_agreement) {
          problems.push(`${(100 * same).toFixed(1)}% of the answers are the same, expected ${100 * tolerance.label_agreement}%`);
        }
      }
    }
    return { variant, ok: problems.length === 0, maxAbsDiff, samples: Number(ready.shape[0]), problems };
  }

  /** Free the model. */
  async close() {
    const session = this._session;
    this._session = null;
    await session?.release();
  }

  /**
   * @private
   * @param {string | Uint8Array | Sample} raw
   * @returns {Promise<Prepared>}
   */
  async _prepare(raw) {
    const steps = this.manifest.preprocess;
    const text = tokenizeStep(steps);
    if (text === undefined || this._tokenizer === null) return prepare(steps, raw, this._others);
    return tokenized(text, this._tokenizer, raw);
  }

  /**
   * @private
   * @param {Map<string, {shape: number[], data: any}>} all
   * @param {number} row
   * @param {number} topK
   */
  _answer(all, row, topK) {
    const name = this.manifest.outputs[0]?.name ?? "";
    /** @type {Record<string, {shape: number[], data: any}>} */
    const outputs = {};
    for (const [key, { shape, data }] of all) {
      const width = shape.slice(1).reduce((product, side) => product * side, 1);
      outputs[key] = { shape: shape.slice(1), data: data.slice(row * width, (row + 1) * width) };
    }
    const own = outputs[name];
    if (own === undefined || own.shape.length !== 1 || own.data.length !== this.labels.length) {
      throw new StudentError(`the model gave (${own?.shape}) as '${name}', expected (${this.labels.length}); ${FRESH}`);
    }
    const scores = applyPost(this.manifest.postprocess, own.data);
    if (!scores.every(Number.isFinite)) {
      throw new StudentError("the answer is NaN or infinite; look for NaN or infinite values in the input");
    }
    const { task } = this.manifest;
    const top = ranked(this.manifest, scores, topK);
    const best = top[0];
    return {
      label: best?.label ?? null,
      index: best?.index ?? null,
      score: best?.score ?? (task === "embedding" ? Math.hypot(...scores) : Math.max(...scores)),
      top,
      uncertainty: task === "classification" ? uncertainty(scores) : null,
      outputs,
    };
  }
}

/** Whether a graph measures its activations: all samples of a call share one scale then. @param {Uint8Array} graph */
function measures(graph) {
  const name = new TextEncoder().encode("DynamicQuantize");
  const first = Number(name[0]);
  for (let at = graph.indexOf(first); at >= 0; at = graph.indexOf(first, at + 1)) {
    if (name.every((byte, i) => graph[at + i] === byte)) return true;
  }
  return false;
}

/** @param {Float32Array} data */
function asBytes(data) {
  if (!data.every((value) => Number.isInteger(value) && value >= 0 && value <= 255)) {
    throw new StudentError("the model reads bytes; pass images as a Uint8Array, 0 to 255");
  }
  return Uint8Array.from(data);
}

/** @param {string | Uint8Array | ArrayBuffer | Blob | Sample} x @returns {Promise<string | Uint8Array | Sample>} */
async function asRaw(x) {
  if (x instanceof Blob) return new Uint8Array(await x.arrayBuffer());
  return x instanceof ArrayBuffer ? new Uint8Array(x) : x;
}

/** @param {NdArray[]} samples @returns {NdArray} */
function stacked(samples) {
  const [first] = /** @type {[NdArray, ...NdArray[]]} */ (samples);
  const other = samples.find(({ shape }) => `${shape}` !== `${first.shape}`);
  if (other !== undefined) throw new StudentError(`the samples have shapes (${first.shape}) and (${other.shape}), expected one`);
  const data = new Float32Array(samples.length * first.data.length);
  samples.forEach((sample, at) => data.set(sample.data, at * first.data.length));
  return { shape: [samples.length, ...first.shape], data };
}

/** @param {Tensor[]} parts @param {number} count the rows that are wanted */
function joined(parts, count) {
  const [first] = /** @type {[Tensor, ...Tensor[]]} */ (parts);
  const shape = [count, ...first.dims.slice(1)];
  const length = shape.reduce((product, side) => product * side, 1);
  if (parts.length === 1) return { shape, data: first.data.slice(0, length) };
  const data = Array.isArray(first.data) ? [] : new first.data.constructor(length);
  let at = 0;
  for (const part of parts) for (const value of part.data) if (at < length) data[at++] = value;
  return { shape, data };
}

/** @param {Map<string, NdArray>} golden @param {string} key */
function wanted(golden, key) {
  const found = golden.get(key);
  if (found === undefined) throw new StudentError(`the golden arrays lack '${key}'; ${FRESH}`);
  return found;
}

/** @param {ArrayLike<number>} found @param {ArrayLike<number>} expected */
function largest(found, expected) {
  let most = 0;
  for (let at = 0; at < expected.length; at += 1) {
    const apart = Math.abs(Number(found[at]) - Number(expected[at]));
    if (!(apart <= most)) most = apart;
  }
  return most;
}

/** The share of rows with the same largest number. @param {ArrayLike<number>} found @param {ArrayLike<number>} expected @param {number} width */
function agreement(found, expected, width) {
  /** @param {ArrayLike<number>} data @param {number} row */
  const best = (data, row) => {
    let at = row * width;
    for (let i = at; i < (row + 1) * width; i += 1) if (Number(data[i]) > Number(data[at])) at = i;
    return at;
  };
  const rows = expected.length / width;
  let same = 0;
  for (let row = 0; row < rows; row += 1) same += Number(best(found, row) === best(expected, row));
  return same / rows;
}
