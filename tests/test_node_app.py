"""The Node app, and the JavaScript that the web app has too: numpy's numbers, edgekd's answers, one sentence each."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ok, ok_json
from file_kinds import kinds
from javascript import node, node_modules, run_module, run_node
from odd_images import STEP_LISTS, encoded, images, picture
from PIL import Image
from test_embed import make_bundle
from text_bundle import MAX_LENGTH, TEXTS, UNEVEN, make_text_bundle, said_of
from tokenizer_files import hostile_texts

import edgekd
from edgekd import assets
from edgekd.device.bundle import Bundle
from edgekd.device.manifest import parse_manifest
from edgekd.device.preprocess import preprocess
from edgekd.errors import BundleError, EdgekdError
from edgekd.files import sha256_bytes
from edgekd.spec import parse_steps

# GIF is for browsers only.
IMAGES = {**{name: file for name, file in images().items() if not file.startswith(b"GIF")}, **kinds()}
STEP_LISTS = {**STEP_LISTS, "as it is": [{"op": "decode"}]}
MANIFESTS, ZIPS, FILES = 3000, 600, 900  # tried per run; export/BUNDLE.md tells the same figures

PREPARE = """
import { applyArithmetic, prepare } from "./student/preprocess.js";
const told = [];
for (const [steps, raw] of given) {
  const sample = "file" in raw ? new Uint8Array(Buffer.from(raw.file, "base64"))
    : { shape: raw.shape, data: raw.bytes ? Uint8Array.from(raw.data) : Float32Array.from(raw.data) };
  try {
    const { shape, data } = await prepare(steps, sample);
    const ready = applyArithmetic(steps, { shape: [1, ...shape], data });
    told.push({ shape: ready.shape.slice(1), data: Buffer.from(ready.data.buffer).toString("base64") });
  } catch (error) {
    if (error.name !== "StudentError") throw error;
    told.push({ error: error.message });
  }
}
console.log(JSON.stringify(told));
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def app(bundle, tmp_path_factory) -> Path:
    """The app as `edgekd embed` writes it, its packages beside it."""
    folder = tmp_path_factory.mktemp("node_app") / "app"
    made = ok_json("embed", bundle, "--app", "node", "--out", folder)
    assert made["run"] == "npm install --ignore-scripts && node cli.js --self-test"
    assert {"index.js", "index.d.ts", "cli.js", "package.json", "student/student.js", "NOTICE.md"} <= set(made["files"])
    (folder / "node_modules").symlink_to(node_modules("onnxruntime-node"))
    return folder


def changed_bundle(bundle: Path, folder: Path, change) -> Path:
    """A copy whose manifest was changed by `change`."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def prepared(app: Path, cases: list[tuple[list[dict[str, Any]], dict[str, Any]]]) -> list[Any]:
    """What the JavaScript makes of each case: an array, or the text of its error."""
    return [
        one["error"]
        if "error" in one
        else np.frombuffer(base64.b64decode(one["data"]), np.float32).reshape(one["shape"])
        for one in run_module(PREPARE, app, given=cases)
    ]


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_every_image_is_preprocessed_number_for_number(app):
    cases = [(name, kind) for name in IMAGES for kind in STEP_LISTS]
    told = prepared(
        app, [(STEP_LISTS[kind], {"file": base64.b64encode(IMAGES[name]).decode()}) for name, kind in cases]
    )
    assert len(told) > 200
    for (name, kind), found in zip(cases, told):
        wanted = preprocess(parse_steps(STEP_LISTS[kind]), IMAGES[name])
        np.testing.assert_array_equal(found, wanted, err_msg=f"{name}, {kind}")


def test_any_array_is_preprocessed_alike(app):
    source = np.random.default_rng(5)
    cases, wanted = [], []
    for at in range(200):
        steps = list(STEP_LISTS.values())[at % len(STEP_LISTS)]
        shape = (*source.integers(1, 40, 2).tolist(), [1, 3, 4][at % 3])
        array = picture(*shape, seed=at)
        array = array if at % 2 else (array / 7).astype(np.float32)
        cases.append((steps, {"shape": shape, "bytes": bool(at % 2), "data": array.ravel().tolist()}))
        try:
            wanted.append(preprocess(parse_steps(steps), array))
        except EdgekdError as error:
            wanted.append(str(error))
    for found, one in zip(prepared(app, cases), wanted):
        if isinstance(one, str):
            assert isinstance(found, str), f"accepted, but numpy says: {one}"
        else:
            np.testing.assert_allclose(found, one, rtol=3e-7, atol=0)
    assert 20 < sum(isinstance(one, str) for one in wanted) < 100


def test_any_jpeg_is_decoded_bit_for_bit(app):
    source, files = random.Random(3), []
    for at in range(60):
        image = Image.fromarray(picture(source.randint(1, 70), source.randint(1, 70), 3, seed=at))
        options = {"quality": source.randint(1, 100), "subsampling": source.randint(0, 2)}
        options |= {"progressive": source.random() < 0.5, "optimize": source.random() < 0.5}
        files.append(encoded(image, "JPEG", **options))
    told = prepared(app, [([{"op": "decode"}], {"file": base64.b64encode(file).decode()}) for file in files])
    for file, found in zip(files, told):
        np.testing.assert_array_equal(found, preprocess(parse_steps([{"op": "decode"}]), file))


def test_answers_are_edgekds(bundle, app):
    code = """
