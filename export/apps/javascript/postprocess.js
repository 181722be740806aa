// From the graph's output to scores, labels and how sure they are.

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
export function applyPost(steps, outputs) {
  let values = Float64Array.from(outputs);
  for (const step of steps) {
    if (step.op === "softmax") {
      const temperature = step.temperature ?? 1;
      const largest = values.reduce((most, value) => Math.max(most, value / temperature), -Infinity);
      values = values.map((value) => Math.exp(value / temperature - largest));
      const sum = values.reduce((total, value) => total + value, 0);
      values = values.map((value) => value / sum);
    } else if (step.op === "sigmoid") {
      values = values.map((value) => 0.5 * (1 + Math.tanh(0.5 * value)));
    } else if (step.op === "denormalize") {
      const { mean = [0], std = [1] } = step;
      values = values.map((value, at) => value * std[std.length === 1 ? 0 : at] + mean[mean.length === 1 ? 0 : at]);
    }
  }
  return Float32Array.from(values);
}

/**
 * What the scores say: the best `topK` classes, the labels that are present, or all targets; of a vector nothing.
 * @param {import("./manifest.js").Manifest} manifest
 * @param {Float32Array} scores
 * @param {number} topK
 * @returns {Ranked[]}
 */
export function ranked({ task, labels, postprocess }, scores, topK) {
  if (task === "embedding") return [];
  const all = labels.map((label, index) => ({ label, index, score: scores[index] }));
  if (task === "regression") return all;
  all.sort((a, b) => b.score - a.score);
  if (task === "classification") return all.slice(0, topK);
  const threshold = postprocess.find((step) => step.op === "threshold")?.value ?? 0.5;
  return all.filter(({ score }) => score >= threshold);
}

/**
 * The entropy of probabilities as a share of the largest possible, 0 (sure of one) to 1; null where they are none.
 * @param {Float32Array} scores
 * @returns {number | null}
 */
export function uncertainty(scores) {
  const sum = scores.reduce((total, score) => total + score, 0);
  if (scores.length < 2 || scores.some((score) => score < 0) || Math.abs(sum - 1) > 1e-3) return null;
  const entropy = scores.reduce((total, score) => (score > 0 ? total - score * Math.log(score) : total), 0);
  return Math.max(0, entropy / Math.log(scores.length));
}

/**
 * A vector for people: how many numbers, and the first three.
 * @param {Float32Array} vector
 * @returns {string}
 */
export function shown(vector) {
  const first = Array.from(vector.subarray(0, 3), (value) => value.toFixed(4)).join(" ");
  return `${vector.length} numbers: ${first}${vector.length > 3 ? " ..." : ""}`;
}
