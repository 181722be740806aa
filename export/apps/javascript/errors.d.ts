/**
 * What went wrong, in words, whatever was thrown.
 * @param {unknown} error
 * @returns {string}
 */
export function told(error: unknown): string;
/** What cannot be used, and what to do about it. `exitCode` is 3 for an input, 2 for an argument, 4 for a lack. */
export class StudentError extends Error {
    /**
     * @param {string} text
     * @param {number} [exitCode]
     */
    constructor(text: string, exitCode?: number);
    exitCode: number;
}
export const FRESH: "get a fresh copy of the bundle";
