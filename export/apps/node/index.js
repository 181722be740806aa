// A student in Node: onnxruntime-node, and nothing else to install.
import { existsSync, readFileSync } from "node:fs";
import { lstat, open, readFile } from "node:fs/promises";
import { arch, availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { FRESH, StudentError } from "./student/errors.js";
import { Files } from "./student/files.js";
import { Student } from "./student/student.js";

export { Student, StudentError };

/** The bundle that came with this package. */
export const OWN_BUNDLE = join(dirname(fileURLToPath(import.meta.url)), "student.edgekd");

/**
 * Open a bundle (folder or zip) and load a variant (default: the bundle's choice for this CPU).
 * Throws a `StudentError` that says what is wrong.
 * @param {string} [bundle]
 * @param {import("./student/student.js").Options} [options]
 * @returns {Promise<Student>}
 */
export async function openStudent(bundle = OWN_BUNDLE, { variant, threads = 1 } = {}) {
  const cores = availableParallelism();
  if (!Number.isInteger(threads) || threads < 1 || threads > cores) {
    throw new StudentError(`threads is ${threads}, expected a whole number from 1 to ${cores} cores`, 2);
  }
  const files = await openFiles(bundle);
  let runtime;
  try {
    runtime = await import("onnxruntime-node");
  } catch (error) {
    const text = error instanceof Error ? error.message.split("\n")[0] : String(error);
    throw new StudentError(`onnxruntime-node cannot be loaded (${text}): npm install --ignore-scripts`, 4);
  }
  return Student.open(files, runtime, { variant, threads, kind: cpuKind() });
}

/** @param {string} place @returns {Promise<Files>} */
async function openFiles(place) {
  if (!existsSync(place)) throw new StudentError(`no bundle at ${place}; check the path`);
  const status = await lstat(place);
  if (status.isFile()) return Files.openZip(place, await readFile(place));
  return Files.open(place, (name, limit) => readPlain(place, name, limit));
}

/**
 * A plain file inside the bundle: links, pipes and devices are refused.
 * @param {string} root @param {string} name @param {number} limit
 * @returns {Promise<Uint8Array | null>}
 */
async function readPlain(root, name, limit) {
  let place = root;
  let status;
  for (const part of name.split("/")) {
    place = join(place, part);
    try {
      status = await lstat(place);
    } catch {
      return null;
    }
    if (status.isSymbolicLink()) throw new StudentError(`${name} is (or lies behind) a symbolic link; ${FRESH}`);
  }
  if (!status?.isFile()) throw new StudentError(`${name} is not a plain file; ${FRESH}`);
  const file = await open(place);
  try {
    const buffer = new Uint8Array(Math.min(status.size, limit + 1));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

/** The kind of this CPU, as bundles name it: x86_64-vnni, x86_64-avx512, x86_64-avx2, x86_64, aarch64, ... */
export function cpuKind() {
  const kind = { x64: "x86_64", arm64: "aarch64" }[/** @type {string} */ (arch())] ?? arch();
  if (kind !== "x86_64" || !existsSync("/proc/cpuinfo")) return kind;
  const flags = new Set(readFileSync("/proc/cpuinfo", "utf8").split(/\s+/));
  if (flags.has("avx512_vnni") || flags.has("avx_vnni")) return "x86_64-vnni";
  return flags.has("avx512f") ? "x86_64-avx512" : flags.has("avx2") ? "x86_64-avx2" : "x86_64";
}
