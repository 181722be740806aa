/**
 * Open a bundle and load a variant (default: the bundle's choice for WebAssembly, which is float32 as a rule: int8 is for
 * the smaller download). Throws a `StudentError` that says what is wrong.
 * @param {string | Blob} [bundle] the address of the folder, or a zip
 * @param {import("./student/student.js").Options & {ort?: any}} [options] more than one of `threads` needs a page that is
 *   cross-origin isolated, and the first student of a page decides; `ort` is the module onnxruntime-web where you bundle it
 * @returns {Promise<Student>}
 */
export function openStudent(bundle?: string | Blob, { variant, threads, ort }?: import("./student/student.js").Options & {
    ort?: any;
}): Promise<Student>;
export function decodeOther(bytes: Uint8Array, exif: boolean): Promise<import("./student/png.js").Picture>;
import { Student } from "./student/student.js";
import { StudentError } from "./student/errors.js";
export { Student, StudentError };
