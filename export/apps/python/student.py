"""A student in one file: numpy, onnxruntime, Pillow for images, tokenizers for texts. Needs nothing of edgekd.

    from student import Student

    with Student("student.edgekd") as student:
        answer = student.predict("photo.jpg", top_k=3)   # a path, encoded bytes, or an array
        print(answer.label, answer.score, answer.uncertainty)

    python student.py photo.jpg            python student.py --self-test
    python student.py "book a table for two"                           (a student of texts; - reads them from the input)

Exit codes: 0 done, 1 the self-test failed, 2 usage, 3 input refused, 4 something is missing here. Apache-2.0.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import math
import os
import platform
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
MAX_MANIFEST, MAX_FILE, MAX_ARRAYS, MAX_SIDE = 1_000_000, 1 << 31, 1 << 28, 16384
FRESH = "get a fresh copy of the bundle"
MAX_TEXT, PADS = 10_000_000, ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
SPATIAL = ("decode", "to_rgb", "to_grey", "resize", "center_crop", "tokenize")
CONTRADICTIONS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError)
DAMAGED = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, LookupError)


class StudentError(ValueError):
    """What cannot be used, and what to do about it; `exit_code` is 3 for an input, 2 for an argument, 4 for a lack."""

    def __init__(self, text: str, exit_code: int = 3) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Answer:
    """What the model says about one sample.

    label, index, score   the best label; None where a multilabel model finds none present, and for an embedding, whose
                          score is the length of its vector
    top                   (label, score) pairs: the top_k classes, the labels that are present, or all targets
    uncertainty           for classes: the entropy of their probabilities, 0 (sure of one) to 1 (all alike); else None
    outputs               what the graph gave for this sample, by name: the vector of an embedding
    latency_ms            preprocessing, inference and postprocessing; in a batch, its share of the whole
    truncated             whether the text was longer than the model reads: its end was not looked at
    """

    label: str | None
    index: int | None
    score: float
    top: tuple[tuple[str, float], ...]
    uncertainty: float | None
    outputs: dict[str, np.ndarray]
    latency_ms: float
    truncated: bool = False


@contextmanager
def contradictions(path: Path) -> Iterator[None]:
    """What a bundle says of itself and does not keep ends in one sentence too."""
    try:
        with np.errstate(all="ignore"):  # what overflows ends as an answer that is not finite, which is refused
            yield
    except StudentError:
        raise
    except CONTRADICTIONS as error:
        raise StudentError(f"{path} contradicts itself ({type(error).__name__}: {error}); {FRESH}") from error


class Student:
    """An opened bundle (folder or zip) with one variant loaded. Threads may share it."""

    def __init__(self, bundle: str | Path, *, variant: str | None = None, threads: int = 1) -> None:
        """Check the bundle and load a variant (default: the bundle's choice for this CPU). Raises `StudentError`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise StudentError("onnxruntime is not installed: pip install onnxruntime", 4) from error
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= cores:
            raise StudentError(f"threads is {threads!r}, expected a whole number from 1 to {cores} cores", 2)
        self.files = Files(Path(bundle))
        with contradictions(self.files.path):
            self._open(onnxruntime, variant, threads)

    def _open(self, onnxruntime: Any, variant: str | None, threads: int) -> None:
        self.manifest = manifest = self.files.manifest
        self.variant = variant if variant is not None else default_variant(manifest)
        if self.variant not in manifest["variants"]:
            raise StudentError(f"no variant '{self.variant}', expected one of {', '.join(manifest['variants'])}", 2)
        self.labels: list[str] = manifest["labels"]
        self.input, self.output = manifest["inputs"][0], manifest["outputs"][0]["name"]
        steps = manifest["preprocess"]
        self._spatial = [step for step in steps if step["op"] in SPATIAL]
        self._arithmetic = [step for step in steps if step["op"] not in SPATIAL]
        self.tokenizer = None
        if steps and steps[0]["op"] == "tokenize":
            self.tokenizer = Tokenizer(self.files.read(steps[0]["file"]), steps[0].get("max_length", 128))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        onnxruntime.disable_telemetry_events()
        graph = self.files.read(manifest["variants"][self.variant]["graphs"]["main"])
        self._one_by_one = b"DynamicQuantize" in graph  # all samples of a call would share the scale it measures
        try:
            self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no other base
            raise StudentError(f"onnxruntime {onnxruntime.__version__} cannot load the graph: {error}") from error
        self._names = [item.name for item in self._session.get_outputs()]

    def predict(self, x: Any, *, top_k: int = 1) -> Answer:
        """The answer for one sample: a text, an image's path, its encoded bytes, or an array without batch axis."""
        return self.predict_batch([x], top_k=top_k)[0]

    async def predict_async(self, x: Any, *, top_k: int = 1) -> Answer:
        """`predict` in a thread of the running event loop, which goes on meanwhile."""
        import asyncio  # here: it takes 7 MB, and who calls this has it already

        return await asyncio.get_running_loop().run_in_executor(None, partial(self.predict, x, top_k=top_k))

    def predict_batch(self, xs: list[Any], *, top_k: int = 1) -> list[Answer]:
        """The answers for several samples of one shape, in their order: `predict`'s, run together if possible."""
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise StudentError(f"top_k is {top_k!r}, expected a whole number from 1", 2)
        if self._one_by_one and len(xs) > 1:
            return [self.predict(x, top_k=top_k) for x in xs]
        with contradictions(self.files.path):
            return self._predict(xs, top_k)

    def _predict(self, xs: list[Any], top_k: int) -> list[Answer]:
        started = time.perf_counter()
        cut = [False] * len(xs)
        if self.tokenizer is not None:
            encoded = [self.tokenizer.encode(x) for x in xs]
            samples, cut = [ids for ids, _ in encoded], [truncated for _, truncated in encoded]
        else:
            samples = [prepare(self._spatial, x) for x in xs]
        if not samples:
            return []
        if len({sample.shape for sample in samples}) > 1:
            raise StudentError(f"the samples have shapes {sorted({s.shape for s in samples})}, expected one shape")
        outputs = self.run(arithmetic(self._arithmetic, np.stack(samples)))
        scores_ND = postprocess(self.manifest["postprocess"], outputs[self.output])
        if scores_ND.ndim != 2 or scores_ND.shape[1] != len(self.labels):
            raise StudentError(f"the model gave {scores_ND.shape}, expected (N, {len(self.labels)}); {FRESH}")
        if not np.isfinite(scores_ND).all():
            raise StudentError("the answer is NaN or infinite; look for NaN or infinite values in the input")
        latency_ms = 1000 * (time.perf_counter() - started) / len(samples)
        rows = [{name: array[row] for name, array in outputs.items()} for row in range(len(samples))]
        answers = [self._answer(scores_D, top_k, row, latency_ms) for scores_D, row in zip(scores_ND, rows)]
        return [replace(answer, truncated=truncated) for answer, truncated in zip(answers, cut)]

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The graph's outputs for preprocessed inputs (N, ...); a graph with a fixed batch gets it in pieces."""
        session = self._session
        if session is None:
            raise StudentError("this student is closed; open it again", 2)
        sides = self.input["shape"][1:]
        fits = len(sides) == batch.ndim - 1 and all(
            isinstance(s, str) or s == f for s, f in zip(sides, batch.shape[1:])
        )
        if not fits:
            raise StudentError(
                f"preprocessing gives samples of shape {batch.shape[1:]}, the model reads {tuple(sides)}"
            )
        size = self.input["shape"][0]
        pieces = [batch] if isinstance(size, str) else [batch[at : at + size] for at in range(0, len(batch), size)]
        parts = []
        for piece in pieces:
            missing = 0 if isinstance(size, str) else size - len(piece)
            whole = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece
            ready = whole.astype(self.input["dtype"], copy=False)
            try:
                given = session.run(self._names, {self.input["name"]: ready})
            except Exception as error:  # onnxruntime's errors share no other base
                raise StudentError(f"the graph refuses {ready.dtype} {ready.shape}: {error}; {FRESH}") from error
            parts.append([array[: len(piece)] for array in given])
        return {name: np.concatenate(arrays) for name, arrays in zip(self._names, zip(*parts))}

    def warm_up(self) -> None:
        """Run once on zeros, so that the first answer is not the slow one."""
        shape = [side if isinstance(side, int) else 1 for side in self.input["shape"]]
        self.run(np.zeros(shape, np.float32))

    def self_test(self) -> list[str]:
        """What differs from the bundle's golden vectors: nothing, where all is well."""
        with contradictions(self.files.path):
            return self._self_test()

    def _self_test(self) -> list[str]:
        golden, problems = self.files.golden(), []
        ready = golden[f"input.{self.input['name']}"]
        if "raw" in golden:
            made = arithmetic(self._arithmetic, golden["raw"])
            apart = np.abs(made - ready).max() if made.shape == ready.shape else np.nan
            if not apart <= 1e-6:
                problems.append(f"preprocessing differs by {apart:.1e}, expected at most 1e-06")
        told = self.manifest["variants"][self.variant].get("tolerance", {})
        limits = {"abs": 1e-4, "rel": 1e-3, "label_agreement": 1.0, **told}
        outputs = self.run(ready)
        for name in self.manifest["golden"]["outputs"][self.variant]:
            found, wanted = outputs[name], golden[f"output.{self.variant}.{name}"].astype(np.float64)
            apart_ND = np.abs(found - wanted)
            if not (apart_ND <= limits["abs"] + limits["rel"] * np.abs(wanted)).all():
                problems.append(f"output '{name}' differs by up to {apart_ND.max():.1e}, expected {limits['abs']:.1e}")
            same = (found.argmax(-1) == wanted.argmax(-1)).mean()
            if self.manifest["task"] == "classification" and same < limits["label_agreement"]:
                problems.append(f"{same:.1%} of the answers are the same, expected {limits['label_agreement']:.1%}")
        return problems

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def __enter__(self) -> Student:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, scores_D: np.ndarray, top_k: int, outputs: dict[str, np.ndarray], latency_ms: float) -> Answer:
        uncertainty, task = None, self.manifest["task"]
        if task == "embedding":
            return Answer(None, None, float(np.linalg.norm(scores_D)), (), None, outputs, latency_ms)
        order = [int(index) for index in np.argsort(-scores_D, kind="stable")]
        if task == "classification":
            order = order[:top_k]
            uncertainty = entropy(scores_D)
        elif task == "multilabel":
            values = [step.get("value", 0.5) for step in self.manifest["postprocess"] if step["op"] == "threshold"]
            order = [index for index in order if scores_D[index] >= (values or [0.5])[0]]
        else:
            order = list(range(len(scores_D)))
        top = tuple((self.labels[index], float(scores_D[index])) for index in order)
        label, score = top[0] if top else (None, float(scores_D.max()))
        return Answer(label, order[0] if order else None, score, top, uncertainty, outputs, latency_ms)


