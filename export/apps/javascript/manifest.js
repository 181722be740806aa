// bundle.json, checked field by field before anything is believed. BUNDLE.md of edgekd is the specification.
import { FRESH, StudentError, told } from "./errors.js";
import { parseJson } from "./json.js";
import { checkPostSteps, checkSteps, tokenizeStep } from "./steps.js";

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

export const MANIFEST = "bundle.json";
export const MAX_MANIFEST_BYTES = 1_000_000;
export const MAX_FILE_BYTES = 2 ** 31;
const SIGNATURE = "bundle.json.sig";
const VERSION = 1;
const TASKS = ["classification", "multilabel", "regression", "embedding"];
const INTEGERS = [8, 16, 32, 64].flatMap((bits) => [`int${bits}`, `uint${bits}`]);
const DTYPES = ["float16", "float32", "float64", "bool", "str", ...INTEGERS];

/**
 * The checked manifest in the bytes of a bundle.json. Throws a `StudentError` that names the field.
 * @param {Uint8Array} bytes
 * @returns {Manifest}
 */
export function parseManifest(bytes) {
  let manifest;
  try {
    manifest = parseJson(bytes);
  } catch (error) {
    throw new StudentError(`${MANIFEST} is not readable as JSON (${told(error)}); ${FRESH}`);
  }
  checkManifest(manifest);
  return /** @type {Manifest} */ (manifest);
}

/** @param {unknown} manifest */
function checkManifest(manifest) {
  const all = table(manifest, "the manifest");
  if (Number.isInteger(all.version) && all.version > VERSION) {
    throw new StudentError(
      `this bundle has version ${all.version}, but this app reads version ${VERSION}; embed it with a newer edgekd`,
    );
  }
  expect(all.version === VERSION, "version", all.version, `the number ${VERSION}`);
  expect(isText(all.name), "name", all.name, "a text");
  expect(TASKS.includes(all.task), "task", all.task, `one of ${TASKS.join(", ")}`);
  for (const key of ["id", "created", "edgekd_version", "licence", "intended_use"]) {
    expect(isText(given(all, key, "")), key, all[key], "a text");
  }
  table(given(all, "metrics", {}), "metrics");
  const provenance = table(given(all, "provenance", {}), "provenance");
  for (const key of ["teacher", "data"]) {
    const origin = table(given(provenance, key, {}), `provenance.${key}`);
    for (const name of ["name", "licence", "sha256"]) {
      expect(isText(given(origin, name, "")), `provenance.${key}.${name}`, origin[name], "a text");
    }
  }
  list(all.labels, "labels").forEach((label, at) => expect(isText(label), `labels[${at}]`, label, "a text"));
  list(given(all, "limits", []), "limits").forEach((limit, at) => table(limit, `limits[${at}]`));
  checkTensors(all, "inputs");
  checkTensors(all, "outputs");
  for (const [side, check] of /** @type {const} */ ([["preprocess", checkSteps], ["postprocess", checkPostSteps]])) {
    for (const key of [side, `${side}_in_graph`]) {
      const steps = list(key === side ? all[key] : given(all, key, []), key);
      steps.forEach((step, at) => table(step, `${key}[${at}]`));
      const problem = check(steps, key);
      if (problem !== null) throw new StudentError(`${MANIFEST}: ${problem}; a newer edgekd may know it`);
    }
  }
  checkFiles(table(all.files, "files"));
  const text = tokenizeStep(all.preprocess);
  if (text !== undefined) checkListed(text.file, "preprocess[0].file", all.files);
  checkVariants(all);
  checkArrays(all);
}

/** @param {Record<string, any>} all @param {string} side */
function checkTensors(all, side) {
  const tensors = list(all[side], side);
  expect(tensors.length > 0, side, tensors, "at least one tensor");
  const names = tensors.map((item, at) => {
    const where = `${side}[${at}]`;
    const tensor = table(item, where);
    const shape = list(tensor.shape, `${where}.shape`);
    expect(isText(tensor.name) && tensor.name !== "", `${where}.name`, tensor.name, "a text");
    expect(DTYPES.includes(tensor.dtype), `${where}.dtype`, tensor.dtype, `one of ${DTYPES.join(", ")}`);
    const fits = shape.every((size) => (isText(size) && size !== "") || (isCount(size) && size > 0));
    expect(fits, `${where}.shape`, shape, "whole numbers from 1 and names of axes");
    return tensor.name;
  });
  expect(new Set(names).size === names.length, side, names, "each name once");
}

/** @param {Record<string, any>} files */
function checkFiles(files) {
  for (const [name, entry] of Object.entries(files)) {
    const own = [MANIFEST, SIGNATURE].includes(name) ? "expected any name but this" : null;
    const problem = nameProblem(name) ?? own;
    if (problem !== null) {
      throw new StudentError(`${MANIFEST}: files names '${name}': ${problem}; get the bundle from somewhere else`);
    }
    const record = table(entry, `files['${name}']`);
    const digest = isText(record.sha256) && /^[0-9a-f]{64}$/.test(record.sha256);
    expect(digest, `files['${name}'].sha256`, record.sha256, "64 hexadecimal digits");
    expect(isCount(record.size_bytes), `files['${name}'].size_bytes`, record.size_bytes, "a whole number");
    if (record.size_bytes > MAX_FILE_BYTES) {
      throw new StudentError(
        `${MANIFEST}: ${name} would have ${record.size_bytes} bytes, expected at most ${MAX_FILE_BYTES}`,
      );
    }
  }
}

