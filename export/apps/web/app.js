// The page: what is drawn, dropped, seen by the camera or written, and what the student says about it.
import { camera, decodedInverted, drawing, inverted } from "./sources.js";
import { shown } from "./student/postprocess.js";
import { StudentError, openStudent } from "./web.js";

/** @typedef {import("./student/student.js").Student} Student */
/** @typedef {{name: string, vector: Float32Array}} Named */

const SMALL_GRAPH = 1_000_000; // bytes; a smaller one computes faster than threads wake up
const query = new URLSearchParams(location.search);
/** Written by edgekd: files.js. @type {{version: string, variant: string}} */
const app = /** @type {any} */ (globalThis).APP;

/** @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`no element ${id}`);
  return found;
}

const parts = {
  title: element("title", HTMLElement),
  label: element("label", HTMLElement),
  top: element("top", HTMLElement),
  time: element("time", HTMLElement),
  status: element("status", HTMLElement),
  canvas: element("canvas", HTMLCanvasElement),
  video: element("video", HTMLVideoElement),
  image: element("image", HTMLImageElement),
  file: element("file", HTMLInputElement),
  dark: element("dark", HTMLInputElement),
  text: element("text", HTMLTextAreaElement),
  keep: element("keep", HTMLButtonElement),
};

/** @type {Student} */
let student;
/** @type {Blob | null} */
let picture = null;
/** The vector that is shown, of an embedding. @type {Named | null} */
let current = null;
/** @type {Named[]} */
let kept = [];
let [mode, busy, again] = ["draw", false, false];
const drawn = drawing(parts.canvas, look);
const eye = camera(parts.video);

/** What there is to look at now: nothing, or one thing, framed in one way or several. */
async function samples() {
  if (mode === "text") return parts.text.value.trim() === "" ? [] : [parts.text.value];
  if (mode === "draw") return drawn.pixels();
  if (mode === "picture") return picture === null ? [] : [parts.dark.checked ? await decodedInverted(picture) : picture];
  const seen = eye.pixels();
  return seen === null ? [] : [parts.dark.checked ? inverted(seen) : seen];
}

/** Ask the student, once more where something changed meanwhile. */
async function look() {
  if (student === undefined) return;
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  try {
    const answers = [];
    const seen = await samples();
    if (embeds()) seen.splice(1); // the length of a vector does not tell which framing is right
    for (const x of seen) answers.push(await student.predict(x, { topK: 3 }));
    const surest = answers.sort((a, b) => b.score - a.score)[0];
    if (surest === undefined) empty();
    else show(surest, seen[0]);
  } catch (error) {
    tell(error);
  }
  busy = false;
  if (again) {
    again = false;
    setTimeout(look);
  }
}

/** Whether the answer is a vector. */
function embeds() {
  return student.manifest.task === "embedding";
}

/** @param {import("./student/student.js").Answer} answer @param {unknown} sample what it is about */
function show({ label, top, score, outputs, latencyMs, truncated }, sample) {
  if (embeds()) {
    const name = typeof sample === "string" ? sample.trim() : `${mode} ${kept.length + 1}`;
    current = { name, vector: outputs[student.manifest.outputs[0]?.name ?? ""]?.data };
    compare(current);
  } else {
    parts.label.textContent = label ?? "–";
    parts.top.replaceChildren(...top.map(({ label: name, score: value }) => row(name, value, percent(value))));
  }
  const cut = truncated ? `only the first ${student.maxTokens} tokens were read · ` : "";
  const length = embeds() ? `length ${score.toFixed(3)} · ` : "";
  parts.time.textContent = `${cut}${length}${latencyMs < 10 ? latencyMs.toFixed(1) : Math.round(latencyMs)} ms`;
  if (performance.getEntriesByName("first-answer").length === 0) performance.mark("first-answer");
}

/** A line with a bar from 0 to 1. @param {string} name @param {number} value @param {string} said */
function row(name, value, said) {
  const line = document.createElement("li");
  const bar = Object.assign(document.createElement("meter"), { min: 0, max: 1, value });
  const [text, share] = [name, said].map((content) =>
    Object.assign(document.createElement("span"), { textContent: content }),
  );
  line.append(text, bar, share);
  return line;
}

/** How a vector begins, and what was kept that is nearest to it. @param {Named} now */
function compare({ vector }) {
  parts.label.textContent = shown(vector);
  const near = kept.map((one) => ({ name: one.name, nearness: cosine(one.vector, vector) }));
  near.sort((a, b) => b.nearness - a.nearness);
  parts.top.replaceChildren(
    ...near.slice(0, 3).map(({ name, nearness }) => row(name, nearness, `cosine ${nearness.toFixed(3)}`)),
  );
  parts.keep.disabled = false;
}

/** Of the angle between two vectors: 1 where they say the same. @param {Float32Array} one @param {Float32Array} other */
function cosine(one, other) {
  const product = one.reduce((sum, value, at) => sum + value * Number(other[at]), 0);
  return product / (Math.hypot(...one) * Math.hypot(...other) || 1);
}

