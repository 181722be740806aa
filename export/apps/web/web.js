// A student in a browser: onnxruntime-web on the CPU (WebAssembly with SIMD), its files in ort/ beside this one.
import { StudentError, told } from "./student/errors.js";
import { Files } from "./student/files.js";
import { Student } from "./student/student.js";

export { Student, StudentError };

const MAX_PIXELS = 89_478_485;

/**
 * Open a bundle and load a variant (default: the bundle's choice for WebAssembly, which is float32 as a rule: int8 is for
 * the smaller download). Throws a `StudentError` that says what is wrong.
 * @param {string | Blob} [bundle] the address of the folder, or a zip
 * @param {import("./student/student.js").Options & {ort?: any}} [options] more than one of `threads` needs a page that is
 *   cross-origin isolated, and the first student of a page decides; `ort` is the module onnxruntime-web where you bundle it
 * @returns {Promise<Student>}
 */
export async function openStudent(bundle = "student.edgekd", { variant, threads = 1, ort } = {}) {
  const cores = navigator.hardwareConcurrency || 1;
  if (!Number.isInteger(threads) || threads < 1 || threads > cores) {
    throw new StudentError(`threads is ${threads}, expected a whole number from 1 to ${cores} cores`, 2);
  }
  if (threads > 1 && !globalThis.crossOriginIsolated) {
    throw new StudentError(
      `threads is ${threads}, but this page is not cross-origin isolated; serve it with the headers ` +
        "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp",
      2,
    );
  }
  const [files, runtime] = await Promise.all([openFiles(bundle), ort ?? loadRuntime()]);
  runtime.env.wasm.numThreads = threads;
  runtime.env.logLevel = "fatal";
  return Student.open(files, runtime, { variant, threads, kind: "wasm32", others: decodeOther });
}

async function loadRuntime() {
  const folder = new URL("./ort/", import.meta.url).href;
  try {
    const runtime = await import(`${folder}ort.wasm.min.mjs`);
    runtime.env.wasm.wasmPaths = folder;
    return runtime;
  } catch (error) {
    throw new StudentError(`onnxruntime-web is not in ${folder} (${told(error)}); README.md says how to put it there`, 4);
  }
}

/** @param {string | Blob} bundle @returns {Promise<Files>} */
async function openFiles(bundle) {
  if (typeof bundle !== "string") return Files.openZip("the zip", new Uint8Array(await bundle.arrayBuffer()));
  const folder = new URL(`${bundle.replace(/\/$/, "")}/`, document.baseURI);
  return Files.open(bundle, async (name, limit) => {
    const response = await fetch(new URL(name.split("/").map(encodeURIComponent).join("/"), folder));
    if (response.status === 404) return null;
    if (!response.ok || response.body === null) throw new Error(`status ${response.status}`);
    return atMost(response.body, limit);
  });
}

/** At most `limit` bytes of a stream and one more. @param {ReadableStream<Uint8Array>} stream @param {number} limit */
async function atMost(stream, limit) {
  const reader = stream.getReader();
  const chunks = [];
  let total = 0;
  while (total <= limit) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    total += value.length;
  }
  reader.cancel().catch(() => {});
  const whole = new Uint8Array(total);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole.subarray(0, limit + 1);
}

/**
 * GIF, WebP and what else the browser knows, pixel for pixel, colours not managed. Older browsers want a canvas, of the
 * picture's own size; it multiplies by alpha, which over black or white is undone within one level.
 * @type {import("./student/images.js").OtherFormats}
 */
export async function decodeOther(bytes, exif) {
  const bitmap = await createImageBitmap(new Blob([/** @type {BlobPart} */ (bytes)]), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
    imageOrientation: exif ? "from-image" : "none",
  });
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${width} x ${height} pixels, expected at most ${MAX_PIXELS}`);
  const exact = await unmultiplied(bitmap);
  if (exact !== null) return { width, height, channels: 4, data: exact, orientation: 1 };
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("this browser gives no canvas");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  return { width, height, channels: 4, data: new Uint8Array(data.buffer), orientation: 1 };
}

/** The pixels of a bitmap as they are; null where the browser cannot tell. @param {ImageBitmap} bitmap */
async function unmultiplied(bitmap) {
  if (typeof VideoFrame === "undefined") return null;
  const frame = new VideoFrame(bitmap, { timestamp: 0 });
  try {
    const data = new Uint8Array(4 * bitmap.width * bitmap.height);
    await frame.copyTo(data, /** @type {any} */ ({ format: "RGBA" }));
    return frame.codedWidth === bitmap.width && frame.codedHeight === bitmap.height ? data : null;
  } catch {
    return null; // this browser converts no formats
  } finally {
    frame.close();
  }
}
