"""The C++ app as a developer builds it: on OpenVINO and on onnxruntime, proven, misused, and fuzzed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import cpp_builds
import numpy as np
import pytest
from commands import ok, ok_json
from damaged_bundles import edited, linked, tampered
from odd_images import STEP_LISTS, images
from other_tasks import OTHER_TASKS, with_task
from PIL import Image
from test_embed import make_bundle
from text_bundle import TEXTS, UNEVEN, make_text_bundle, said_of
from tokenizer_files import character_tokenizer, hostile_texts

import edgekd
from edgekd import assets
from edgekd.device.bundle import Bundle
from edgekd.device.images import decode_image
from edgekd.device.preprocess import preprocess
from edgekd.files import sha256_bytes
from edgekd.spec import Decode, parse_steps

# Four threads share a student; every answer must be the one that a lone thread gets.
THREADS = """
#undef main
#include <atomic>
#include <thread>

int main() {
    if (mine() != 0) {
        return 1;
    }
    const edgekd::Student student("student.edgekd");
    std::vector<edgekd::Array> samples;
    std::vector<float> alone;
    for (int i = 0; i < 4; i++) {
        samples.push_back(edgekd::Array({8, 8}, edgekd::Bytes(64, static_cast<std::uint8_t>(60 * i))));
        alone.push_back(student.predict(samples.back()).score);
    }
    std::atomic<int> alike{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&, i] {
            for (int run = 0; run < 200; run++) {
                alike += student.predict(samples[i]).score == alone[i] ? 1 : 0;
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    std::cout << alike << " of 800 alike\\n";
    return 0;
}
"""
# The scores of each text in the arguments, run with all others, then alone.
TOGETHER = """
#include "edgekd.hpp"
#include <iostream>

int main(int argc, char **argv) {
    edgekd::Options options;
    options.variant = "int8_dynamic";
    const edgekd::Student student(argv[1], options);
    const std::vector<std::string> texts(argv + 2, argv + argc);
    const std::vector<edgekd::Answer> together = student.predict_batch(texts, 3);
    std::cout.precision(9);
    for (std::size_t i = 0; i < texts.size(); i++) {
        for (const edgekd::Answer &answer : {together[i], student.predict(texts[i], 3)}) {
            for (const auto &[label, score] : answer.top) {
                std::cout << label << ' ' << score << ' ';
            }
            std::cout << '\\n';
        }
    }
}
"""
# Of each text in the arguments what is there of labels, then score and vector.
VECTORS = """
#include "edgekd.hpp"
#include <iostream>

int main(int argc, char **argv) {
    const edgekd::Student student(argv[1]);
    std::cout.precision(9);
    for (const edgekd::Answer &answer : student.predict_batch(std::vector<std::string>(argv + 2, argv + argc), 3)) {
        std::cout << answer.label.size() + answer.top.size() << answer.index.has_value()
                  << answer.uncertainty.has_value() << ' ' << answer.score;
        for (const float value : answer.outputs) {
            std::cout << ' ' << value;
        }
        std::cout << '\\n';
    }
}
"""
SOURCE = assets.folder("export", "apps") / "cpp"
IMAGES = images()
FUZZED = 2000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="module")
def folder(bundle) -> Path:
    """The embedded app, not built."""
    folder = bundle.parent / "app"
    made = ok_json("embed", bundle, "--app", "cpp", "--out", folder)
    wanted = {"edgekd.hpp", "main.cpp", "CMakeLists.txt", "README.md", "NOTICE.md", "student.edgekd/bundle.json"}
    assert wanted <= set(made["files"])
    assert "fuzz.cpp" not in made["files"]
    return folder


@pytest.fixture(scope="module")
def on_onnxruntime(folder) -> Path:
    """The app under sanitizers, with onnxruntime behind it."""
    return cpp_builds.with_onnxruntime(folder, folder / "build_onnxruntime", "-DSTUDENT_SANITIZE=ON")


def run(program: Path, *args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    # OpenVINO and onnxruntime keep what they allocate once until the end.
    environ = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300, env=environ)


def test_the_app_proves_itself_on_openvino(folder, for_texts):
    program = cpp_builds.with_openvino(folder, folder / "build")
    done = subprocess.run(["ctest", "--test-dir", folder / "build", "-V"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for variant in ("float32", "int8_u8s8", "int8_dynamic"):
        done = run(program, "--self-test", "--bundle", folder / "student.edgekd", "--variant", variant)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"self-test passed: {variant} gives its golden outputs here\n"
    done = run(program, "--self-test", "--bundle", for_texts, "--variant", "float32")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_app_proves_itself_on_onnxruntime(folder, on_onnxruntime, tmp_path):
    for variant in ("float32", "int8_u8s8", "int8_dynamic"):
        done = run(on_onnxruntime, "--self-test", "--bundle", folder / "student.edgekd", "--variant", variant)
        assert (done.returncode, done.stderr) == (0, "")
    ok("embed", folder / "student.edgekd", "--app", "cpp", "--out", tmp_path)
    # Another graph, with the right hash: only the golden vectors tell.
    place = tmp_path / "student.edgekd"
    other = (place / "graphs" / "int8_u8s8.onnx").read_bytes()
    (place / "graphs" / "float32.onnx").write_bytes(other)
    manifest = json.loads((place / "bundle.json").read_text())
    manifest["files"]["graphs/float32.onnx"] = {"sha256": sha256_bytes(other), "size_bytes": len(other)}
    manifest["variants"]["float32"]["tolerance"] = {"abs": 1e-6, "rel": 1e-6, "label_agreement": 1.0}
    (place / "bundle.json").write_text(json.dumps(manifest))
    done = run(on_onnxruntime, "--self-test", "--bundle", place, "--variant", "float32")
    assert done.returncode == 1
    assert "self-test FAILED: float32: output 'logits' differs by up to" in done.stderr


def test_the_app_answers_as_edgekd_does(bundle, on_onnxruntime, tmp_path):
    names = []
    for number, data in enumerate(IMAGES.values()):
        names.append(f"{number}.npy")
        np.save(tmp_path / names[-1], decode_image(data, Decode()))
    done = run(on_onnxruntime, *names, "--bundle", bundle, "--top-k", 3, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(bundle, variant=Bundle.open(bundle).default_variant()) as student:
        for line, data in zip(done.stdout.splitlines(), IMAGES.values(), strict=True):
            told = re.findall(r"  (\w+) ([\d.e-]+)", line)
            answer = student.predict(data, top_k=3)
            assert [label for label, _ in told] == [label for label, _ in answer.top]
            assert [float(score) for _, score in told] == pytest.approx([s for _, s in answer.top], abs=1e-5)


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_labels_that_are_present_and_targets_in_their_units(bundle, on_onnxruntime, tmp_path, task):
    place = with_task(bundle, tmp_path / "b", task)
    raw = Bundle.open(bundle).golden()["raw"][:6]
    names = [f"{number}.npy" for number in range(len(raw))]
    for name, sample in zip(names, raw):
        np.save(tmp_path / name, sample)
    done = run(on_onnxruntime, *names, "--bundle", place, "--variant", "float32", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(place, variant="float32") as student:
        for line, sample in zip(done.stdout.splitlines(), raw, strict=True):
            told = re.findall(r"  (\w+) ([\d.e+-]+)", line)
            wanted = student.predict(sample).top
            assert [label for label, _ in told] == [label for label, _ in wanted]
            assert [float(score) for _, score in told] == pytest.approx([score for _, score in wanted], rel=1e-4)


@pytest.mark.parametrize("steps", STEP_LISTS.values(), ids=STEP_LISTS)
def test_preprocessing_is_edgekds(bundle, on_onnxruntime, tmp_path, steps):
    place = tmp_path / "b"
    shutil.copytree(bundle, place)
    manifest = json.loads((place / "bundle.json").read_text())
    (place / "bundle.json").write_text(json.dumps({**manifest, "preprocess": steps}))
    arrays = [
        decode_image(data, Decode(**{k: v for k, v in steps[0].items() if k != "op"})) for data in IMAGES.values()
    ]
    random = np.random.default_rng(1)
    for shape in ((9, 31, 4), (13, 12, 2), (5, 5), (30, 7, 3)):  # with transparency, and without a channel axis
        arrays.append(random.integers(0, 256, shape, dtype=np.uint8))
    arrays += [random.normal(size=(19, 23, 3)), np.asfortranarray(random.normal(size=(8, 44, 1)).astype(np.float32))]
    names = [f"{number}.npy" for number in range(len(arrays))]
    for name, array in zip(names, arrays):
        np.save(tmp_path / name, array)
    done = run(on_onnxruntime, "--show", *names, "--bundle", place, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = np.concatenate([preprocess(parse_steps(steps), array).ravel() for array in arrays])
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), wanted, rtol=1e-6, atol=1e-6)


def test_files_of_pictures_are_read_as_pillow_reads_them(bundle, on_onnxruntime, tmp_path):
    random = np.random.default_rng(2)
    grey, colours = (random.integers(0, 256, shape, dtype=np.uint8) for shape in ((13, 17), (11, 19, 3)))
    wide = random.integers(0, 65536, (14, 9), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.pgm")
    Image.fromarray(colours).save(tmp_path / "colours.ppm")
    Image.fromarray(wide).save(tmp_path / "wide.pgm")
    deep = random.integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    (tmp_path / "deep.ppm").write_bytes(b"P6\n# a comment\n5 6\n65535\n" + deep.astype(">u2").tobytes())
    for name in ("grey.pgm", "colours.ppm", "wide.pgm", "deep.ppm"):
        done = run(on_onnxruntime, "--show", tmp_path / name, "--bundle", bundle)
        assert (done.returncode, done.stderr) == (0, ""), name
        wanted = preprocess(parse_steps(Bundle.open(bundle).manifest["preprocess"]), tmp_path / name)
        np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), wanted.ravel(), atol=1e-6, err_msg=name)
    alpha = random.integers(0, 256, (7, 8, 4), dtype=np.uint8)
    header = b"P7\nWIDTH 8\nHEIGHT 7\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    (tmp_path / "alpha.pam").write_bytes(header + alpha.tobytes())
    done = run(on_onnxruntime, "--show", tmp_path / "alpha.pam", "--bundle", bundle)
    wanted = preprocess(parse_steps(Bundle.open(bundle).manifest["preprocess"]), alpha)
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), wanted.ravel(), atol=1e-6)


@pytest.fixture(scope="module")
def for_texts(tmp_path_factory) -> Path:
    return make_text_bundle(tmp_path_factory.mktemp("cpp_texts"))


def test_texts_are_answered_as_edgekd_answers_them(for_texts, on_onnxruntime):
    for variant in ("float32", "int8_dynamic"):
        done = run(on_onnxruntime, "--self-test", "--bundle", for_texts, "--variant", variant)
        assert (done.returncode, done.stderr) == (0, "")
    texts = [text for text in (*TEXTS, *hostile_texts(200)) if "\n" not in text and "\r" not in text]
    command = [on_onnxruntime, "-", "--bundle", for_texts, "--top-k", "3"]
    environ = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(command, input="\n".join(texts).encode(), capture_output=True, timeout=300, env=environ)
    lines = done.stdout.decode().split("\n")[:-1]
    with edgekd.load(for_texts) as student:
        wanted = [student.predict(text, top_k=3) for text in texts]
    for line, text, answer in zip(lines, texts, wanted, strict=True):
        assert line.startswith(f"{text}:  ")
        told = re.findall(r"  (\w+) ([\d.e-]+)", line[len(text) :])
        assert [label for label, _ in told] == [label for label, _ in answer.top]
        assert [float(score) for _, score in told] == pytest.approx([s for _, s in answer.top], abs=1e-5)
    note = "note: this text is longer than the model reads: its end was not looked at"
    assert done.stderr.decode().splitlines() == [note] * sum(answer.truncated for answer in wanted)
    done = run(on_onnxruntime, "--show", "book a Äble", "--bundle", for_texts)
    with edgekd.load(for_texts) as student:
        ids = preprocess(student.bundle.steps(), "book a Äble")
    assert done.stdout.split() == [str(number) for number in ids]


def compiled(code: str, folder: Path) -> Path:
    """A program of one's own around the header, on onnxruntime."""
    (folder / "mine.cpp").write_text(code)
    root = cpp_builds.onnxruntime_root(folder)
    flags = (f"-I{SOURCE}", "-DEDGEKD_ONNXRUNTIME", "-isystem", f"{root}/include")
    library = (f"-L{root}/lib", "-Wl,--no-as-needed", "-lonnxruntime", f"-Wl,-rpath,{root}/lib")
    return cpp_builds.compile_cpp(folder / "mine.cpp", folder / "mine", *flags, *library)


def test_texts_together_are_texts_alone(for_texts, tmp_path):
    """Where a graph measures its activations in every call, its neighbours and its padding would change an answer."""
    done = run(compiled(TOGETHER, tmp_path), for_texts, *UNEVEN)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(UNEVEN)
    assert lines[::2] == lines[1::2]


def test_of_a_vector_the_command_line_says_how_it_begins(on_onnxruntime, tmp_path):
    place = make_text_bundle(tmp_path / "made", vectors=True)
    done = run(on_onnxruntime, "book", "a", "--bundle", place)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(place) as student:
        vectors = [student.predict(text).outputs["logits"] for text in ("book", "a")]
    assert done.stdout == f"book: {said_of(vectors[0])}\na: {said_of(vectors[1])}\n"


def test_a_vector_is_no_list_of_classes(tmp_path):
    place = make_text_bundle(tmp_path / "made", vectors=True)
    texts = [text for text in TEXTS if "\x00" not in text]
    done = run(compiled(VECTORS, tmp_path), place, *texts)
    assert (done.returncode, done.stderr) == (0, "")
    with edgekd.load(place, variant="float32") as student:
        for line, text in zip(done.stdout.splitlines(), texts, strict=True):
            labels, score, *vector = line.split()
            wanted = student.predict(text)
            assert labels == "000"
            assert float(score) == pytest.approx(wanted.score, rel=1e-5)
            assert [float(value) for value in vector] == pytest.approx(wanted.outputs["logits"].tolist(), abs=1e-5)


BAD_TEXT_BUNDLES = {
    "trim without tokenize": (lambda m: m["preprocess"].pop(0), "preprocess is not tokenize, then trim"),
    "scaled ids": (lambda m: m["preprocess"].append({"op": "scale"}), "preprocess is not tokenize, then trim"),
    "tokenize twice": (lambda m: m["preprocess"].append(m["preprocess"][0]), "preprocess is not in order"),
    "no file": (lambda m: m["preprocess"][0].pop("file"), "preprocess[0].file is missing"),
    "another file": (
        lambda m: m["preprocess"][0].update(file="x.json"),
        "preprocess[0].file is not a file that 'files'",
    ),
    "too long": (lambda m: m["preprocess"][0].update(max_length=20_000), "not a whole number from 2 to 16384"),
    "no padding": (lambda m: m["preprocess"][1].pop("pad"), "preprocess[1].pad is missing"),
    "another padding": (lambda m: m["preprocess"][1].update(pad=1), None),
}


@pytest.mark.parametrize("name", BAD_TEXT_BUNDLES)
def test_bad_bundles_for_texts_are_refused(for_texts, on_onnxruntime, tmp_path, name):
    change, text = BAD_TEXT_BUNDLES[name]
    place = shutil.copytree(for_texts, tmp_path / "b")
    edited(change)(place)
    done = run(on_onnxruntime, "--self-test", "--bundle", place)
    assert done.returncode == (1 if text is None else 3), done.stderr
    assert (text or "self-test FAILED: float32: preprocessing differs by") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bad_texts_are_refused(bundle, for_texts, on_onnxruntime, tmp_path):
    done = run(on_onnxruntime, b"book \xff".decode("utf-8", "surrogateescape"), "--bundle", for_texts)
    assert (done.returncode, done.stderr) == (3, "error: the text is not valid UTF-8 (byte 5); convert it first\n")
    place = shutil.copytree(for_texts, tmp_path / "b")
    data = (place / "tokenizer.json").read_bytes().replace(b'"WordPiece"', b'"BPE"')
    (place / "tokenizer.json").write_bytes(data)
    done = run(on_onnxruntime, "a", "--bundle", place)
    assert "tokenizer.json in" in done.stderr
    assert "was changed after the bundle was written" in done.stderr
    record = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    edited(lambda manifest: manifest["files"].update({"tokenizer.json": record}))(place)
    done = run(on_onnxruntime, "a", "--bundle", place)
    assert (done.returncode, "model.type is \"BPE\", expected 'WordPiece': distil with" in done.stderr) == (3, True)
    done = run(on_onnxruntime, "a text", "--bundle", bundle)
    assert (done.returncode, "cannot read a text; check the path" in done.stderr) == (3, True)


BAD_BUNDLES = {
    "truncated": (
        lambda place: (place / "bundle.json").write_bytes((place / "bundle.json").read_bytes()[:300]),
        "bundle.json is not readable as JSON",
    ),
    "newer": (edited(lambda m: m.update(version=2)), "newer version than 1"),
    "without version": (edited(lambda m: m.pop("version")), "version is missing"),
    "another step": (edited(lambda m: m["preprocess"].append({"op": "sharpen"})), "the step 'sharpen'"),
    "leads outside": (edited(lambda m: m["files"].update({"../x": {}})), "no file inside the bundle"),
    "not listed": (edited(lambda m: m["files"].pop("graphs/float32.onnx")), "a file that 'files' lists"),
    "wrong type": (edited(lambda m: m.update(labels="abc")), "labels is not a list"),
    "huge size": (edited(lambda m: m["preprocess"][2].update(size=[20000, 1])), "whole number from 1 to 16384"),
    "tampered": (tampered, "graphs/float32.onnx in"),
    "a link": (linked, "symbolic link"),
    "missing": (lambda place: (place / "graphs" / "float32.onnx").unlink(), "graphs/float32.onnx is missing"),
    "empty": (lambda place: (place / "bundle.json").unlink(), "bundle.json is missing"),
}


@pytest.mark.parametrize("name", BAD_BUNDLES)
def test_bad_bundles_are_refused(bundle, on_onnxruntime, tmp_path, name):
    damage, text = BAD_BUNDLES[name]
    place = tmp_path / "b"
    shutil.copytree(bundle, place)
    damage(place)
    done = run(on_onnxruntime, "--self-test", "--bundle", place, "--variant", "float32")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_zips_and_foreign_files(bundle, on_onnxruntime, tmp_path):
    stored, packed = tmp_path / "stored.zip", tmp_path / "packed.zip"
    for path, kind in ((stored, zipfile.ZIP_STORED), (packed, zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(path, "w", kind) as archive:
            for file in sorted(bundle.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(bundle).as_posix())
    assert run(on_onnxruntime, "--self-test", "--bundle", stored).returncode == 0
    (tmp_path / "text.txt").write_text("no bundle")
    (tmp_path / "short.zip").write_bytes(stored.read_bytes()[:2000])
    for name, text in (
        ("packed.zip", "holds 'bundle.json' compressed, and this reader has no decompressor; unpack it into a folder"),
        ("text.txt", "is no bundle: expected a folder or a zip"),
        ("short.zip", "is no readable zip (it has no directory)"),
        ("nothing", "no bundle at"),
    ):
        done = run(on_onnxruntime, "--self-test", "--bundle", tmp_path / name)
        assert (done.returncode, text in done.stderr) == (3, True), done.stderr


def test_bad_input_is_refused(bundle, on_onnxruntime, tmp_path):
    np.save(tmp_path / "nan.npy", np.full((8, 8, 1), np.nan))
    np.save(tmp_path / "five.npy", np.zeros((8, 8, 5), np.uint8))
    np.save(tmp_path / "deep.npy", np.zeros((2, 8, 8, 1), np.uint8))
    np.save(tmp_path / "empty.npy", np.zeros((0, 8, 1), np.uint8))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "short.pgm").write_bytes(b"P5 4 4 255\n123")
    cases = [
        (3, ["nan.npy"], "look for NaN or infinite values in the input"),
        (3, ["five.npy"], "to_grey: found 5 channels, expected 1 or 3"),
        (3, ["deep.npy"], "expected an image (H, W) or (H, W, C)"),
        (3, ["empty.npy"], "expected at least one number"),
        (3, ["text.npy"], "is no .npy file of numbers"),
        (3, ["objects.npy"], "is no .npy file of numbers"),
        (3, ["grey.png"], "has an unknown format; expected .npy, PGM, PPM or PAM"),
        (3, ["short.pgm"], "holds another number of bytes than its header says"),
        (3, ["none.pgm"], "cannot read none.pgm; check the path"),
        (2, ["--self-test", "--threads", "4096"], "threads is 4096, expected a whole number from 1 to"),
        (2, ["--self-test", "--threads", "0"], "threads is 0"),
        (
            2,
            ["--self-test", "--variant", "int9"],
            "no variant 'int9', expected one of float32, int8_dynamic, int8_u8s8",
        ),
        (2, ["nan.npy", "--top-k", "0"], "top_k is 0"),
        (2, ["--top-k", "many"], "--top-k is 'many', expected a whole number"),
        (2, ["--fast"], "unknown option --fast"),
        (2, [], "usage: app FILE"),
    ]
    for code, args, text in cases:
        done = run(on_onnxruntime, *args, "--bundle", bundle, cwd=tmp_path)
        assert (done.returncode, text in done.stderr) == (code, True), (args, done.stderr)


def test_the_readers_are_fuzzed(bundle, tmp_path):
    """Under sanitizers: every damaged input opens or is refused in a sentence."""
    np.save(tmp_path / "seed.npy", np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)))
    program = cpp_builds.compile_cpp(SOURCE / "fuzz.cpp", tmp_path / "fuzz", *cpp_builds.SANITIZED)
    tokenizer = character_tokenizer(tmp_path / "tokenizer.json", known=range(0x60, 0x180))
    seeds = [bundle / "bundle.json", bundle / "golden.npz", tmp_path / "seed.npy", tokenizer]
    done = run(program, FUZZED, *seeds)
    assert done.returncode == 0, done.stderr[-2000:]
    opened, refused = map(int, re.fullmatch(rf"{FUZZED} inputs: (\d+) opened, (\d+) refused\n", done.stdout).groups())
    assert opened > 100
    assert refused > FUZZED


def test_the_lines_of_the_readme_compile(folder, tmp_path):
    lines = re.search(r"```cpp\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)[1]
    assert len(lines.splitlines()) <= 10
    (tmp_path / "mine.cpp").write_text(
        "#define main mine\n" + lines.rstrip().removesuffix("}") + "return 0;\n}" + THREADS
    )
    root = cpp_builds.onnxruntime_root(folder)
    flags = (f"-I{folder}", "-DEDGEKD_ONNXRUNTIME", f"-I{root}/include")
    library = (f"-L{root}/lib", "-lonnxruntime", f"-Wl,-rpath,{root}/lib")
    program = tmp_path / "mine"
    command = [
        cpp_builds.tool("g++"),
        "-std=c++17",
        "-pthread",
        *flags,
        str(tmp_path / "mine.cpp"),
        "-o",
        str(program),
        *library,
    ]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(folder / "digit.pgm")
    done = run(program, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] in ("circle", "square", "triangle")
    assert done.stdout.splitlines()[1] == "800 of 800 alike"