import { openStudent } from "./index.js";
const student = await openStudent(undefined, { variant: given.variant });
await student.warmUp();
const files = given.files.map((file) => new Uint8Array(Buffer.from(file, "base64")));
const together = await Promise.all(files.map((file) => student.predict(file, { topK: 2 })));
const batch = await student.predictBatch(files);
console.log(JSON.stringify({ together, same: batch.every(({ label }, at) => label === together[at].label) }));
"""
    with edgekd.load(bundle, variant="float32") as predictor:
        wanted = predictor.predict_batch(list(IMAGES.values()), top_k=2)
    files = [base64.b64encode(file).decode() for file in IMAGES.values()]
    told = run_module(code, app, given={"variant": "float32", "files": files})
    assert told["same"]
    for found, answer in zip(told["together"], wanted):
        assert (found["label"], found["index"]) == (answer.label, answer.index)
        assert found["score"] == pytest.approx(answer.score, abs=1e-5)
        assert [one["label"] for one in found["top"]] == [label for label, _ in answer.top]
        assert found["uncertainty"] == pytest.approx(1, abs=1)
        assert len(found["outputs"]["logits"]["data"]) == 3


@pytest.mark.parametrize(
    ("task", "post"),
    [
        ("multilabel", [{"op": "sigmoid"}, {"op": "threshold", "value": 0.5}]),
        ("regression", [{"op": "denormalize", "mean": [1.0, 20.0, 300.0], "std": [0.5, 2.0, 7.0]}]),
    ],
)
def test_labels_that_are_present_and_targets_in_their_units(bundle, app, tmp_path, task, post):
    place = changed_bundle(bundle, tmp_path / "b", lambda manifest: manifest.update(task=task, postprocess=post))
    code = """
import { openStudent } from "./index.js";
const student = await openStudent(given.place, { variant: "float32" });
console.log(JSON.stringify(await student.predict({ shape: [8, 8, 1], data: Uint8Array.from(given.pixels) })));
"""
    pixels = Bundle.open(bundle).golden()["raw"][3]
    found = run_module(code, app, given={"place": str(place), "pixels": pixels.ravel().tolist()})
    with edgekd.load(place, variant="float32") as predictor:
        answer = predictor.predict(pixels)
    assert [one["label"] for one in found["top"]] == [label for label, _ in answer.top]
    assert [one["score"] for one in found["top"]] == pytest.approx([score for _, score in answer.top], rel=1e-5)
    assert found["uncertainty"] is None


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def for_texts(tmp_path_factory) -> Path:
    return make_text_bundle(tmp_path_factory.mktemp("texts"))


def test_texts_are_answered_as_edgekd_answers_them(for_texts, app):
    code = """
import { openStudent } from "./index.js";
const student = await openStudent(given.place);
await student.warmUp();
const alone = [];
for (const text of given.texts) alone.push(await student.predict(text, { topK: 3 }));
const batch = await student.predictBatch(given.texts);
const bytes = await student.predict(new TextEncoder().encode(given.texts[0]));
const ids = await student.predict({ shape: [3], data: Int32Array.from([2, 70, 3]) });
console.log(JSON.stringify({ alone, maxTokens: student.maxTokens, bytes: bytes.label, ids: ids.outputs.logits.data,
  same: batch.every(({ label, truncated }, at) => label === alone[at].label && truncated === alone[at].truncated) }));
