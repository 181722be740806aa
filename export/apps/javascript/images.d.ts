/**
 * An image file as bytes (height, width, 3), or (height, width, 1) when it is stored in grey; upright where the step
 * says so, transparency composed over its colour.
 * @param {Uint8Array} bytes
 * @param {import("./steps.js").Decode} step
 * @param {OtherFormats} [others] what reads neither PNG nor JPEG
 * @returns {Promise<Image>}
 */
export function decodeImage(bytes: Uint8Array, step: import("./steps.js").Decode, others?: OtherFormats): Promise<Image>;
/**
 * Alpha, the last channel, composed over black or white, in Pillow's whole numbers.
 * @param {Image} image
 * @param {import("./steps.js").Decode} step
 * @returns {Image}
 */
export function withoutAlpha(image: Image, step: import("./steps.js").Decode): Image;
/**
 * The picture turned and mirrored as EXIF's orientation (1 to 8) says.
 * @param {Image} image
 * @param {number} orientation
 * @returns {Image}
 */
export function turned(image: Image, orientation: number): Image;
/**
 * The orientation in EXIF data, which is a TIFF header with a table of entries; 1 where none can be read.
 * @param {Uint8Array} tiff
 * @returns {number}
 */
export function readOrientation(tiff: Uint8Array): number;
export type Image = import("./preprocess.js").Image;
export type OtherFormats = (bytes: Uint8Array, exif: boolean) => Promise<import("./png.js").Picture>;
