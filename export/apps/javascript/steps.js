// The steps of preprocessing and postprocessing: which there are, and what each may say.

/**
 * @typedef {{op: "decode", exif?: boolean, alpha?: "black" | "white"}} Decode
 * @typedef {{op: "resize", size: number | [number, number], filter?: "nearest" | "bilinear" | "bicubic", antialias?: boolean}} Resize
 * @typedef {{op: "tokenize", file: string, max_length?: number, vocabulary?: number | null}} Tokenize
 * @typedef {Decode | {op: "to_rgb"} | {op: "to_grey"} | Resize | {op: "center_crop", size: [number, number]}} ImageStep
 * @typedef {ImageStep | Tokenize} SpatialStep
 * @typedef {{op: "scale", factor?: number} | {op: "normalize", mean?: number[], std?: number[]} | {op: "layout", to?: "CHW" | "HWC" | "flat"} | {op: "trim", pad: number}} ArithmeticStep
 * @typedef {SpatialStep | ArithmeticStep} Step
 * @typedef {{op: "softmax", temperature?: number} | {op: "sigmoid"} | {op: "denormalize", mean?: number[], std?: number[]} | {op: "threshold", value?: number} | {op: "top_k", k?: number}} PostStep
 * @typedef {[(value: any) => boolean, string]} Rule
 */

const SPATIAL = ["decode", "to_rgb", "to_grey", "resize", "center_crop", "tokenize"];
const FOR_TEXTS = ["tokenize", "trim"];

/** @param {any} value */
const isNumber = (value) => typeof value === "number";
/** @param {any} value */
const isSide = (value) => Number.isInteger(value) && value >= 1 && value <= 16384;
/** @param {any} value */
const isSize = (value) => Array.isArray(value) && value.length === 2 && value.every(isSide);
/** @param {any} value */
const areNumbers = (value) => Array.isArray(value) && value.length > 0 && value.every(isNumber);
/** @type {(...names: string[]) => Rule} */
const oneOf = (...names) => [(value) => names.includes(value), names.map((name) => `"${name}"`).join(" or ")];
/** @type {Rule} */
const yesOrNo = [(value) => typeof value === "boolean", "true or false"];
/** @type {Rule} */
const numbers = [areNumbers, "a list of finite numbers"];
/** @type {Rule} */
const spreads = [(value) => areNumbers(value) && !value.includes(0), "a list of finite numbers, none of them 0"];
/** @type {Rule} */
const sides = [isSize, "[height, width], each from 1 to 16384"];

/** @type {Record<string, Record<string, Rule>>} */
const STEPS = {
  decode: { exif: yesOrNo, alpha: oneOf("black", "white") },
  to_rgb: {},
  to_grey: {},
  resize: {
    size: [(value) => isSide(value) || isSize(value), "[height, width] or one number, each from 1 to 16384"],
    filter: oneOf("nearest", "bilinear", "bicubic"),
    antialias: yesOrNo,
  },
  center_crop: { size: sides },
  scale: { factor: [isNumber, "a finite factor"] },
  normalize: { mean: numbers, std: spreads },
  layout: { to: oneOf("CHW", "HWC", "flat") },
  tokenize: {
    file: [(value) => typeof value === "string" && value !== "", "the name of a tokenizer.json"],
    max_length: [(value) => isSide(value) && value >= 2, "a whole number from 2 to 16384"],
    vocabulary: [(value) => value === null || (Number.isInteger(value) && value >= 2 && value < 2 ** 31), "a whole number from 2"],
  },
  trim: { pad: [(value) => Number.isInteger(value) && value >= 0 && value < 2 ** 31, "the id of the padding"] },
};
/** @type {Record<string, Record<string, Rule>>} */
const POST_STEPS = {
  softmax: { temperature: [(value) => isNumber(value) && value > 0, "a temperature above 0"] },
  sigmoid: {},
  denormalize: { mean: numbers, std: spreads },
  threshold: { value: [isNumber, "a finite number"] },
  top_k: { k: [(value) => Number.isInteger(value) && value >= 1, "a whole number from 1"] },
};

/** @param {Step} step @returns {step is SpatialStep} */
export function isSpatial(step) {
  return SPATIAL.includes(step.op);
}

/** The step that makes ids of texts; undefined for a model of something else. @param {Step[]} steps @returns {Tokenize | undefined} */
export function tokenizeStep(steps) {
  return /** @type {Tokenize | undefined} */ (steps.find((step) => step.op === "tokenize"));
}

/**
 * What is wrong with the steps of a preprocessing; null where they can be done.
 * @param {Record<string, any>[]} steps
 * @param {string} where
 */
export function checkSteps(steps, where) {
  const problem = check(steps, where, STEPS);
  if (problem !== null) return problem;
  for (const [at, step] of steps.entries()) {
    if (["resize", "center_crop"].includes(step.op) && step.size === undefined) {
      return `${where}[${at}] (${step.op}): size is missing`;
    }
    for (const [op, key] of [["tokenize", "file"], ["trim", "pad"]]) {
      if (step.op === op && step[key] === undefined) return `${where}[${at}] (${op}): ${key} is missing`;
    }
    if (FOR_TEXTS.includes(step.op) !== (steps[0]?.op === "tokenize") || (at > 0 && step.op === "tokenize")) {
      return `${where}: '${step.op}' stands beside '${steps[0]?.op}': texts take tokenize, then trim`;
    }
    const before = steps[at - 1];
    if (before === undefined || !SPATIAL.includes(step.op)) continue;
    if (step.op === "decode" || !SPATIAL.includes(before.op)) return `${where}: '${step.op}' stands after '${before.op}'`;
  }
  return null;
}

/**
 * What is wrong with the steps of a postprocessing; null where they can be done.
 * @param {Record<string, any>[]} steps
 * @param {string} where
 */
export function checkPostSteps(steps, where) {
  return check(steps, where, POST_STEPS);
}

/** @param {Record<string, any>[]} steps @param {string} where @param {Record<string, Record<string, Rule>>} known */
function check(steps, where, known) {
  for (const [at, step] of steps.entries()) {
    const rules = typeof step.op === "string" && Object.hasOwn(known, step.op) ? known[step.op] : undefined;
    if (rules === undefined) {
      return `${where}[${at}]: unknown op ${JSON.stringify(step.op)}, expected one of ${Object.keys(known).join(", ")}`;
    }
    for (const [key, value] of Object.entries(step)) {
      if (key === "op") continue;
      const rule = Object.hasOwn(rules, key) ? rules[key] : undefined;
      if (rule === undefined) return `${where}[${at}] (${step.op}): unknown key '${key}'`;
      if (!rule[0](value)) return `${where}[${at}] (${step.op}): ${key} is ${JSON.stringify(value)}, expected ${rule[1]}`;
    }
  }
  return null;
}
