/**
 * Gives the file `name`, at most `limit` bytes of it and one more; null where there is none.
 * @typedef {(name: string, limit: number) => Promise<Uint8Array | null>} Read
 */
/** An opened bundle: its checked manifest, and its files when they are asked for. */
export class Files {
    /**
     * @param {string} place
     * @param {Read} read
     * @returns {Promise<Files>}
     */
    static open(place: string, read: Read): Promise<Files>;
    /**
     * A bundle that is one zip.
     * @param {string} place
     * @param {Uint8Array} bytes
     * @returns {Promise<Files>}
     */
    static openZip(place: string, bytes: Uint8Array): Promise<Files>;
    /**
     * @param {string} place what errors call it
     * @param {Read} read
     * @param {import("./manifest.js").Manifest} manifest
     */
    constructor(place: string, read: Read, manifest: import("./manifest.js").Manifest);
    place: string;
    manifest: import("./manifest.js").Manifest;
    /** @private */
    private _read;
    /**
     * The file `name`, which the manifest must list in this size and with this hash.
     * @param {string} name
     * @returns {Promise<Uint8Array>}
     */
    read(name: string): Promise<Uint8Array>;
    /**
     * The golden arrays: "raw", "input.NAME", "output.VARIANT.NAME".
     * @returns {Promise<Map<string, import("./archive.js").NdArray>>}
     */
    golden(): Promise<Map<string, import("./archive.js").NdArray>>;
}
/**
 * Gives the file `name`, at most `limit` bytes of it and one more; null where there is none.
 */
export type Read = (name: string, limit: number) => Promise<Uint8Array | null>;
