// Image files to pixels, with whole numbers that do not depend on the browser: never through a canvas that scales.
import { StudentError, told } from "./errors.js";
import { decodeJpeg, isJpeg } from "./jpeg.js";
import { decodePng, isPng } from "./png.js";

/** @typedef {import("./preprocess.js").Image} Image */
/** @typedef {(bytes: Uint8Array, exif: boolean) => Promise<import("./png.js").Picture>} OtherFormats */

const MAX_PIXELS = 89_478_485; // where Pillow warns of a bomb

/**
 * An image file as bytes (height, width, 3), or (height, width, 1) when it is stored in grey; upright where the step
 * says so, transparency composed over its colour.
 * @param {Uint8Array} bytes
 * @param {import("./steps.js").Decode} step
 * @param {OtherFormats} [others] what reads neither PNG nor JPEG
 * @returns {Promise<Image>}
 */
export async function decodeImage(bytes, step, others) {
  const exif = step.exif ?? true;
  const options = { maxPixels: MAX_PIXELS, readOrientation };
  if (bytes.length === 0) throw new StudentError("the image is empty (0 bytes); replace it");
  let picture;
  try {
    if (isPng(bytes)) picture = await decodePng(bytes, options);
    else if (isJpeg(bytes)) picture = decodeJpeg(bytes, options);
    else if (others !== undefined) picture = await others(bytes, exif);
    else throw new Error("it is neither PNG nor JPEG");
  } catch (error) {
    throw new StudentError(`the image cannot be decoded (${told(error)}); replace it, for example by a PNG`);
  }
  const upright = exif ? turned(picture, picture.orientation) : picture;
  return [2, 4].includes(upright.channels) ? withoutAlpha(upright, step) : upright;
}

/**
 * Alpha, the last channel, composed over black or white, in Pillow's whole numbers.
 * @param {Image} image
 * @param {import("./steps.js").Decode} step
 * @returns {Image}
 */
export function withoutAlpha(image, step) {
  const { height, width, data } = image;
  const channels = image.channels - 1;
  const below = step.alpha === "white" ? 255 : 0;
  const result = new Uint8Array(height * width * channels);
  for (let pixel = 0; pixel < height * width; pixel += 1) {
    const alpha = data[pixel * (channels + 1) + channels];
    for (let channel = 0; channel < channels; channel += 1) {
      const total = (data[pixel * (channels + 1) + channel] * alpha + below * (255 - alpha)) * 128 + 0x80 * 128;
      result[pixel * channels + channel] = ((total >> 8) + total) >> 15;
    }
  }
  return { height, width, channels, data: result };
}

/**
 * The picture turned and mirrored as EXIF's orientation (1 to 8) says.
 * @param {Image} image
 * @param {number} orientation
 * @returns {Image}
 */
export function turned(image, orientation) {
  if (!(orientation >= 2 && orientation <= 8)) return image;
  const { height: rows, width: columns, channels, data } = image;
  const [height, width] = orientation >= 5 ? [columns, rows] : [rows, columns];
  const result = new Uint8Array(data.length);
  const fromBottom = [3, 4, 6, 7].includes(orientation);
  const fromRight = [2, 3, 7, 8].includes(orientation);
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, to += channels) {
      const [down, right] = orientation >= 5 ? [x, y] : [y, x];
      const from = ((fromBottom ? rows - 1 - down : down) * columns + (fromRight ? columns - 1 - right : right)) * channels;
      for (let channel = 0; channel < channels; channel += 1) result[to + channel] = data[from + channel];
    }
  }
  return { height, width, channels, data: result };
}

/**
 * The orientation in EXIF data, which is a TIFF header with a table of entries; 1 where none can be read.
 * @param {Uint8Array} tiff
 * @returns {number}
 */
export function readOrientation(tiff) {
  const data = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  if (tiff.length < 8) return 1;
  const little = data.getUint16(0) === 0x4949;
  const start = data.getUint32(4, little);
  if (start + 2 > tiff.length) return 1;
  const count = data.getUint16(start, little);
  for (let at = start + 2; at + 12 <= tiff.length && at < start + 2 + 12 * count; at += 12) {
    if (data.getUint16(at, little) === 0x0112) return data.getUint16(at + 8, little);
  }
  return 1;
}
