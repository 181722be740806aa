/**
 * @param {Uint8Array} bytes UTF-8
 * @returns {unknown} tables, lists, texts, numbers, true, false, null; throws an Error that says what is wrong
 */
export function parseJson(bytes: Uint8Array): unknown;