"""
    texts = [*TEXTS, *hostile_texts(200)]
    told = run_module(code, app, given={"place": str(for_texts), "texts": texts})
    with edgekd.load(for_texts, variant="float32") as predictor:
        wanted = [predictor.predict(text, top_k=3) for text in texts]
        ids = predictor.predict(np.array([2, 70, 3])).outputs["logits"]
    assert (told["same"], told["maxTokens"], told["bytes"]) == (True, MAX_LENGTH, wanted[0].label)
    assert list(told["ids"].values()) == pytest.approx(ids.tolist(), abs=1e-5)
    for found, answer in zip(told["alone"], wanted, strict=True):
        assert (found["label"], found["truncated"]) == (answer.label, answer.truncated)
        assert [one["score"] for one in found["top"]] == pytest.approx([score for _, score in answer.top], abs=1e-5)
    assert 5 < sum(answer.truncated for answer in wanted) < 200


def test_texts_together_are_texts_alone(for_texts, app):
    """Where a graph measures its activations in every call, its neighbours and its padding would change an answer."""
    code = """
import { openStudent } from "./index.js";
const student = await openStudent(given.place, { variant: "int8_dynamic" });
const alone = [];
for (const text of given.texts) alone.push(await student.predict(text, { topK: 3 }));
const together = await student.predictBatch(given.texts, { topK: 3 });
console.log(JSON.stringify([alone, together].map((all) => all.map(({ top, outputs }) => [top, outputs.logits.data]))));
"""
    alone, together = run_module(code, app, given={"place": str(for_texts), "texts": UNEVEN})
    assert len(alone) == len(UNEVEN)
    assert together == alone


def test_the_app_for_texts_proves_itself_and_says_what_it_did_not_read(for_texts, tmp_path):
    app = tmp_path / "app"
    assert "student.edgekd/tokenizer.json" in ok_json("embed", for_texts, "--app", "node", "--out", app)["files"]
    (app / "node_modules").symlink_to(node_modules("onnxruntime-node"))
    for variant in ("float32", "int8_dynamic"):
        done = run_node("cli.js", "--self-test", "--variant", variant, cwd=app)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"self-test passed: {variant} gives its golden outputs here (8 samples)\n"
    with edgekd.load(for_texts) as predictor:
        labels = [predictor.predict(text).label for text in ("book a table", "a" * 90)]
    done = run_node("cli.js", "book a table", "a" * 90, cwd=app)
    assert [line.split(": ")[1].split()[0] for line in done.stdout.splitlines()] == labels
    assert done.stdout.splitlines()[1].startswith("a" * 57 + "...: ")
    assert done.stderr == "note: this text is longer than the model reads: its end was not looked at\n"
    command = [node(), "cli.js", "-"]
    done = subprocess.run(command, input=b"book a table\r\n\nx\n", cwd=app, capture_output=True)
    assert [line.split(b": ")[0] for line in done.stdout.splitlines()] == [b"book a table", b"", b"x"]
    done = subprocess.run(command, input=b"book \xff\n", cwd=app, capture_output=True)
    assert (done.returncode, done.stderr) == (3, b"error: the standard input is not valid UTF-8; convert it first\n")


def test_a_vector_is_no_list_of_classes(app, tmp_path):
    code = """
import { openStudent } from "./index.js";
const student = await openStudent(given.place, { variant: "float32" });
console.log(JSON.stringify((await student.predictBatch(given.texts, { topK: 3 })).map(
  ({ outputs, ...answer }) => ({ ...answer, vector: Array.from(outputs.logits.data) }))));
