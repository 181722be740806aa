"""The Android app's Java, compiled and run here: plain Java on its own, onnxruntime and Android behind stand-ins.

tests/java_stubs holds the stand-ins: `ai.onnxruntime` passes every call on to the real onnxruntime in a process of
Python, `android` reads assets from a folder and pixels with the JDK. What only a phone can tell is not told here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import ok, ok_json
from cpp_builds import tool
from damaged_bundles import edited, linked, tampered
from odd_images import STEP_LISTS, images, picture
from other_tasks import OTHER_TASKS, with_task
from PIL import Image, ImageOps
from test_embed import make_bundle
from text_bundle import TEXTS, UNEVEN, make_text_bundle
from tokenizer_files import character_tokenizer, hostile_texts

import edgekd
from edgekd.device.bundle import Bundle
from edgekd.device.images import decode_image
from edgekd.device.preprocess import preprocess
from edgekd.files import sha256_bytes
from edgekd.spec import Decode, parse_steps

STUBS = Path(__file__).parent / "java_stubs"
IMAGES = images()
FUZZED = 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("android"))


@pytest.fixture(scope="module")
def folder(bundle) -> Path:
    """The embedded app."""
    made = ok_json("embed", bundle, "--app", "android", "--out", bundle.parent / "app")
    assert {"assets/student.edgekd/bundle.json", "java/edgekd/Student.java", "build.gradle.kts"} <= set(made["files"])
    return bundle.parent / "app"


@pytest.fixture(scope="module")
def classes(folder) -> Path:
    """All of its Java with the stand-ins, every warning an error."""
    place = folder / "with_stubs"
    sources = [*(folder / "java").rglob("*.java"), *STUBS.rglob("*.java")]
    command = [tool("javac"), "--release", "17", "-Xlint:all", "-Werror", "-d", str(place), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def drive(classes: Path, *args: str | Path | int, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    properties = (f"-Dedgekd.python={sys.executable}", f"-Dedgekd.session={STUBS / 'java_session.py'}")
    command = [tool("java"), *properties, "-cp", str(classes), "edgekd.Drive", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def with_steps(bundle: Path, place: Path, steps: list) -> Path:
    shutil.copytree(bundle, place)
    manifest = json.loads((place / "bundle.json").read_text())
    (place / "bundle.json").write_text(json.dumps({**manifest, "preprocess": steps}))
    return place


def test_plain_java_proves_hashes_and_preprocessing(folder):
    tool("javac")
    done = subprocess.run(["make", "test"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "self-test passed: hashes are right and preprocessing gives the golden inputs" in done.stdout
    place = folder.parent / "changed.edgekd"
    steps = json.loads((folder / "assets" / "student.edgekd" / "bundle.json").read_text())["preprocess"]
    changed = [{**step, "factor": 0.004} if step["op"] == "scale" else step for step in steps]
    with_steps(folder / "assets" / "student.edgekd", place, changed)
    command = [tool("java"), "-cp", "classes", "edgekd.SelfTest"]
    done = subprocess.run([*command, place], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert "self-test FAILED: preprocessing differs by" in done.stderr
    graph = place / "graphs" / "float32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    done = subprocess.run([*command, place], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, "graphs/float32.onnx was changed" in done.stderr) == (3, True)


def test_the_golden_vectors_hold_with_onnxruntime_behind_it(folder, classes):
    place = folder / "assets" / "student.edgekd"
    for variant in ("float32", "int8_u8s8", "int8_dynamic"):
        done = drive(classes, "self-test", place, variant)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_answers_are_edgekds(bundle, classes, tmp_path):
    names = []
    for number, data in enumerate(IMAGES.values()):
        names.append(f"{number}.npy")
        np.save(tmp_path / names[-1], decode_image(data, Decode()))
    done = drive(classes, "predict", bundle, "float32", *names, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(bundle, variant="float32") as student:
        for line, data in zip(done.stdout.splitlines(), IMAGES.values(), strict=True):
            label, index, uncertainty, *top = line.split("\t")
            wanted = student.predict(data, top_k=3)
            assert (label, int(index)) == (wanted.label, wanted.index)
            assert float(uncertainty) == pytest.approx(wanted.uncertainty, abs=1e-5)
            assert top[::2] == [name for name, _ in wanted.top]
            assert [float(score) for score in top[1::2]] == pytest.approx([s for _, s in wanted.top], abs=1e-5)


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_labels_that_are_present_and_targets_in_their_units(bundle, classes, tmp_path, task):
    place = with_task(bundle, tmp_path / "b", task)
    raw = Bundle.open(bundle).golden()["raw"][:6]
    names = [f"{number}.npy" for number in range(len(raw))]
    for name, sample in zip(names, raw):
        np.save(tmp_path / name, sample)
    done = drive(classes, "predict", place, "float32", *names, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(place, variant="float32") as student:
        for line, sample in zip(done.stdout.splitlines(), raw, strict=True):
            label, index, uncertainty, *top = line.split("\t")
            wanted = student.predict(sample)
            assert (label, uncertainty) == (str(wanted.label).replace("None", "null"), "NaN")
            assert int(index) == (-1 if wanted.index is None else wanted.index)
            assert top[::2] == [name for name, _ in wanted.top]
            assert [float(score) for score in top[1::2]] == pytest.approx([s for _, s in wanted.top], rel=1e-5)


@pytest.mark.parametrize("steps", STEP_LISTS.values(), ids=STEP_LISTS)
def test_preprocessing_is_edgekds(bundle, classes, tmp_path, steps):
    place = with_steps(bundle, tmp_path / "b", steps)
    options = {key: value for key, value in steps[0].items() if key != "op"}
    arrays = [decode_image(data, Decode(**options)) for data in IMAGES.values()]
    random = np.random.default_rng(1)
    for shape in ((9, 31, 4), (13, 12, 2), (5, 5), (30, 7, 3)):  # with transparency, and without a channel axis
        arrays.append(random.integers(0, 256, shape, dtype=np.uint8))
    arrays += [random.normal(size=(19, 23, 3)), np.asfortranarray(random.normal(size=(8, 44, 1)).astype(np.float32))]
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    done = drive(classes, "show", place, *(f"{n}.npy" for n in range(len(arrays))), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for line, array in zip(done.stdout.splitlines(), arrays, strict=True):
        wanted = preprocess(parse_steps(steps), array).ravel()
        np.testing.assert_allclose(np.array(line.split(), np.float32), wanted, rtol=1e-6, atol=1e-6)


def test_pictures_on_android_are_turned_and_composed(folder, classes, tmp_path):
    """Bitmaps of a phone: without loss every orientation and transparency gives edgekd's answer to the same file."""
    names = []
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        names.append(f"turn{turn}.jpg")
        Image.fromarray(picture(37, 53, 3)).save(tmp_path / names[-1], exif=exif)
    for channels in (1, 3, 4):
        names.append(f"channels{channels}.png")
        Image.fromarray(picture(31, 47, channels).squeeze()).save(tmp_path / names[-1])
    assert ImageOps.exif_transpose(Image.open(tmp_path / "turn6.jpg")).size == (37, 53)
    done = drive(classes, "pictures", folder / "assets", "float32", *names, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(folder / "assets" / "student.edgekd", variant="float32") as student:
        for line, name in zip(done.stdout.splitlines(), names, strict=True):
            wanted = student.predict(tmp_path / name, top_k=3)
            # JPEG decoders round differently.
            scores = [float(score) for score in line.split("\t")[4::2]]
            assert scores == pytest.approx([score for _, score in wanted.top], abs=0.02 if "jpg" in name else 1e-5)
            assert line.split("\t")[0] == wanted.label
    (tmp_path / "no.jpg").write_bytes(b"nothing")
    done = drive(classes, "pictures", folder / "assets", "float32", "no.jpg", cwd=tmp_path)
    assert (done.returncode, "the picture cannot be decoded" in done.stderr) == (3, True)


def test_fixed_batches_and_bytes(bundle, classes, tmp_path):
    """A graph of two at a time gets samples in pieces; one that reads bytes gets bytes."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "three", "one"], ["logits"]),
    ]
    ends = {"zero": [0], "three": [3], "one": [1]}
    shape = [2, 2, 2, 1]
    described = helper.make_graph(
        nodes,
        "bytes",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in ends.items()],
    )
    model = helper.make_model(described, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    graph = model.SerializeToString()
    raw = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
    logits = raw.reshape(5, 4)[:, :3].astype(np.float32)
    manifest = {
        **{key: Bundle.open(bundle).manifest[key] for key in ("name", "task", "labels")},
        "inputs": [{"name": "image", "dtype": "uint8", "shape": shape}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [2, 3]}],
        "preprocess": [{"op": "decode"}],
        "postprocess": [{"op": "softmax"}],
        "variants": {"float32": {}},
    }
    golden = {"raw": raw, "input.image": raw, "output.float32.logits": logits}
    Bundle.write(tmp_path / "b", manifest, {"float32": {"main": graph}}, golden)
    done = drive(classes, "self-test", tmp_path / "b", "float32")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.save(tmp_path / "x.npy", raw[0])
    done = drive(classes, "predict", tmp_path / "b", "float32", "x.npy", cwd=tmp_path)
    assert int(done.stdout.split("\t")[1]) == int(logits[0].argmax()), done.stderr


@pytest.fixture(scope="module")
def for_texts(tmp_path_factory) -> Path:
    """The embedded app of a student of texts: its assets."""
    made = make_text_bundle(tmp_path_factory.mktemp("android_texts"))
    ok("embed", made, "--app", "android", "--out", made.parent / "app")
    return made.parent / "app" / "assets"


def test_texts_are_answered_as_edgekd_answers_them(for_texts, classes, tmp_path):
    place = for_texts / "student.edgekd"
    for variant in ("float32", "int8_dynamic"):
        done = drive(classes, "self-test", place, variant)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    texts = [*TEXTS, *hostile_texts(200)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    done = drive(classes, "texts", for_texts, "float32", tmp_path / "texts.json")
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(place, variant="float32") as student:
        steps = student.bundle.steps()
        for line, text in zip(done.stdout.splitlines(), texts, strict=True):
            truncated, ids, label, index, uncertainty, *top = line.split("\t")
            wanted = student.predict(text, top_k=3)
            assert [float(number) for number in json.loads(ids)] == preprocess(steps, text).tolist()
            assert (truncated, label, int(index)) == (str(wanted.truncated).lower(), wanted.label, wanted.index)
            assert float(uncertainty) == pytest.approx(wanted.uncertainty, abs=1e-5)
            assert top[::2] == [name for name, _ in wanted.top]
            assert [float(score) for score in top[1::2]] == pytest.approx([s for _, s in wanted.top], abs=1e-5)


def test_texts_together_are_texts_alone(for_texts, classes, tmp_path):
    """Where a graph measures its activations in every call, its neighbours and its padding would change an answer."""
    (tmp_path / "texts.json").write_text(json.dumps(UNEVEN))
    done = drive(classes, "together", for_texts / "student.edgekd", "int8_dynamic", tmp_path / "texts.json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(UNEVEN)
    for together, as_ids, alone in lines:
        assert together == as_ids == alone


def test_a_vector_is_no_list_of_classes(classes, tmp_path):
    place = make_text_bundle(tmp_path, vectors=True)
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    done = drive(classes, "vectors", place, "float32", tmp_path / "texts.json")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[::2] == ["null\t-1\tNaN"] * len(TEXTS)
    with edgekd.load(place, variant="float32") as student:
        for line, text in zip(lines[1::2], TEXTS, strict=True):
            score, vector = line.split("\t")
            wanted = student.predict(text)
            assert float(score) == pytest.approx(wanted.score, rel=1e-5)
            assert json.loads(vector) == pytest.approx(wanted.outputs["logits"].tolist(), abs=1e-5)


def test_plain_java_reads_the_tokenizer(for_texts):
    done = subprocess.run(["make", "test"], cwd=for_texts.parent, capture_output=True, text=True)
    assert (done.returncode, "self-test passed" in done.stdout) == (0, True), done.stderr


BAD_TEXT_BUNDLES = {
    "trim without tokenize": (lambda m: m["preprocess"].pop(0), "preprocess is not tokenize, then trim"),
    "scaled ids": (lambda m: m["preprocess"].append({"op": "scale"}), "preprocess is not tokenize, then trim"),
    "tokenize twice": (lambda m: m["preprocess"].append(m["preprocess"][0]), "preprocess is not tokenize, then trim"),
    "no file": (lambda m: m["preprocess"][0].pop("file"), "preprocess[0].file is missing"),
    "another file": (lambda m: m["preprocess"][0].update(file="x"), "preprocess[0].file is not a file that 'files'"),
    "too long": (lambda m: m["preprocess"][0].update(max_length=20_000), "not a whole number from 2 to 16384"),
    "no padding": (lambda m: m["preprocess"][1].pop("pad"), "preprocess[1].pad is missing"),
}


@pytest.mark.parametrize("name", BAD_TEXT_BUNDLES)
def test_bad_bundles_for_texts_are_refused(for_texts, classes, tmp_path, name):
    change, text = BAD_TEXT_BUNDLES[name]
    place = shutil.copytree(for_texts / "student.edgekd", tmp_path / "b")
    edited(change)(place)
    done = drive(classes, "self-test", place, "float32")
    assert (done.returncode, text in done.stderr) == (3, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bad_texts_are_refused(folder, for_texts, classes, tmp_path):
    (tmp_path / "texts.json").write_text('["a"]')
    done = drive(classes, "texts", folder / "assets", "float32", tmp_path / "texts.json")
    assert (done.returncode, "found a text, but this model reads no texts" in done.stderr) == (3, True)
    place = shutil.copytree(for_texts / "student.edgekd", tmp_path / "b")
    for name, ids, text in (
        ("long", np.zeros(25, np.int64), "found an array of shape (25), expected a text, or 1 to 24 ids of tokens"),
        ("image", np.zeros((8, 8, 3), np.uint8), "expected a text, or 1 to 24 ids of tokens"),
        ("rare", np.array([1, 99_999]), "found 99999.0 among the ids, expected whole numbers from 0 to 1"),
    ):
        np.save(tmp_path / f"{name}.npy", ids)
        done = drive(classes, "predict", place, "float32", tmp_path / f"{name}.npy")
        assert (done.returncode, text in done.stderr) == (3, True), done.stderr
    data = (place / "tokenizer.json").read_bytes().replace(b'"WordPiece"', b'"BPE"')
    (place / "tokenizer.json").write_bytes(data)
    done = drive(classes, "self-test", place, "float32")
    assert "tokenizer.json was changed after the bundle was written" in done.stderr
    record = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    edited(lambda manifest: manifest["files"].update({"tokenizer.json": record}))(place)
    done = drive(classes, "self-test", place, "float32")
    assert (done.returncode, "model.type is \"BPE\", expected 'WordPiece': distil with" in done.stderr) == (3, True)


BAD_BUNDLES = {
    "truncated": (
        lambda place: (place / "bundle.json").write_bytes((place / "bundle.json").read_bytes()[:300]),
        "bundle.json is not readable as JSON",
    ),
    "newer": (edited(lambda m: m.update(version=2)), "the bundle has version 2, this reader knows 1; update the app"),
    "another step": (edited(lambda m: m["preprocess"].append({"op": "sharpen"})), "the step 'sharpen'"),
    "leads outside": (edited(lambda m: m["files"].update({"../x": {}})), "no file inside it"),
    "wrong type": (edited(lambda m: m.update(labels="abc")), "labels is not a list"),
    "tampered": (tampered, "graphs/float32.onnx was changed"),
    "a link": (linked, "symbolic link"),
    "missing": (lambda place: (place / "graphs" / "float32.onnx").unlink(), "graphs/float32.onnx cannot be read"),
}


@pytest.mark.parametrize("name", BAD_BUNDLES)
def test_bad_bundles_are_refused(bundle, classes, tmp_path, name):
    damage, text = BAD_BUNDLES[name]
    place = tmp_path / "b"
    shutil.copytree(bundle, place)
    damage(place)
    done = drive(classes, "self-test", place, "float32")
    assert (done.returncode, text in done.stderr) == (3, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bad_input_is_refused(bundle, classes, tmp_path):
    np.save(tmp_path / "nan.npy", np.full((8, 8, 1), np.nan))
    np.save(tmp_path / "five.npy", np.zeros((8, 8, 5), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.txt").write_text("no bundle")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in bundle.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(bundle).as_posix())
    assert drive(classes, "self-test", tmp_path / "b.zip", "float32").returncode == 0
    for args, text in (
        (["predict", bundle, "float32", "nan.npy"], "look for NaN or infinite values in the input"),
        (["predict", bundle, "float32", "five.npy"], "to_grey: found 5 channels, expected 1 or 3"),
        (["predict", bundle, "float32", "objects.npy"], "is no array of numbers"),
        (["self-test", bundle, "int9"], "no variant 'int9', expected one of float32, int8_dynamic, int8_u8s8"),
        (["self-test", "nothing", "float32"], "no bundle at nothing; check the path"),
        (["self-test", "text.txt", "float32"], "is no bundle: expected a folder or a zip"),
        (["threads", bundle, 4096], "threads is 4096, expected a whole number from 1 to"),
    ):
        done = drive(classes, *args, cwd=tmp_path)
        assert (done.returncode, text in done.stderr) == (3, True), (args, done.stderr)


def test_the_readers_are_fuzzed(bundle, classes, tmp_path):
    """Every damaged input is read, or refused with a StudentException; anything else would end the program."""
    np.save(tmp_path / "seed.npy", np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)))
    tokenizer = character_tokenizer(tmp_path / "tokenizer.json", known=range(0x60, 0x180))
    seeds = [bundle / "bundle.json", bundle / "golden.npz", tmp_path / "seed.npy", tokenizer]
    done = drive(classes, "fuzz", FUZZED, *seeds)
    assert (done.returncode, done.stderr) == (0, "")
    opened, refused = map(int, re.fullmatch(rf"{FUZZED} inputs: (\d+) opened, (\d+) refused\n", done.stdout).groups())
    assert opened > 100
    assert refused > FUZZED


def test_the_readme_says_what_was_not_proven(folder):
    readme = (folder / "README.md").read_text()
    assert "**This project has not run on a phone.**" in readme
    assert "gradle connectedAndroidTest" in readme
