/**
 * @param {Uint8Array} bytes
 * @returns {Promise<string>} 64 hexadecimal digits
 */
export function sha256(bytes: Uint8Array): Promise<string>;
/**
 * @param {Uint8Array} bytes
 * @returns {Uint8Array}
 */
export function sha256Slow(bytes: Uint8Array): Uint8Array;
