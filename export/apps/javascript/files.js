// The files of a bundle, wherever they come from. Every byte is hashed before it is used; nothing is executed.
import { unzip, readNpz, zipEntries } from "./archive.js";
import { FRESH, StudentError, told } from "./errors.js";
import { MANIFEST, MAX_MANIFEST_BYTES, parseManifest } from "./manifest.js";
import { sha256 } from "./sha256.js";

/**
 * Gives the file `name`, at most `limit` bytes of it and one more; null where there is none.
 * @typedef {(name: string, limit: number) => Promise<Uint8Array | null>} Read
 */

/** An opened bundle: its checked manifest, and its files when they are asked for. */
export class Files {
  /**
   * @param {string} place what errors call it
   * @param {Read} read
   * @param {import("./manifest.js").Manifest} manifest
   */
  constructor(place, read, manifest) {
    this.place = place;
    this.manifest = manifest;
    /** @private */
    this._read = read;
  }

  /**
   * @param {string} place
   * @param {Read} read
   * @returns {Promise<Files>}
   */
  static async open(place, read) {
    const data = await limited(place, read, MANIFEST, MAX_MANIFEST_BYTES);
    return new Files(place, read, parseManifest(data));
  }

  /**
   * A bundle that is one zip.
   * @param {string} place
   * @param {Uint8Array} bytes
   * @returns {Promise<Files>}
   */
  static async openZip(place, bytes) {
    /** @type {Map<string, import("./archive.js").Entry>} */
    let entries;
    try {
      entries = zipEntries(bytes);
    } catch (error) {
      throw new StudentError(`${place} is no readable bundle (${told(error)}); ${FRESH}`);
    }
    return Files.open(place, async (name, limit) => {
      const entry = entries.get(name);
      return entry === undefined ? null : unzip(bytes, entry, limit);
    });
  }

  /**
   * The file `name`, which the manifest must list in this size and with this hash.
   * @param {string} name
   * @returns {Promise<Uint8Array>}
   */
  async read(name) {
    const record = this.manifest.files[name];
    if (record === undefined) throw new StudentError(`${MANIFEST} does not list '${name}'; ${FRESH}`);
    const data = await limited(this.place, this._read, name, record.size_bytes);
    if (data.length !== record.size_bytes || (await sha256(data)) !== record.sha256) {
      throw new StudentError(`${name} in ${this.place} was changed after the bundle was written; ${FRESH}`);
    }
    return data;
  }

  /**
   * The golden arrays: "raw", "input.NAME", "output.VARIANT.NAME".
   * @returns {Promise<Map<string, import("./archive.js").NdArray>>}
   */
  async golden() {
    const { file } = this.manifest.golden;
    const data = await this.read(file);
    try {
      return await readNpz(data);
    } catch (error) {
      throw new StudentError(`${file} is no readable .npz file of numbers (${told(error)}); ${FRESH}`);
    }
  }
}

/** @param {string} place @param {Read} read @param {string} name @param {number} limit */
async function limited(place, read, name, limit) {
  let data;
  try {
    data = await read(name, limit);
  } catch (error) {
    if (error instanceof StudentError) throw error;
    throw new StudentError(`${name} in ${place} cannot be read (${told(error)}); ${FRESH}`);
  }
  if (data === null) throw new StudentError(`${name} is missing in ${place}; ${FRESH}`);
  if (data.length > limit) throw new StudentError(`${name} is longer than ${limit} bytes; ${FRESH}`);
  return data;
}
