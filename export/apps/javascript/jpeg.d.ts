/** @param {Uint8Array} bytes */
export function isJpeg(bytes: Uint8Array): boolean;
/**
 * A JPEG with 1 (grey) or 3 (RGB) channels. Throws an Error that says what is damaged or not supported.
 * @param {Uint8Array} bytes
 * @param {{maxPixels: number, readOrientation: (tiff: Uint8Array) => number}} options
 * @returns {import("./png.js").Picture}
 */
export function decodeJpeg(bytes: Uint8Array, { maxPixels, readOrientation }: {
    maxPixels: number;
    readOrientation: (tiff: Uint8Array) => number;
}): import("./png.js").Picture;
export type Component = {
    id: number;
    /**
     * samples across, of one unit
     */
    h: number;
    /**
     * samples down
     */
    v: number;
    /**
     * in the order of the file, zigzag; filled in when the first scan starts
     */
    quantization: Uint16Array;
    /**
     * which quantization
     */
    table: number;
    /**
     * samples across, of the picture
     */
    columns: number;
    rows: number;
    /**
     * with those that only fill up units
     */
    blocksAcross: number;
    blocksDown: number;
    /**
     * 64 for each block, zigzag
     */
    coefficients: Int16Array;
    dc: number;
    dcTable: import("./jpeg_scans.js").Huffman | undefined;
    acTable: import("./jpeg_scans.js").Huffman | undefined;
};
export type Frame = {
    progressive: boolean;
    height: number;
    width: number;
    maxH: number;
    maxV: number;
    components: Component[];
};
