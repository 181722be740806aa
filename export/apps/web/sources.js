// Where samples come from in the page: a finger, a file, the camera. Pixels are copied and cropped, never scaled here.
import { decodeImage } from "./student/images.js";

/** @typedef {{shape: number[], data: Uint8Array}} Pixels */

// Of the side, around what was drawn. Data sets frame what is written tightly or with a border: the surer answer counts.
const MARGINS = [0.04, 0.17];

/**
 * A canvas to draw on with finger, pen or mouse: white ink on black.
 * @param {HTMLCanvasElement} canvas
 * @param {() => void} changed called while something is drawn
 */
export function drawing(canvas, changed) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
  /** @param {PointerEvent} event @returns {[number, number]} */
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const clear = () => {
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: canvas.width / 11, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...place(event));
    context.lineTo(...place(event));
    context.stroke();
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    context.lineTo(...place(event));
    context.stroke();
    changed();
  });
  clear();
  return { clear, pixels: () => inked(context.getImageData(0, 0, canvas.width, canvas.height)) };
}

/**
 * What was drawn, in the middle of a square, once with each margin; nothing where nothing is.
 * @param {ImageData} image
 * @returns {Pixels[]}
 */
function inked({ width, height, data }) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (data[4 * (y * width + x)] < 128) continue;
      [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
    }
  }
  if (right < 0) return [];
  const [wide, tall] = [right - left + 1, bottom - top + 1];
  return MARGINS.map((margin) => {
    const side = Math.ceil(Math.max(wide, tall) / (1 - 2 * margin));
    const [x0, y0] = [left - Math.floor((side - wide) / 2), top - Math.floor((side - tall) / 2)];
    const pixels = new Uint8Array(side * side);
    for (let y = Math.max(0, -y0); y < side && y0 + y < height; y += 1) {
      for (let x = Math.max(0, -x0); x < side && x0 + x < width; x += 1) {
        pixels[y * side + x] = data[4 * ((y0 + y) * width + x0 + x)];
      }
    }
    return { shape: [side, side, 1], data: pixels };
  });
}

/**
 * The camera, in a video element.
 * @param {HTMLVideoElement} video
 */
export function camera(video) {
  const canvas = document.createElement("canvas");
  /** @type {MediaStream | null} */
  let stream = null;
  return {
    async start() {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
      video.srcObject = stream;
      await video.play();
    },
    stop() {
      for (const track of stream?.getTracks() ?? []) track.stop();
      stream = null;
      video.srcObject = null;
    },
    /** The square in the middle of the picture; null before there is one. @returns {Pixels | null} */
    pixels() {
      const side = Math.min(video.videoWidth, video.videoHeight);
      if (side === 0) return null;
      canvas.width = canvas.height = side;
      const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
      const [x, y] = [(video.videoWidth - side) >> 1, (video.videoHeight - side) >> 1];
      context.drawImage(video, x, y, side, side, 0, 0, side, side);
      return withoutAlpha(context.getImageData(0, 0, side, side));
    },
  };
}

/** @param {ImageData} image @returns {Pixels} */
function withoutAlpha({ width, height, data }) {
  const pixels = new Uint8Array(width * height * 3);
  for (let at = 0, to = 0; at < data.length; at += 4) {
    for (let channel = 0; channel < 3; channel += 1) pixels[to++] = data[at + channel];
  }
  return { shape: [height, width, 3], data: pixels };
}

/**
 * Dark ink on light paper as light on dark, which students of digits know.
 * @param {Pixels} pixels
 * @returns {Pixels}
 */
export function inverted({ shape, data }) {
  return { shape, data: data.map((value) => 255 - value) };
}

/**
 * A PNG or JPEG, decoded and inverted.
 * @param {Blob} file
 * @returns {Promise<Pixels>}
 */
export async function decodedInverted(file) {
  const image = await decodeImage(new Uint8Array(await file.arrayBuffer()), { op: "decode" });
  const { height, width, channels, data } = image;
  return inverted({ shape: [height, width, channels], data: /** @type {Uint8Array} */ (data) });
}
