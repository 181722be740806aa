"""`edgekd embed` as a developer types it: apps that prove themselves, and refusals that say what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_builds import WARNINGS, compile_c, compiler
from commands import edgekd, ok, ok_json, refused
from text_bundle import TEXTS, make_text_bundle, said_of

from edgekd import assets, load
from edgekd.device.bundle import Bundle
from edgekd.errors import UsageError
from edgekd.stages.embedding import APPS, embed

STEPS = [{"op": "decode"}, {"op": "to_grey"}, {"op": "resize", "size": [8, 8]}, {"op": "scale"}, {"op": "layout"}]


def make_bundle(folder: Path) -> Path:
    """A small CNN for 8 x 8 pictures, float and int8, as a bundle; its weights are random, its golden vectors real."""
    import onnx
    from onnx import helper, numpy_helper

    from edgekd.device.preprocess import apply_arithmetic, split_steps
    from edgekd.device.runtimes import open_session
    from edgekd.graph import Int8Dynamic, Int8Static, quantize
    from edgekd.spec import parse_steps

    random = np.random.default_rng(0)
    weights = {"w": random.normal(0, 0.5, (6, 1, 3, 3)), "b": random.normal(0, 0.1, 6), "v": random.normal(size=(6, 3))}
    node = helper.make_node
    nodes = [
        node("Conv", ["input", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["flat"]),
        node("MatMul", ["flat", "v"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "float32.onnx")
    raw = random.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    feeds = {"input": apply_arithmetic(split_steps(parse_steps(STEPS))[1], raw)}
    quantize(folder / "float32.onnx", folder / "int8_u8s8.onnx", Int8Static(), calibration=feeds)
    quantize(folder / "float32.onnx", folder / "int8_dynamic.onnx", Int8Dynamic())
    golden = {"raw": raw, "input.input": feeds["input"]}
    names = ("float32", "int8_dynamic", "int8_u8s8")
    for name in names:
        session = open_session(folder / f"{name}.onnx", threads=1)
        golden[f"output.{name}.logits"] = session.run(feeds)["logits"]
        session.close()
    largest = float(np.abs(golden["output.float32.logits"]).max())
    loose = {"abs": 0.05 * largest, "rel": 0.0, "label_agreement": 0.8}
    manifest = {
        "name": "shapes",
        "task": "classification",
        "licence": "MIT",
        "intended_use": "telling shapes apart, not for medicine",
        "provenance": {
            "teacher": {"name": "big", "licence": "Apache-2.0"},
            "data": {"name": "drawings", "licence": "CC BY 4.0"},
        },
        "labels": ["circle", "square", "triangle"],
        "default": {"*": "float32"},
        "inputs": [{"name": "input", "dtype": "float32", "shape": ["N", 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", 3]}],
        "preprocess": STEPS,
        "postprocess": [{"op": "softmax"}],
        "variants": {name: {"tolerance": loose} if "int8" in name else {} for name in names},
    }
    graphs = {name: {"main": folder / f"{name}.onnx"} for name in names}
    Bundle.write(folder / "shapes.edgekd", manifest, graphs, golden)
    return folder / "shapes.edgekd"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("embed"))


def python_app(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The app's own program, where edgekd cannot be imported."""
    block = "import sys, runpy; sys.modules['edgekd'] = None; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
    command = [sys.executable, "-c", block + "runpy.run_path(sys.argv[0], run_name='__main__')", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_every_app_is_a_folder_with_a_readme_and_words_that_are_filled_in(bundle, tmp_path):
    for app in APPS:
        assert (assets.folder("export", "apps") / app / "README.md").is_file()
        embed(Bundle.open(bundle), app, tmp_path / app)
        readme = (tmp_path / app / "README.md").read_text()
        assert not re.search(r"@\w+@", readme)
        assert "shapes" in readme
        notice = (tmp_path / app / "NOTICE.md").read_text()
        for text in ("| this model | shapes | MIT |", "| its teacher | big | Apache-2.0 |", "CC BY 4.0", "medicine"):
            assert text in notice


@pytest.fixture(scope="module")
def for_texts(tmp_path_factory) -> Path:
    return make_text_bundle(tmp_path_factory.mktemp("texts"))


def test_the_python_app_reads_texts_as_edgekd_does(for_texts, tmp_path):
    ok("embed", for_texts, "--app", "python", "--out", tmp_path)
    done = python_app("student.py", "--self-test", "--variant", "int8_dynamic", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    texts = [text for text in TEXTS if "\x00" not in text]
    done = python_app("student.py", "--top-k", "3", "--", *texts, cwd=tmp_path)
    with load(for_texts) as student:
        answers = [student.predict(text, top_k=3) for text in texts]
    for line, text, answer in zip(done.stdout.splitlines(), texts, answers, strict=True):
        assert line == f"{text}: " + "  ".join(f"{label} {score:.4g}" for label, score in answer.top)
    assert done.stderr.count("longer than the model reads") == sum(answer.truncated for answer in answers) == 2
    for given, text in (
        (b"book \xff", "the text is not valid UTF-8 (byte 5); decode it first"),
        (b"a" * 10_000_001, "the text has 10000001 characters, expected at most 10000000; pass a part of it"),
    ):
        (tmp_path / "text").write_bytes(given)
        with (tmp_path / "text").open() as file:
            command = [sys.executable, "student.py", "-"]
            done = subprocess.run(command, cwd=tmp_path, stdin=file, capture_output=True, text=True, timeout=300)
        assert (done.returncode, text in done.stderr) == (3, True), done.stderr
    place = tmp_path / "student.edgekd" / "bundle.json"
    good = json.loads(place.read_text())
    for change, code, text in (
        (lambda m: m["preprocess"][1].update(pad=1), 1, "self-test FAILED: float32: preprocessing differs by"),
        (lambda m: m["preprocess"].pop(0), 3, "preprocess is trim, expected tokenize, then trim; get a fresh copy"),
    ):
        changed = json.loads(json.dumps(good))
        change(changed)
        place.write_text(json.dumps(changed))
        done = python_app("student.py", "--self-test", cwd=tmp_path)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def test_the_python_app_says_how_a_vector_begins(tmp_path):
    place = make_text_bundle(tmp_path / "made", vectors=True)
    ok("embed", place, "--app", "python", "--out", tmp_path / "app")
    done = python_app("student.py", "book", "a", cwd=tmp_path / "app")
    assert (done.returncode, done.stderr) == (0, "")
    with load(place) as student:
        vectors = [student.predict(text).outputs["logits"] for text in ("book", "a")]
    assert done.stdout == f"book: {said_of(vectors[0])}\na: {said_of(vectors[1])}\n"


def test_a_readme_for_vectors_names_no_labels_and_its_lines_run(tmp_path):
    place = make_text_bundle(tmp_path / "made", vectors=True)
    ok("embed", place, "--app", "python", "--out", tmp_path / "app")
    readme = (tmp_path / "app" / "README.md").read_text()
    assert "Vectors of 8 numbers. Bundle " in readme
    assert "Labels:" not in readme
    _, lines = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    (tmp_path / "app" / "mine.py").write_text(f"{lines}print(cosine)\n")
    done = python_app("mine.py", cwd=tmp_path / "app")
    assert (done.returncode, done.stderr) == (0, "")
    with load(place) as student:
        one, other = (student.predict(text) for text in re.findall(r'"(\w+ [^"]+)"', lines))
    product = one.outputs["logits"] @ other.outputs["logits"]
    assert float(done.stdout) == pytest.approx(product / (one.score * other.score), rel=1e-5)


def test_apps_without_a_tokenizer_refuse_students_of_texts(for_texts, tmp_path):
    done = refused(2, "embed", for_texts, "--app", "c", "--out", tmp_path / "app")
    assert "the c app reads no texts, and this student does: it has no tokenizer; take one of python," in done
    assert not (tmp_path / "app").exists()


def test_the_python_app_proves_itself_without_edgekd(bundle, tmp_path):
    made = ok_json("embed", bundle, "--app", "python", "--out", tmp_path / "app")
    assert made["run"] == "python student.py --self-test"
    assert {"student.py", "server.py", "README.md", "NOTICE.md", "student.edgekd/bundle.json"} <= set(made["files"])
    done = python_app("student.py", "--self-test", cwd=tmp_path / "app")
    assert (done.returncode, done.stderr) == (0, "")
    assert "self-test passed: float32 gives its golden outputs here" in done.stdout
    # Another weight, with the right hash: only the golden vectors tell.
    graph = tmp_path / "app" / "student.edgekd" / "graphs" / "float32.onnx"
    place = tmp_path / "app" / "student.edgekd" / "bundle.json"
    manifest = json.loads(place.read_text())
    other = (bundle / "graphs" / "int8_dynamic.onnx").read_bytes()
    graph.write_bytes(other)
    from edgekd.files import sha256_bytes

    manifest["files"]["graphs/float32.onnx"] = {"sha256": sha256_bytes(other), "size_bytes": len(other)}
    place.write_text(json.dumps(manifest))
    done = python_app("student.py", "--self-test", cwd=tmp_path / "app")
    assert done.returncode == 1
    assert "self-test FAILED: float32: output 'logits' differs by up to" in done.stderr
    graph.write_bytes(other[:-1])
    done = python_app("student.py", "--self-test", cwd=tmp_path / "app")
    assert done.returncode == 3
    assert "graphs/float32.onnx in student.edgekd was changed" in done.stderr.replace(str(tmp_path / "app") + "/", "")


def test_the_c_app_proves_itself(bundle, tmp_path):
    compiler()
    made = ok_json("embed", bundle, "--app", "c", "--out", tmp_path / "app")
    assert set(made["files"]) == {"Makefile", "README.md", "NOTICE.md", "main.c", "golden.h", "student.c", "student.h"}
    assert 100 < made["constant_bytes"] < 1000
    assert made["arena_bytes"] < 200
    folder = tmp_path / "app"
    for build in ("plain", "sanitized"):
        program = compile_c(folder, "main.c", "student.c", build=build, name=build)
        done = subprocess.run([program, "--self-test"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "18 of 18 samples as the integer reference, bit for bit" in done.stdout
    flags = f"CFLAGS={' '.join(WARNINGS)} -O2"
    assert (
        "self-test passed" in subprocess.run(["make", "test", flags], cwd=folder, capture_output=True, text=True).stdout
    )
    # One weight less: the golden vectors notice.
    source = (folder / "student.c").read_text()
    (folder / "student.c").write_text(source.replace("bias_1[6] = {\n    ", "bias_1[6] = {\n    100000 + "))
    done = subprocess.run([compile_c(folder, "main.c", "student.c"), "--self-test"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "self-test FAILED: do not use this build" in done.stderr


def test_the_c_program_answers_as_the_bundle_does(bundle, tmp_path):
    import edgekd

    ok("embed", bundle, "--app", "c", "--out", tmp_path, "--variant", "int8_u8s8")
    program = compile_c(tmp_path, "main.c", "student.c", build="sanitized")
    picture = Bundle.open(bundle).golden()["raw"][0]
    (tmp_path / "picture.raw").write_bytes(picture.tobytes())
    said = subprocess.run(
        [program, tmp_path / "picture.raw"], capture_output=True, text=True, check=True
    ).stdout.split()
    with edgekd.load(bundle, variant="int8_u8s8") as predictor:
        answer = predictor.predict(picture)
    assert said[0] == answer.label
    assert float(said[1]) == pytest.approx(answer.score, abs=0.02)
    for name, content, code, text in (
        ("short", b"1", 3, "holds less than one sample, expected 64 bytes"),
        ("long", bytes(65), 3, "holds more than one sample"),
        ("none", None, 3, "cannot read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        done = subprocess.run([program, tmp_path / name], capture_output=True, text=True)
        assert done.returncode == code
        assert text in done.stderr
    assert subprocess.run([program], capture_output=True).returncode == 2


def c_app_for(bundle: Path, folder: Path, task: str, post: list) -> Bundle:
    """The app of an int8 student of another task in folder/app, and folder/sample: the fourth golden sample."""
    source, name = Bundle.open(bundle), "int8_u8s8"
    golden = {key: value for key, value in source.golden().items() if "output" not in key or name in key}
    manifest = {**source.manifest, "task": task, "postprocess": post, "default": {"*": name}}
    manifest["variants"] = {name: source.manifest["variants"][name]}
    made = Bundle.write(folder / "b", manifest, {name: {"main": source.graph("main", name)}}, golden)
    embed(made, "c", folder / "app")
    (folder / "sample").write_bytes(golden["raw"][3].tobytes())
    return made


@pytest.mark.parametrize(
    ("task", "post"),
    [
        ("multilabel", [{"op": "sigmoid"}, {"op": "threshold", "value": 0.5}]),
        ("regression", [{"op": "denormalize", "mean": [1.0, 20.0, 300.0], "std": [0.5, 2.0, 7.0]}]),
    ],
)
def test_the_c_program_gives_labels_and_targets_in_their_units(bundle, tmp_path, task, post):
    from edgekd.device.postprocess import apply_post, parse_post_steps

    golden = c_app_for(bundle, tmp_path, task, post).golden()
    program = compile_c(tmp_path / "app", "main.c", "student.c")
    done = subprocess.run([program, tmp_path / "sample"], capture_output=True, text=True, check=True)
    told = dict(line.split() for line in done.stdout.splitlines())
    assert list(told) == ["circle", "square", "triangle"]
    wanted = apply_post(parse_post_steps(post), golden["output.int8_u8s8.logits"][3:4])[0]
    assert [float(value) for value in told.values()] == pytest.approx(wanted.tolist(), rel=0.02, abs=0.02)


def test_the_c_program_gives_a_vector(bundle, tmp_path):
    golden = c_app_for(bundle, tmp_path, "embedding", []).golden()
    program = compile_c(tmp_path / "app", "main.c", "student.c")
    assert subprocess.run([program, "--self-test"], capture_output=True).returncode == 0
    said = subprocess.run([program, tmp_path / "sample"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"3 numbers:( -?\d+\.\d{4}){3}\n", said)
    wanted = golden["output.int8_u8s8.logits"][3].tolist()
    assert [float(value) for value in said.split()[2:]] == pytest.approx(wanted, rel=0.02, abs=0.02)
    lines = re.search(r"```c\n(.*?)```", (tmp_path / "app" / "README.md").read_text(), flags=re.S)[1]
    main = """
int main(void) {
    unsigned char sample[STUDENT_RAW_BYTES] = {0};
    float vector[STUDENT_OUTPUTS];
    return embed(sample, vector) ? 0 : 1;
}
"""
    (tmp_path / "app" / "firmware.c").write_text(lines.replace("int embed", "static int embed") + main)
    assert subprocess.run([compile_c(tmp_path / "app", "firmware.c", "student.c")]).returncode == 0


def test_the_lines_of_the_c_readme_compile(bundle, tmp_path):
    ok("embed", bundle, "--app", "c", "--out", tmp_path)
    lines = re.search(r"```c\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.S)[1]
    assert len(lines.splitlines()) <= 15
    main = "int main(void) { unsigned char p[STUDENT_RAW_BYTES] = {0}; puts(classify(p)); return 0; }\n"
    (tmp_path / "firmware.c").write_text(
        lines.replace("const char *classify", "#include <stdio.h>\nstatic const char *classify") + main
    )
    done = subprocess.run([compile_c(tmp_path, "firmware.c", "student.c")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("circle", "square", "triangle")


def test_the_lines_of_the_python_readme_run(bundle, tmp_path):
    from PIL import Image

    ok("embed", bundle, "--app", "python", "--out", tmp_path)
    Image.fromarray(np.arange(100 * 80, dtype=np.uint32).astype(np.uint8).reshape(100, 80)).save(tmp_path / "photo.jpg")
    lines = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.S)[1]
    assert len(lines.splitlines()) <= 10
    (tmp_path / "mine.py").write_text(lines)
    done = python_app("mine.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] in ("circle", "square", "triangle")
    shell = re.search(r"python (student\.py photo.*)", (tmp_path / "README.md").read_text())[1]
    done = python_app(*shell.split(), cwd=tmp_path)
    assert done.stdout.startswith("photo.jpg: ")
    assert len(done.stdout.split()) == 7


def test_only_the_glue(bundle, tmp_path):
    ok("embed", bundle, "--app", "c", "--out", tmp_path / "cli", "--only-glue")
    assert {path.name for path in (tmp_path / "cli").iterdir()} == {"student.c", "student.h"}
    for app, kind in APPS.items():
        embed(Bundle.open(bundle), app, tmp_path / app, only_glue=True)
        # ort/ comes from an npm package, which may not be here.
        assert {path.name for path in (tmp_path / app).iterdir()} - {"ort"} == set(kind.glue) - {"ort"}


def test_a_zip_and_a_signature_come_along(bundle, tmp_path):
    signed = tmp_path / "signed.edgekd"
    shutil.copytree(bundle, signed)
    ok("sign", signed, "--key", tmp_path / "key.pem", "--new-key")
    ok("embed", signed, "--app", "python", "--out", tmp_path / "app")
    ok("verify", tmp_path / "app" / "student.edgekd", "--key", tmp_path / "key.pub.pem")


def test_files_of_the_user_are_kept(bundle, tmp_path):
    opened = Bundle.open(bundle)
    embed(opened, "python", tmp_path)
    embed(opened, "python", tmp_path)  # the same again changes nothing
    (tmp_path / "server.py").write_text("mine")
    text = refused(2, "embed", bundle, "--app", "python", "--out", tmp_path)
    assert "server.py exists and differs; replace it with --force, or choose another --out" in text
    assert (tmp_path / "server.py").read_text() == "mine"
    ok("embed", bundle, "--app", "python", "--out", tmp_path, "--force")
    assert (tmp_path / "server.py").read_text() != "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, expected a folder; choose another place"):
        embed(opened, "python", tmp_path / "file")


def test_refusals(bundle, tmp_path):
    opened, out = Bundle.open(bundle), tmp_path / "app"
    with pytest.raises(UsageError, match=r"no app is called 'pyton'\. Did you mean 'python'"):
        embed(opened, "pyton", out)
    with pytest.raises(UsageError, match=r"has no variant 'int8'\. Did you mean"):
        embed(opened, "c", out, variant="int8")
    with pytest.raises(UsageError, match="for apps without a bundle inside"):
        embed(opened, "python", out, variant="float32")
    text = refused(3, "embed", bundle, "--app", "c", "--out", out, "--variant", "float32")
    assert "can become C: float32: Conv computes in float" in text
    damaged = tmp_path / "damaged.edgekd"
    shutil.copytree(bundle, damaged)
    graph = damaged / "graphs" / "float32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    assert "was changed after the bundle was written" in refused(3, "embed", damaged, "--app", "python", "--out", out)
    assert not out.exists()


def test_a_run_of_the_real_thing_is_named(bundle, tmp_path):
    done = edgekd("embed", bundle, "--app", "c", "--out", tmp_path / "app")
    assert "arena_bytes" in done.stdout
    assert f"cd {tmp_path / 'app'} && make test" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["app"]