"""
    place = make_text_bundle(tmp_path / "made", vectors=True)
    told = run_module(code, app, given={"place": str(place), "texts": TEXTS})
    with edgekd.load(place, variant="float32") as predictor:
        for found, text in zip(told, TEXTS, strict=True):
            wanted = predictor.predict(text)
            assert [found[name] for name in ("label", "index", "top", "uncertainty")] == [None, None, [], None]
            assert found["score"] == pytest.approx(wanted.score, rel=1e-5)
            assert found["vector"] == pytest.approx(wanted.outputs["logits"].tolist(), abs=1e-5)


def test_of_a_vector_the_command_line_says_how_it_begins(app, tmp_path):
    place = make_text_bundle(tmp_path / "made", vectors=True)
    done = run_node("cli.js", "book", "a", "--bundle", place, cwd=app)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(place) as student:
        vectors = [student.predict(text).outputs["logits"] for text in ("book", "a")]
    assert done.stdout == f"book: {said_of(vectors[0])}\na: {said_of(vectors[1])}\n"


def test_another_padding_fails_the_self_test_and_another_tokenizer_is_refused(for_texts, app, tmp_path):
    padded = changed_bundle(for_texts, tmp_path / "padded", lambda manifest: manifest["preprocess"][1].update(pad=1))
    done = run_node("cli.js", "--self-test", "--bundle", padded, cwd=app)
    assert (done.returncode, "self-test FAILED: float32: preprocessing differs by" in done.stderr) == (1, True)
    for damage, text in (
        (
            lambda data: data.replace(b'"WordPiece"', b'"Unigram"'),
            "model.type is \"Unigram\", expected 'WordPiece': distil",
        ),
        (lambda data: data[:-9], "tokenizer.json is not readable as JSON .*; get a fresh copy"),
    ):
        place = tmp_path / f"other{len(text)}"
        data = damage((for_texts / "tokenizer.json").read_bytes())
        record = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
        changed_bundle(
            for_texts, place, lambda manifest, record=record: manifest["files"].update({"tokenizer.json": record})
        )
        (place / "tokenizer.json").write_bytes(data)
        done = run_node("cli.js", "a", "--bundle", place, cwd=app)
        assert (done.returncode, re.search(text, done.stderr) is not None) == (3, True), done.stderr
    (padded / "tokenizer.json").write_bytes(b"{}")
    done = run_node("cli.js", "a", "--bundle", padded, cwd=app)
    assert "tokenizer.json in" in done.stderr
    assert "was changed after" in done.stderr


def test_samples_that_are_no_texts_and_texts_for_images(bundle, for_texts, app):
    code = """