/** @param {Record<string, any>} all */
function checkVariants(all) {
  const variants = table(all.variants, "variants");
  const names = Object.keys(variants);
  expect(names.length > 0, "variants", variants, "at least one variant");
  for (const [name, entry] of Object.entries(variants)) {
    const where = `variants['${name}']`;
    expect(/^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$/.test(name), "variants", name, "names of letters, digits, '_' and '-'");
    const variant = table(entry, where);
    const graphs = table(variant.graphs, `${where}.graphs`);
    expect(Object.keys(graphs).length > 0, `${where}.graphs`, graphs, "at least one graph");
    for (const [role, file] of Object.entries(graphs)) checkListed(file, `${where}.graphs['${role}']`, all.files);
    expect(isCount(given(variant, "size_bytes", 0)), `${where}.size_bytes`, variant.size_bytes, "a number");
    for (const [key, value] of Object.entries(table(given(variant, "tolerance", {}), `${where}.tolerance`))) {
      expect(typeof value === "number" && value >= 0, `${where}.tolerance['${key}']`, value, "a number from 0");
    }
    for (const key of ["metrics", "min_runtime"]) table(given(variant, key, {}), `${where}.${key}`);
  }
  for (const [kind, name] of Object.entries(table(given(all, "default", {}), "default"))) {
    expect(names.includes(name), `default['${kind}']`, name, `one of ${names.join(", ")}`);
  }
}

/** @param {Record<string, any>} all */
function checkArrays(all) {
  const golden = table(all.golden, "golden");
  checkListed(golden.file, "golden.file", all.files);
  checkNames(golden.inputs, "golden.inputs");
  for (const [variant, names] of Object.entries(table(golden.outputs, "golden.outputs"))) {
    expect(variant in all.variants, "golden.outputs", variant, `one of ${Object.keys(all.variants).join(", ")}`);
    checkNames(names, `golden.outputs['${variant}']`);
  }
  const synthetic = given(golden, "synthetic", true);
  expect(typeof synthetic === "boolean", "golden.synthetic", synthetic, "true or false");
  const samples = given(all, "samples", null);
  if (samples !== null) {
    checkListed(table(samples, "samples").file, "samples.file", all.files);
    expect(isCount(samples.count), "samples.count", samples.count, "a whole number");
  }
}

/** @param {unknown} value @param {string} where */
function checkNames(value, where) {
  for (const name of list(value, where)) expect(isText(name), where, name, "names of tensors");
}

/** @param {unknown} name @param {string} where @param {Record<string, any>} files */
function checkListed(name, where, files) {
  if (!isText(name) || !(name in files)) {
    throw new StudentError(`${MANIFEST}: ${where} is ${shown(name)}, expected a file that 'files' lists; ${FRESH}`);
  }
}

/**
 * Why `name` must not be opened inside a bundle; null when it may.
 * @param {string} name
 * @returns {string | null}
 */
export function nameProblem(name) {
  if (name === "" || [...name].length > 255) return "expected a file name of 1 to 255 characters";
  if (/[\u0000-\u001f\u007f\\:*?"<>|]/.test(name)) return "expected no backslash, colon, wildcard or control character";
  if (name.split("/").some((part) => ["", ".", ".."].includes(part))) {
    return "expected a path inside the bundle, without a leading / and without . or ..";
  }
  return null;
}

/**
 * The variant that the bundle names for a kind of CPU: the exact kind, else the longest pattern that fits it.
 * @param {Manifest} manifest
 * @param {string} kind "x86_64-vnni", "aarch64", "wasm32", ...
 * @returns {string}
 */
export function defaultVariant(manifest, kind) {
  const chosen = manifest.default ?? {};
  const fitting = Object.keys(chosen).filter((pattern) => fits(pattern, kind));
  const pattern = fitting.sort((a, b) => Number(b === kind) - Number(a === kind) || b.length - a.length)[0];
  if (pattern !== undefined) return /** @type {string} */ (chosen[pattern]);
  return "float32" in manifest.variants ? "float32" : /** @type {string} */ (Object.keys(manifest.variants)[0]);
}

/** @param {string} pattern @param {string} kind */
function fits(pattern, kind) {
  const parts = pattern.split("*").map((part) => part.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\?/g, "."));
  return new RegExp(`^${parts.join(".*")}$`).test(kind);
}

/** @param {boolean} fits @param {string} where @param {unknown} found @param {string} expected */
function expect(fits, where, found, expected) {
  if (!fits) throw new StudentError(`${MANIFEST}: ${where} is ${shown(found)}, expected ${expected}; ${FRESH}`);
}

/** @param {unknown} value */
function shown(value) {
  const text = value === undefined ? "missing" : JSON.stringify(value);
  return text.length <= 80 ? text : `${text.slice(0, 77)}...`;
}

/** @param {unknown} value @param {string} where @returns {Record<string, any>} */
function table(value, where) {
  expect(typeof value === "object" && value !== null && !Array.isArray(value), where, value, "a table");
  return /** @type {Record<string, any>} */ (value);
}

/** @param {unknown} value @param {string} where @returns {any[]} */
function list(value, where) {
  expect(Array.isArray(value), where, value, "a list");
  return /** @type {any[]} */ (value);
}

/** @param {Record<string, any>} entries @param {string} key @param {unknown} otherwise @returns {any} */
function given(entries, key, otherwise) {
  return key in entries ? entries[key] : otherwise;
}

/** @param {unknown} value @returns {value is string} */
function isText(value) {
  return typeof value === "string";
}

/** @param {unknown} value */
function isCount(value) {
  return typeof value === "number" && Number.isInteger(value) && value >= 0;
}
