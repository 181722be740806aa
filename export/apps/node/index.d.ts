/**
 * Open a bundle (folder or zip) and load a variant (default: the bundle's choice for this CPU).
 * Throws a `StudentError` that says what is wrong.
 * @param {string} [bundle]
 * @param {import("./student/student.js").Options} [options]
 * @returns {Promise<Student>}
 */
export function openStudent(bundle?: string, { variant, threads }?: import("./student/student.js").Options): Promise<Student>;
/** The kind of this CPU, as bundles name it: x86_64-vnni, x86_64-avx512, x86_64-avx2, x86_64, aarch64, ... */
export function cpuKind(): string;
/** The bundle that came with this package. */
export const OWN_BUNDLE: string;
import { Student } from "./student/student.js";
import { StudentError } from "./student/errors.js";
export { Student, StudentError };