import { openStudent } from "./index.js";
const told = [];
for (const [place, x] of given) {
  const student = await openStudent(place);
  const sample = x.bytes ? Uint8Array.from(x.bytes) : x.ids ? { shape: [x.ids.length], data: x.ids } : x.text;
  told.push(await student.predict(sample).then(() => "answered", (error) => `${error.name}: ${error.message}`));
}
console.log(JSON.stringify(told));
"""
    place = str(for_texts)
    cases = [
        (place, {"bytes": [97, 255]}, "the text is not valid UTF-8; decode it first"),
        (place, {"ids": [99999]}, r"found the id 99999, expected 0 to \d+"),
        (place, {"ids": [1.5]}, "found the id 1.5"),
        (place, {"ids": [3] * 25}, "found 25 ids, expected a text, or 1 to 24 ids of tokens"),
        (place, {"text": "a" * 10_000_001}, "the text has 10000001 characters, expected at most 10000000; pass a part"),
        (place, {"text": "a" * 100_000}, None),
        (str(bundle), {"text": "a"}, "found a text, but this model reads no texts; pass an image or array"),
    ]
    told = run_module(code, app, given=[case[:2] for case in cases])
    for found, (_, _, text) in zip(told, cases, strict=True):
        assert found == "answered" if text is None else re.search(f"StudentError: {text}", found), found


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_app_proves_itself(bundle, app, tmp_path):
    for variant in Bundle.open(bundle).variants:
        done = run_node("cli.js", "--self-test", "--variant", variant, cwd=app)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"self-test passed: {variant} gives its golden outputs here (16 samples)\n"
    (tmp_path / "photo.jpg").write_bytes(IMAGES["exif 6"])
    np.save(tmp_path / "array.npy", picture(20, 30, 3))
    with edgekd.load(bundle, variant="float32") as predictor:
        labels = [predictor.predict(x).label for x in (tmp_path / "photo.jpg", picture(20, 30, 3))]
    names = [tmp_path / "photo.jpg", tmp_path / "array.npy"]
    lines = run_node("cli.js", *names, "--top-k", "3", "--variant", "float32", cwd=app).stdout.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == labels
    assert len(lines[0].split(": ")[1].split()) == 6
    zipped = tmp_path / "zipped.edgekd"
    opened = Bundle.open(bundle)
    golden = opened.golden()
    graphs = {name: {"main": opened.graph("main", name)} for name in opened.variants}
    Bundle.write(zipped, opened.manifest, graphs, golden, as_zip=True)
    assert run_node("cli.js", "--self-test", "--bundle", zipped, cwd=app).returncode == 0


def test_another_weight_with_the_right_hash_fails_the_self_test(bundle, app, tmp_path):
    other = (bundle / "graphs" / "int8_dynamic.onnx").read_bytes()

    def change(manifest):
        manifest["files"]["graphs/float32.onnx"] = {"sha256": sha256_bytes(other), "size_bytes": len(other)}

    place = changed_bundle(bundle, tmp_path / "b", change)
    (place / "graphs" / "float32.onnx").write_bytes(other)
    done = run_node("cli.js", "--self-test", "--bundle", place, "--variant", "float32", cwd=app)
    assert done.returncode == 1
    assert "self-test FAILED: float32: output 'logits' differs by up to" in done.stderr


def test_what_cannot_be_used_is_told_in_one_sentence(bundle, app, tmp_path):
    good = tmp_path / "good.png"
    good.write_bytes(IMAGES["grey"])
    (tmp_path / "cut.jpg").write_bytes(IMAGES["jpeg"][:-200])
    (tmp_path / "cut.png").write_bytes(IMAGES["rgba"][:-200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "image.gif").write_bytes(encoded(Image.fromarray(picture(5, 5, 3)), "GIF"))
    np.save(tmp_path / "nan.npy", np.full((8, 8, 1), np.nan, np.float32))
    np.save(tmp_path / "five.npy", np.zeros((8, 8, 5), np.uint8))
    tampered, linked = tmp_path / "tampered", tmp_path / "linked"
    for place in (tampered, linked):
        shutil.copytree(bundle, place)
    graph = tampered / "graphs" / "float32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    (linked / "graphs" / "float32.onnx").unlink()
    (linked / "graphs" / "float32.onnx").symlink_to(bundle / "graphs" / "float32.onnx")
    newer = changed_bundle(bundle, tmp_path / "newer", lambda manifest: manifest.update(version=2))
    empty = tmp_path / "folder"
    empty.mkdir()
    cases = [
        ([tmp_path / "none.png"], 3, "cannot read .*none.png .*; check the path"),
        ([tmp_path / "cut.jpg"], 3, "the image cannot be decoded .the JPEG is cut off"),
        ([tmp_path / "cut.png"], 3, "the image cannot be decoded .the PNG is cut off"),
        ([tmp_path / "text.png"], 3, "neither PNG nor JPEG.*replace it"),
        ([tmp_path / "empty.png"], 3, "the image is empty"),
        ([tmp_path / "image.gif"], 3, "neither PNG nor JPEG"),
        ([tmp_path / "nan.npy"], 3, "the answer is NaN or infinite; look for NaN"),
        ([tmp_path / "five.npy"], 3, "to_grey: found 5 channels, expected 1 or 3"),
        ([good, "--variant", "int4"], 2, "no variant 'int4', expected one of float32, int8_dynamic, int8_u8s8"),
        ([good, "--threads", "4096"], 2, r"threads is 4096, expected a whole number from 1 to \d+ cores"),
        ([good, "--top-k", "0"], 2, "topK is 0, expected a whole number from 1"),
        ([good, "--loud"], 2, "Unknown option '--loud'"),
        ([], 2, "usage: node cli.js"),
        ([good, "--bundle", tampered, "--variant", "float32"], 3, "float32.onnx in .* was changed after"),
        ([good, "--bundle", linked, "--variant", "float32"], 3, "float32.onnx is .* a symbolic link"),
        ([good, "--bundle", newer], 3, "has version 2, but this app reads version 1; embed it with a newer"),
        ([good, "--bundle", empty], 3, "bundle.json is missing in .*; get a fresh copy"),
        ([good, "--bundle", good], 3, "good.png is no readable bundle .no end of a zip"),
        ([good, "--bundle", tmp_path / "nothing"], 3, "no bundle at .*; check the path"),
    ]
    for args, code, text in cases:
        done = run_node("cli.js", *args, cwd=app)
        assert done.returncode == code, (args, done.stderr)
        assert re.search(text, done.stderr), (text, done.stderr)
        assert "    at " not in done.stderr


def test_without_onnxruntime_the_one_line_is_told(bundle, app, tmp_path):
    shutil.copytree(app, tmp_path / "app", symlinks=True)
    (tmp_path / "app" / "node_modules").unlink()
    done = run_node("cli.js", "--self-test", cwd=tmp_path / "app")
    assert done.returncode == 4
    assert "npm install --ignore-scripts" in done.stderr


def test_the_lines_of_the_readme_run(app, tmp_path):
    lines = re.search(r"```js\n(.*?)```", (app / "README.md").read_text(), flags=re.S)[1]
    assert len(lines.splitlines()) <= 10
    (tmp_path / "mine.mjs").write_text(lines)
    (tmp_path / "photo.jpg").write_bytes(IMAGES["jpeg"])
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "student").symlink_to(app)
    done = run_node("mine.mjs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("circle", "square", "triangle")


# --- strangers --------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2, 1.5, 10**20, 1e308, "", "x", "float32", "../x", "/etc/passwd", "golden.npz"),
    *("train", "N", "bundle.json", [], {}, [[]], [1, -2], {"op": "resize"}, {"op": "__proto__"}, "__proto__"),
    *("constructor", {"graphs": {"main": ["golden.npz"]}}, {"constructor": 1}, {"op": "normalize", "mean": [[1]]}),
    *({"op": "resize", "size": [0, 8]}, {"op": "scale", "factor": "2"}, {"op": "decode"}, {"op": "top_k", "k": 0}),
)
ACCEPTED = """
import { parseManifest } from "./student/manifest.js";
const told = given.map((text) => {
  try {
    parseManifest(new Uint8Array(Buffer.from(text, "base64")));
    return null;
  } catch (error) {
    if (error.name !== "StudentError") throw error;
    return error.message;
  }
});
console.log(JSON.stringify(told));
"""


def mutated(manifest: dict[str, Any], source: random.Random) -> dict[str, Any]:
    """The manifest with one to three of its values, anywhere inside, replaced, removed or added."""
    changed = copy.deepcopy(manifest)
    for _ in range(source.randint(1, 3)):
        place: Any = changed
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = source.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and source.random() < 0.75:
                place = place[key]
                continue
            if source.random() < 0.25:
                del place[key]
            else:
                place[key] = copy.deepcopy(source.choice(VALUES))
            break
        if isinstance(place, dict) and source.random() < 0.2:
            place[source.choice(["later", "size", "to", "__proto__", "constructor", "op"])] = source.choice(VALUES)
    return changed


def manifest_problem(text: bytes) -> str | None:
    """What edgekd's own reader says against it."""
    try:
        parse_manifest(text)
    except BundleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["bundle", "for_texts"])
