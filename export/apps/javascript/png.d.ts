/** @param {Uint8Array} bytes */
export function isPng(bytes: Uint8Array): boolean;
/**
 * The first picture in a PNG with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels; `orientation` as EXIF counts.
 * Throws an Error that says what is damaged.
 * @param {Uint8Array} bytes
 * @param {{maxPixels: number, readOrientation: (tiff: Uint8Array) => number}} options
 * @returns {Promise<Picture>}
 */
export function decodePng(bytes: Uint8Array, { maxPixels, readOrientation }: {
    maxPixels: number;
    readOrientation: (tiff: Uint8Array) => number;
}): Promise<Picture>;
export type Picture = {
    height: number;
    width: number;
    channels: number;
    data: Uint8Array;
    orientation: number;
};