/** What is shown, once by each name. */
function keep() {
  if (current === null) return;
  const { name } = current;
  kept = [...kept.filter((one) => one.name !== name), current];
  compare(current);
}

function empty() {
  current = null;
  parts.keep.disabled = true;
  parts.label.textContent = "–";
  parts.top.replaceChildren();
  parts.time.textContent = "";
}

/** @param {number} score */
function percent(score) {
  return student.manifest.task === "regression" ? score.toPrecision(4) : `${(100 * score).toFixed(1)} %`;
}

/** @param {unknown} error */
function tell(error) {
  empty();
  parts.status.textContent = error instanceof StudentError ? error.message : `something went wrong: ${error}`;
  parts.status.dataset.failed = "true";
  if (!(error instanceof StudentError)) console.error(error);
}

/** @param {string} next "draw", "picture", "camera" or "text" */
async function change(next) {
  if (mode === "camera") eye.stop();
  mode = next;
  document.body.dataset.mode = mode;
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-pressed", String(button.id === `mode-${mode}`));
  }
  empty();
  ready();
  if (mode === "camera") {
    try {
      await eye.start();
      await watch();
    } catch (error) {
      tell(new StudentError(`no camera (${error instanceof Error ? error.message : error}); allow it, or use a picture`));
    }
  } else await look();
}

/** Five times a second, while the camera is on. */
async function watch() {
  while (mode === "camera") {
    await look();
    await new Promise((done) => setTimeout(done, 200));
  }
}

/** @param {Blob | undefined | null} file */
function take(file) {
  if (!file) return;
  picture = file;
  URL.revokeObjectURL(parts.image.src);
  parts.image.src = URL.createObjectURL(file);
  document.body.dataset.picture = "true";
  void (mode === "picture" ? (ready(), look()) : change("picture"));
}

function ready() {
  if (student === undefined) return;
  const threads = threadsFor(student.manifest, student.variant);
  parts.status.textContent = `${student.variant} · WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
  delete parts.status.dataset.failed;
}

/** @param {Student["manifest"]} manifest @param {string} variant */
function threadsFor(manifest, variant) {
  if (query.has("threads")) return Number(query.get("threads"));
  const small = (manifest.variants[variant]?.size_bytes ?? 0) < SMALL_GRAPH;
  return crossOriginIsolated && !small ? Math.min(4, navigator.hardwareConcurrency) : 1;
}

/** The golden vectors of the bundle, in this browser. */
async function selfTest() {
  const place = element("self-test", HTMLElement);
  const { ok, variant, samples, maxAbsDiff, problems } = await student.selfTest();
  place.textContent = ok
    ? `self-test passed: ${variant} gives its golden outputs here (${samples} samples, largest difference ${maxAbsDiff.toExponential(1)})`
    : `self-test FAILED: ${variant}: ${problems.join("; ")}`;
  place.dataset.ok = String(ok);
}

async function start() {
  const size = await fetch("student.edgekd/bundle.json").then((response) => response.json()).catch(() => null);
  const variant = query.get("variant") ?? app.variant;
  const threads = size === null ? 1 : threadsFor(size, variant);
  student = await openStudent("student.edgekd", { variant, threads });
  await student.warmUp();
  parts.title.textContent = document.title = student.manifest.name;
  document.body.dataset.task = student.manifest.task;
  parts.keep.hidden = !embeds();
  // Drawing is for what one writes: students of letters and digits.
  const looks = !embeds() && student.labels.every((label) => [...label].length === 1) ? "draw" : "picture";
  performance.mark("student-ready");
  await change(student.maxTokens === null ? looks : "text");
  document.body.dataset.ready = "true";
  if (query.has("self-test")) await selfTest();
}

for (const name of ["draw", "picture", "camera"]) {
  element(`mode-${name}`, HTMLButtonElement).addEventListener("click", () => void change(name));
}
element("clear", HTMLButtonElement).addEventListener("click", () => (drawn.clear(), void look()));
element("run-self-test", HTMLButtonElement).addEventListener("click", () => void selfTest().catch(tell));
parts.keep.addEventListener("click", keep);
parts.file.addEventListener("change", () => take(parts.file.files?.[0]));
parts.dark.addEventListener("change", () => void look());
parts.text.addEventListener("input", () => void look());
addEventListener("dragover", (event) => mode === "text" || event.preventDefault());
addEventListener("drop", (event) => {
  if (mode === "text") return;
  event.preventDefault();
  take(event.dataTransfer?.files[0]);
});
addEventListener("paste", (event) => mode === "text" || take(event.clipboardData?.files[0]));

if ("serviceWorker" in navigator) {
  navigator.serviceWorker
    .register("sw.js")
    .then(() => navigator.serviceWorker.ready)
    .then(() => (element("offline", HTMLElement).textContent = "works offline"))
    .catch((error) => console.warn("not offline:", error));
}
start().catch((error) => {
  tell(error);
  document.body.dataset.ready = "false";
});