def test_any_changed_manifest_is_read_as_edgekd_reads_it(request, kind, app):
    """Not only refused in one sentence: what the one reader takes, the other takes, and nothing else."""
    source, good = random.Random(7), json.loads((request.getfixturevalue(kind) / "bundle.json").read_text())
    texts = []
    for at in range(MANIFESTS):
        text = bytearray(json.dumps(mutated(good, source) if at % 3 else good).encode())
        for _ in range(0 if at % 3 else source.randint(1, 2)):
            text[source.randrange(len(text))] = source.randrange(256)
        texts.append(bytes(text))
    texts += [b"", b"\xff\xfe{\x00}\x00", b"[" * 100_000, b"1" * 10_000, b'{"version": 1e999}', b'{"version": NaN}']
    texts += [b'{"a": 1, "a": 1}', b'{"version": 1, "name": "\\ud800"}', b'{"version": 1' + b"0" * 5000 + b"}"]
    texts += [b"\xef\xbb\xbf" + json.dumps(good).encode(), json.dumps(good).encode()]
    told = run_module(ACCEPTED, app, given=[base64.b64encode(text).decode() for text in texts])
    accepted = 0
    for text, found in zip(texts, told):
        problem = manifest_problem(text)
        assert (found is None) == (problem is None), f"JavaScript: {found}, Python: {problem}, {text!r}"
        accepted += found is None
    assert MANIFESTS / 20 < accepted < MANIFESTS * 0.8