def entropy(scores_D: np.ndarray) -> float | None:
    """The entropy of probabilities as a share of the largest possible; None where they are none."""
    exact = scores_D.astype(np.float64)
    if len(exact) < 2 or exact.min() < 0 or abs(exact.sum() - 1) > 1e-3:
        return None
    positive = exact[exact > 0]
    return float(max(0.0, -(positive * np.log(positive)).sum() / math.log(len(exact))))


class Files:
    """A bundle's files. Nothing is unpacked or executed; every byte was hashed before it is used."""

    def __init__(self, path: Path) -> None:
        self.path, self.zip = path, None
        try:
            if not path.is_dir():
                if not path.is_file():  # a pipe would never end
                    raise StudentError(f"{path} is no readable bundle (no file or folder is there); check the path")
                self.zip = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
                names = [item.filename for item in self.zip.infolist()]
                if len(set(names)) != len(names):
                    raise StudentError(f"{path} holds a name twice; {FRESH}")
            self.manifest: dict[str, Any] = json.loads(self._read("bundle.json", MAX_MANIFEST).decode())
            self._check()
        except StudentError:
            raise
        except (*DAMAGED, TypeError, AttributeError, RecursionError) as error:
            raise StudentError(f"{path} is no readable bundle ({error}); {FRESH}") from error

    def read(self, name: str) -> bytes:
        """The file `name`, which the manifest must list in this size and with this hash."""
        record = self.manifest["files"].get(name)
        if record is None or not safe(name):
            raise StudentError(f"bundle.json does not list '{name}'; {FRESH}")
        data = self._read(name, record["size_bytes"])
        if len(data) != record["size_bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise StudentError(f"{name} in {self.path} was changed after the bundle was written; {FRESH}")
        return data

    def golden(self) -> dict[str, np.ndarray]:
        """The golden arrays; plain numbers, never a pickle."""
        data = io.BytesIO(self.read(self.manifest["golden"]["file"]))
        try:
            with zipfile.ZipFile(data) as archive:
                if sum(item.file_size for item in archive.infolist()) > MAX_ARRAYS:
                    raise ValueError("more than 256 MB")
            with np.load(data, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except DAMAGED as error:
            raise StudentError(f"the golden vectors cannot be read ({error}); {FRESH}") from error

    def _read(self, name: str, limit: int) -> bytes:
        try:
            if self.zip is not None:
                with self.zip.open(name) as file:
                    data = file.read(limit + 1)
            else:
                place = self.path / name
                parts = [place, *(self.path / part for part in list(Path(name).parents)[:-1])]
                if any(part.is_symlink() for part in parts) or not place.is_file():
                    raise StudentError(f"{name} is missing in {self.path}, or is a link; {FRESH}")
                with place.open("rb") as file:
                    data = file.read(limit + 1)
        except DAMAGED as error:
            if isinstance(error, StudentError):
                raise
            raise StudentError(f"{name} in {self.path} cannot be read ({error}); {FRESH}") from error
        if len(data) > limit:
            raise StudentError(f"{name} is longer than {limit} bytes; {FRESH}")
        return data

    def _check(self) -> None:
        manifest, known = self.manifest, {*SPATIAL, "scale", "normalize", "layout", "trim"}
        version = manifest.get("version")
        if version != VERSION or isinstance(version, bool):
            raise StudentError(f"the bundle has version {version!r}, this loader reads {VERSION}; update student.py")
        for kind, steps in (
            ("preprocess", known),
            ("postprocess", {"softmax", "sigmoid", "denormalize", "threshold", "top_k"}),
        ):
            for step in manifest[kind]:
                if step["op"] not in steps:
                    raise StudentError(
                        f"{kind} has the step {step['op']!r}, which this loader lacks; update student.py"
                    )
        ops = [step["op"] for step in manifest["preprocess"]]
        if {"tokenize", "trim"} & set(ops) and (ops[0] != "tokenize" or set(ops[1:]) - {"trim"}):
            raise StudentError(f"preprocess is {', '.join(ops)}, expected tokenize, then trim; {FRESH}")
        for name, record in manifest["files"].items():
            size = record["size_bytes"]
            if not safe(name) or not isinstance(size, int) or not 0 <= size <= MAX_FILE:
                raise StudentError(f"bundle.json lists {name!r}, which is no file inside it; {FRESH}")
        fits = all(entry["graphs"]["main"] in manifest["files"] for entry in manifest["variants"].values())
        texts = all(isinstance(label, str) for label in manifest["labels"])
        named = manifest["inputs"][0]["name"] and manifest["inputs"][0]["shape"] and manifest["outputs"][0]["name"]
        if (
            not (fits and texts and named and manifest["variants"])
            or manifest["golden"]["file"] not in manifest["files"]
        ):
            raise StudentError(f"bundle.json contradicts itself; {FRESH}")


def safe(name: str) -> bool:
    """Whether a name stays inside the bundle."""
    parts = name.split("/")
    return 0 < len(name) < 256 and not re.search(r'[\x00-\x1f\x7f\\:*?"<>|]', name) and not {"", ".", ".."} & set(parts)


def default_variant(manifest: dict[str, Any]) -> str:
    """The variant that the bundle names for this CPU: the exact kind, else the longest pattern that fits."""
    machine = platform.machine().lower()
    kind = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if kind == "x86_64":
        info = Path("/proc/cpuinfo")
        flags = set(info.read_text(errors="replace").split()) if info.exists() else set()
        has = [("-vnni", {"avx512_vnni", "avx_vnni"}), ("-avx512", {"avx512f"}), ("-avx2", {"avx2"})]
        kind += next((name for name, some in has if flags & some), "")
    default: dict[str, str] = manifest.get("default", {})
    fitting = [pattern for pattern in default if fnmatch.fnmatchcase(kind, pattern)]
    if kind in default or fitting:
        return default.get(kind) or default[max(fitting, key=len)]
    return "float32" if "float32" in manifest["variants"] else next(iter(manifest["variants"]))


class Tokenizer:
    """Texts to ids by a Hugging Face tokenizer.json: cut and padded on the right to `max_length`."""

    def __init__(self, data: bytes, max_length: int) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise StudentError(
                "tokenizers is not installed, and this model reads texts: pip install tokenizers", 4
            ) from error
        try:
            self._encoder = tokenizers.Tokenizer.from_str(data.decode())
            names = self._encoder.get_vocab(with_added_tokens=True)
            named = (json.loads(data).get("padding") or {}).get("pad_token")
            self.pad = next(names[token] for token in (named, *PADS) if token in names)
            self.size = 1 + max(names.values())
            self._encoder.no_padding()
            self._encoder.enable_truncation(max_length)
        except StopIteration:
            raise StudentError(f"the tokenizer has no padding, expected one of {', '.join(PADS)}; {FRESH}") from None
        except Exception as error:  # the Rust library raises bare Exception for every unknown part
            raise StudentError(
                f"the tokenizer cannot be used: {error}; pip install -U tokenizers, or {FRESH}"
            ) from error
        self.max_length = max_length

    def encode(self, x: Any) -> tuple[np.ndarray, bool]:
        """The ids (max_length,) of a text, of its bytes in UTF-8, or of ids; and whether the text was longer."""
        truncated = False
        if isinstance(x, (str, bytes)):
            encoded = self._encoder.encode(as_text(x))
            ids, truncated = np.array(encoded.ids), bool(encoded.overflowing)
        else:
            ids = np.asarray(x)
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or not len(ids) <= self.max_length:
            expected = f"a text, or 1 to {self.max_length} ids of tokens"
            raise StudentError(f"found an array of {ids.dtype} {ids.shape}, expected {expected}")
        if len(ids) > 0 and not 0 <= int(ids.min()) <= int(ids.max()) < self.size:
            raise StudentError(f"found ids from {ids.min()} to {ids.max()}, expected 0 to {self.size - 1}")
        row = np.full(self.max_length, self.pad, np.int32)
        row[: len(ids)] = ids
        return row, truncated


def as_text(x: str | bytes) -> str:
    """A text; half of a surrogate pair becomes U+FFFD."""
    try:
        text = (
            x.decode()
            if isinstance(x, bytes)
            else x.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        )
    except UnicodeDecodeError as error:
        raise StudentError(
            f"the text is not valid UTF-8 (byte {error.start}); decode it first, and pass a str"
        ) from error
    if len(text) > MAX_TEXT:
        raise StudentError(f"the text has {len(text)} characters, expected at most {MAX_TEXT}; pass a part of it")
    return text


# Preprocessing: what training did, number for number. BUNDLE.md of edgekd says what each step means.


def prepare(steps: list[dict[str, Any]], x: Any) -> np.ndarray:
    """One sample through decode, to_rgb, to_grey, resize and center_crop: (H, W, C), bytes stay bytes."""
    if isinstance(x, (str, bytes, os.PathLike)):
        if not steps or steps[0]["op"] != "decode":
            raise StudentError("this preprocessing decodes no files; pass a numpy array")
        image = decode(x, exif=steps[0].get("exif", True), white=steps[0].get("alpha") == "white")
    else:
        image = np.asarray(x)
        if image.dtype.kind not in "buif" or image.ndim == 0 or image.size == 0:
            raise StudentError(f"found an array of {image.dtype} {image.shape}, expected numbers on at least one axis")
        image = image if image.dtype == np.uint8 else image.astype(np.float32, copy=False)
    if not steps:
        return image
    image = image[..., np.newaxis] if image.ndim == 2 else image
    if image.ndim != 3:
        raise StudentError(f"found an array of shape {image.shape}, expected an image (H, W) or (H, W, C)")
    if steps[0]["op"] == "decode" and image.dtype == np.uint8 and image.shape[2] in (2, 4):
        image = without_alpha(image, 255 * (steps[0].get("alpha") == "white"))
    for step in steps:
        image = spatial(step, image)
    return np.ascontiguousarray(image)


def without_alpha(image: np.ndarray, below: int) -> np.ndarray:
    """An array with transparency (alpha last) over a grey `below`, in Pillow's whole numbers."""
    colour, alpha = image[..., :-1].astype(np.int32), image[..., -1:].astype(np.int32)
    total = colour * alpha * 128 + below * (255 - alpha) * 128 + 0x80 * 128
    return ((((total >> 8) + total) >> 8) >> 7).astype(np.uint8)


def decode(x: str | bytes | os.PathLike[str], *, exif: bool, white: bool) -> np.ndarray:
    """An image file as uint8 (H, W, 3), or (H, W, 1) when it is stored in grey; upright, without transparency."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise StudentError("Pillow is not installed, and images are to be decoded: pip install pillow", 4) from error
    name = "the image" if isinstance(x, bytes) else os.fspath(x)
    try:
        data = x if isinstance(x, bytes) else Path(x).read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened) if exif else opened
            grey = image.mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")
            if image.mode.startswith("I"):
                return (np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)[..., np.newaxis]
            if image.mode == "F":
                raise ValueError("32-bit floating point pixels have no fixed range")
            if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
                below = Image.new("RGBA", image.size, (255 * white,) * 3 + (255,))
                image = Image.alpha_composite(below, image.convert("RGBA"))
            pixels = np.array(image.convert("L" if grey else "RGB"), np.uint8)
    except Image.DecompressionBombError as error:
        raise StudentError(f"{name} is too large to decode safely ({error}); scale it down first") from error
    except (*DAMAGED, SyntaxError, TypeError, ArithmeticError) as error:
        raise StudentError(f"{name} cannot be read as an image ({error}); replace it") from error
    return pixels[..., np.newaxis] if grey else pixels


def spatial(step: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """One spatial step on (H, W, C)."""
    op, (height, width, channels) = step["op"], image.shape
    if op in ("to_rgb", "to_grey"):
        if channels not in (1, 3):
            raise StudentError(f"{op}: found {channels} channels, expected 1 or 3")
        if op == "to_rgb":
            return image if channels == 3 else np.repeat(image, 3, axis=2)
        weights = np.array((19595, 38470, 7471))
        if channels == 1:
            return image
        if image.dtype == np.uint8:
            return (((image.astype(np.int32) @ weights.astype(np.int32)) + 0x8000) >> 16).astype(np.uint8)[
                ..., np.newaxis
            ]
        return (image.astype(np.float64) @ (weights / 65536)).astype(np.float32)[..., np.newaxis]
    if op == "resize":
        size = step["size"]
        if not isinstance(size, list):
            longer = size * max(height, width) // min(height, width)
            if longer > MAX_SIDE:
                raise StudentError(f"resize: the longer side would be {longer} pixels; crop the image first")
            size = (size, longer) if height <= width else (longer, size)
        kind, antialias = step.get("filter", "bilinear"), step.get("antialias", True)
        if kind == "nearest":
            rows, columns = nearest(height, size[0]), nearest(width, size[1])
            return np.take(np.take(image, rows, axis=0), columns, axis=1)
        return resample(resample(image, 1, size[1], kind, antialias), 0, size[0], kind, antialias)
    if op == "center_crop":
        rows, columns = step["size"]
        if height < rows or width < columns:
            raise StudentError(f"center_crop: an image of {height} x {width} is smaller than {rows} x {columns}")
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        return image[top : top + rows, left : left + columns]
    return image


def resample(image: np.ndarray, axis: int, size: int, kind: str, antialias: bool) -> np.ndarray:
    """Pillow's separable filter along one axis, with its fixed-point arithmetic for bytes."""
    if image.shape[axis] == size:
        return image
    indices_KO, weights_KO = taps(image.shape[axis], size, kind, antialias)
    along = [1] * image.ndim
    along[axis] = size
    if image.dtype == np.uint8:
        fixed_KO = np.trunc(weights_KO * (1 << 22) + np.copysign(0.5, weights_KO)).astype(np.int32)
        total = sum(np.take(image, at, axis=axis) * w.reshape(along) for at, w in zip(indices_KO, fixed_KO)) + (1 << 21)
        return np.clip(total >> 22, 0, 255).astype(np.uint8)
    exact = 0.0
    for at, weight in zip(indices_KO, weights_KO):
        exact = exact + np.take(image, at, axis=axis) * weight.reshape(along)
    return np.asarray(exact).astype(np.float32)


@lru_cache(maxsize=64)
def taps(old: int, new: int, kind: str, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each of `new` pixels the source pixels and their weights: (taps, pixels)."""
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    support = {"bilinear": 1.0, "bicubic": 2.0}[kind] * stretch
    centres = (np.arange(new) + 0.5) * scale
    first = np.maximum(np.trunc(centres - support + 0.5), 0).astype(np.intp)
    last = np.minimum(np.trunc(centres + support + 0.5), old).astype(np.intp)
    number = np.arange(math.ceil(support) * 2 + 1)[:, np.newaxis]
    x = np.abs((number + first - centres + 0.5) / stretch)
    if kind == "bilinear":
        weights = np.maximum(1.0 - x, 0.0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    weights = np.where(number < last - first, weights, 0.0)
    weights /= np.cumsum(weights, axis=0)[-1]
    used = int((last - first).max())
    return np.minimum(number + first, old - 1)[:used], weights[:used]


def nearest(old: int, new: int) -> np.ndarray:
    """The source pixel of each of `new` pixels."""
    steps = np.full(new, old / new)
    steps[0] /= 2
    return np.minimum(np.add.accumulate(steps).astype(np.intp), old - 1)


def arithmetic(steps: list[dict[str, Any]], batch: np.ndarray) -> np.ndarray:
    """A batch (N, ...) through scale, normalize and layout: float32; ids of texts through trim: int64."""
    if batch.dtype.kind in "iu" and batch.itemsize > 1:
        for step in steps:
            used = (batch != step["pad"]).any(axis=0)
            batch = batch[:, : max(1, int(np.flatnonzero(used).max(initial=0)) + 1)]
        return np.ascontiguousarray(batch, np.int64)
    if batch.ndim == 3 and any(step["op"] == "layout" and step.get("to", "CHW") != "flat" for step in steps):
        batch = batch[..., np.newaxis]
    result = batch.astype(np.float32, copy=False)
    for step in steps:
        if step["op"] == "scale":
            result = result * np.float32(step.get("factor", 1.0 / 255.0))
        elif step["op"] == "normalize":
            mean, std = (np.array(step.get(key, [value]), np.float32) for key, value in (("mean", 0.0), ("std", 1.0)))
            if not {len(mean), len(std)} <= {1, result.shape[-1]}:
                raise StudentError(f"normalize: {len(mean)} figures for a last axis of {result.shape[-1]}")
            result = (result - mean) / std
        elif step.get("to", "CHW") == "flat":
            result = result.reshape(len(result), -1)
        elif result.ndim != 4:
            raise StudentError(f"layout: found a batch of shape {result.shape}, expected images (N, H, W, C)")
        elif step.get("to", "CHW") == "CHW":
            result = result.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(result)


def postprocess(steps: list[dict[str, Any]], outputs_ND: np.ndarray) -> np.ndarray:
    """The graph's outputs as scores: float64 inside, float32 out."""
    values_ND = outputs_ND.astype(np.float64)
    for step in steps:
        if step["op"] == "softmax":
            scaled_ND = values_ND / step.get("temperature", 1.0)
            powers_ND = np.exp(scaled_ND - scaled_ND.max(axis=-1, keepdims=True))
            values_ND = powers_ND / powers_ND.sum(axis=-1, keepdims=True)
        elif step["op"] == "sigmoid":
            values_ND = 0.5 * (1.0 + np.tanh(0.5 * values_ND))
        elif step["op"] == "denormalize":
            values_ND = values_ND * np.array(step.get("std", [1.0])) + np.array(step.get("mean", [0.0]))
    return values_ND.astype(np.float32)


def samples(inputs: list[str], *, texts: bool) -> Iterator[tuple[str, Any]]:
    """What the command line names: files; or texts, - for one per line of the standard input."""
    for name in inputs:
        if not texts:
            yield name, np.load(name, allow_pickle=False) if name.endswith(".npy") else name
            continue
        for line in sys.stdin.buffer.read().splitlines() if name == "-" else [os.fsencode(name)]:
            yield line.decode(errors="replace"), line


def shown(vector_D: np.ndarray) -> str:
    """A vector for people: how many numbers, and the first three."""
    first = " ".join(f"{value:.4f}" for value in vector_D[:3])
    return f"{len(vector_D)} numbers: {first}{' ...' if len(vector_D) > 3 else ''}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="What a student says about images or texts, or whether it is intact.")
    parser.add_argument("inputs", nargs="*", help="image files, or .npy arrays; for a student of texts the texts, or -")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).with_name("student.edgekd"))
    parser.add_argument("--variant")
    parser.add_argument("--top-k", type=int, default=1)
    parser.add_argument(
        "--self-test", action="store_true", help="compare with the golden vectors; exit 1 on a difference"
    )
    chosen = parser.parse_args(arguments)
    if not chosen.inputs and not chosen.self_test:
        parser.error("expected images or texts, or --self-test")
    try:
        with Student(chosen.bundle, variant=chosen.variant) as student:
            problems = student.self_test() if chosen.self_test else []
            for problem in problems:
                print(f"self-test FAILED: {student.variant}: {problem}", file=sys.stderr)
            if chosen.self_test and not problems:
                print(f"self-test passed: {student.variant} gives its golden outputs here")
            for name, x in samples(chosen.inputs, texts=student.tokenizer is not None):
                answer = student.predict(x, top_k=chosen.top_k)
                embeds = student.manifest["task"] == "embedding"
                top = "  ".join(f"{label} {score:.4g}" for label, score in answer.top)
                print(f"{name}: {shown(answer.outputs[student.output]) if embeds else top}")
                if answer.truncated:
                    print("note: this text is longer than the model reads: its end was not looked at", file=sys.stderr)
            return 1 if problems else 0
    except StudentError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError) as error:
        print(f"error: {error}; check the input", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