def test_any_changed_zip_or_array_opens_or_is_refused(bundle, app, tmp_path):
    opened = Bundle.open(bundle)
    graphs = {name: {"main": opened.graph("main", name)} for name in opened.variants}
    Bundle.write(tmp_path / "b.zip", opened.manifest, graphs, opened.golden(), as_zip=True)
    code = """
import { readFileSync } from "node:fs";
import { readNpz } from "./student/archive.js";
import { Files } from "./student/files.js";
let state = 1;
const random = (below) => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % below;
const zip = readFileSync(given.zip), npz = readFileSync(given.npz);
let [opened, refused, broken] = [0, 0, 0];
for (let at = 0; at < given.count; at += 1) {
  const bytes = new Uint8Array(at % 2 ? zip : npz);
  const reach = at % 4 < 2 ? bytes.length : 900;
  for (let i = 0; i <= random(4); i += 1) bytes[bytes.length - 1 - random(reach)] = random(256);
  const cut = at % 5 ? bytes : bytes.subarray(0, random(bytes.length));
  try {
    if (at % 2) {
      const files = await Files.openZip("b.zip", cut);
      await files.golden();
      for (const name of Object.keys(files.manifest.files)) await files.read(name);
    } else await readNpz(cut);
    opened += 1;
  } catch (error) {
    if (at % 2 && error.name !== "StudentError") throw error;
    refused += 1;
    if (at % 2 === 0 && !(error instanceof Error)) broken += 1;
  }
}
console.log(JSON.stringify({ opened, refused, broken }));
"""
    paths = {"zip": str(tmp_path / "b.zip"), "npz": str(bundle / "golden.npz"), "count": ZIPS}
    told = run_module(code.replace('import { readFileSync } from "node:fs";\n', ""), app, given=paths)
    assert told["opened"] + told["refused"] == ZIPS
    assert min(told["opened"], told["refused"]) > 20
    assert told["broken"] == 0


def test_any_changed_image_is_decoded_or_refused(app):
    source, files = random.Random(11), []
    originals = [IMAGES[name] for name in ("jpeg", "jpeg, progressive", "jpeg, restarts", "palette", "rgba, 16 bit")]
    for at in range(FILES):
        data = bytearray(originals[at % len(originals)])
        for _ in range(source.randint(1, 6)):
            data[source.randrange(2, len(data))] = source.randrange(256)
        files.append(bytes(data[: source.randrange(len(data))] if at % 7 == 0 else data))
    told = prepared(app, [([{"op": "decode"}], {"file": base64.b64encode(file).decode()}) for file in files])
    refused = [one for one in told if isinstance(one, str)]
    assert FILES / 5 < len(refused) < FILES
    assert all("replace it" in one for one in refused)


def test_the_hash_of_pages_without_one_of_their_own(app):
    code = """
import { sha256, sha256Slow } from "./student/sha256.js";
const told = [];
for (const size of given) {
  const bytes = Uint8Array.from({ length: size }, (_, at) => (at * 7 + size) % 256);
  told.push([await sha256(bytes), Buffer.from(sha256Slow(bytes)).toString("hex")]);
}
console.log(JSON.stringify(told));
"""
    sizes = [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 4097]
    for size, found in zip(sizes, run_module(code, app, given=sizes)):
        wanted = hashlib.sha256(bytes((at * 7 + size) % 256 for at in range(size))).hexdigest()
        assert found == [wanted, wanted]


def test_the_types_are_those_of_the_code(tmp_path):
    """The .d.ts beside each module is what TypeScript reads from its comments. EDGEKD_WRITE_TYPES=1 writes them."""
    modules = node_modules("typescript")
    apps = assets.folder("export", "apps")
    for app in ("node", "web"):
        shutil.copytree(apps / app, tmp_path / app)
        shutil.copytree(apps / "javascript", tmp_path / app / "student")
        (tmp_path / app / "package.json").write_text('{"type": "module"}')
    for declared in tmp_path.rglob("*.d.ts"):
        declared.unlink()
    (tmp_path / "node_modules").symlink_to(modules)
    options = json.loads((apps / "tsconfig.base.json").read_text())
    options["compilerOptions"] |= {"noEmit": False, "declaration": True, "emitDeclarationOnly": True, "types": ["node"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps({**options, "include": ["node", "web"]}))
    done = run_node(modules / "typescript" / "bin" / "tsc", "-p", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    places = {tmp_path / "node" / "index.d.ts": apps / "node", tmp_path / "web" / "web.d.ts": apps / "web"}
    places |= {path: apps / "javascript" for path in tmp_path.glob("web/student/*.d.ts")}
    for written, folder in places.items():
        if os.environ.get("EDGEKD_WRITE_TYPES"):
            shutil.copy(written, folder)
        assert written.read_text() == (folder / written.name).read_text(), f"{written.name} is out of date"
    assert len(places) > 10


def test_only_the_glue(bundle, tmp_path):
    ok("embed", bundle, "--app", "node", "--out", tmp_path, "--only-glue")
    assert {path.name for path in tmp_path.iterdir()} == {"index.js", "index.d.ts", "student"}
    assert not list(tmp_path.rglob("tsconfig.json"))
