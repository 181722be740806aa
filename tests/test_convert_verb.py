"""Other runtimes' files of a bundle: really converted, proven by golden vectors, refused with the reason."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import ok, ok_json, refused
from text_bundle import make_text_bundle
from tokenizer_files import character_tokenizer

import edgekd
from edgekd.device.bundle import Bundle
from edgekd.device.runtimes import open_session
from edgekd.device.runtimes.chunks import run_in_chunks
from edgekd.errors import AnswerIsNo, MissingHere, UsageError
from edgekd.graph.formats import FORMATS, Request, convert, find_program, run_program
from edgekd.graph.formats.extensions import attributes
from edgekd.graph.targets import load_target
from edgekd.spec import TensorSpec
from edgekd.stages.bundling import bundle_model
from edgekd.stages.converting import convert_bundle, platform_of

sys.path.insert(0, str(Path(__file__).parent / "graph"))
from graphs import cnn

# Converters that lie in this environment; the others have environments of their own (`converters`).
CONVERTED = [name for name in FORMATS if name in ("ort", "openvino", "mnn")]
RUNTIMES = {
    "ort": "onnxruntime",
    "openvino": "openvino",
    "mnn": "MNN",
    "litert": "ai_edge_litert",
    "executorch": "executorch",
    "ncnn": "ncnn",
}
# What an environment must hold to convert.
MODULES = {"litert": "litert_torch", "executorch": "executorch", "ncnn": "pnnx"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("convert")
    onnx.save(cnn(), folder / "net.onnx")
    return bundle_model(
        folder / "net.onnx",
        folder / "net.edgekd",
        name="net",
        task="classification",
        labels=None,
        steps=[],
        licence="MIT",
        as_zip=False,
        seed=0,
    )


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("target", ["cpu", "android"])
def test_a_converted_file_answers_as_the_bundle(bundle: Bundle, name: str, target: str, tmp_path: Path) -> None:
    pytest.importorskip(RUNTIMES[name])
    result = ok_json("convert", bundle.path, tmp_path / "out", "--to", name, "--target", target)
    check_answers(bundle, name, result, tmp_path / "out")


def check_answers(bundle: Bundle, name: str, result: dict[str, Any], folder: Path) -> None:
    """One file was made, is all that lies there, gives the golden outputs, and tells nothing of this machine."""
    file = f"float32{FORMATS[name].suffix}"
    assert list(result["made"]) == [file]
    assert sorted(path.name for path in folder.iterdir()) == sorted(result["made"][file]["files"])
    golden = bundle.golden()
    session = open_session(folder / file, runtime=FORMATS[name].runtime)
    found = run_in_chunks(session, {session.inputs[0].name: golden["input.x"]})
    [expected] = [golden[key] for key in golden if key.startswith("output.float32.")]
    np.testing.assert_allclose(next(iter(found.values())), expected, atol=1e-4 if name == "mnn" else 1e-5)
    session.close()
    for part in result["made"][file]["files"]:
        assert str(folder.parent).encode() not in (folder / part).read_bytes()


@pytest.mark.parametrize("name", MODULES)
def test_a_converter_with_an_environment_of_its_own(bundle: Bundle, name: str, tmp_path: Path) -> None:
    """Really, where it lies in this environment, or in EDGEKD_CONVERTERS/NAME, a virtual environment each."""
    pytest.importorskip(RUNTIMES[name], reason=f"the runtime {name} is not installed")
    given = os.environ.get("EDGEKD_CONVERTERS")
    if given is None and find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed here, and EDGEKD_CONVERTERS names no environments")
    more = [] if given is None else ["--converter-env", Path(given) / name]
    result = ok_json("convert", bundle.path, tmp_path / "out", "--to", name, *more)
    check_answers(bundle, name, result, tmp_path / "out")


def test_float_converters_take_the_float_variants(bundle: Bundle, tmp_path: Path) -> None:
    """Where none is named; one that is named and quantized is refused before its converter may abort."""
    pytest.importorskip("MNN")
    made = bundle.manifest["variants"]["float32"]
    manifest = {**bundle.manifest, "variants": {"float32": made, "int8_u8s8": {**made, "precision": "int8"}}}
    golden = bundle.golden()
    golden |= {key.replace("float32", "int8_u8s8"): value for key, value in golden.items()}
    manifest["golden"] = {**manifest["golden"]}
    manifest["golden"]["outputs"] = dict.fromkeys(manifest["variants"], manifest["golden"]["outputs"]["float32"])
    graphs = {key: {"main": bundle.graph()} for key in manifest["variants"]}
    both = Bundle.write(tmp_path / "both.edgekd", manifest, graphs, golden)
    assert list(convert_bundle(both, ["mnn"], tmp_path / "out")["made"]) == ["float32.mnn"]
    reason = convert_bundle(both, ["mnn"], tmp_path / "out", variants=["int8_u8s8"])["refused"]["int8_u8s8.mnn"]
    assert reason == "the converter for mnn takes float32 graphs only; convert a variant in float32"


@pytest.mark.parametrize("name", [name for name in CONVERTED if name != "ort"])
def test_equal_conversions_give_equal_bytes(bundle: Bundle, name: str, tmp_path: Path) -> None:
    """In another folder, in another process with another hash seed. onnxruntime writes a list of its own format in the
    order of a hash table whose seed is an address."""
    pytest.importorskip(RUNTIMES[name])
    command = [sys.executable, "-m", "edgekd", "convert", bundle.path, "--to", name, "--json"]
    hashes = []
    for seed in ("1", "2"):
        folder = tmp_path / ("deep/er" if seed == "2" else "flat")
        done = subprocess.run(
            [*command[:5], folder, *command[5:]], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        hashes.append([item["files"] for item in json.loads(done.stdout)["made"].values()])
    assert hashes[0] == hashes[1]


def test_a_graph_that_pytorch_cannot_take_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Sign", ["x"], ["y"], name="sign")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]), ir_version=8)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 18))
    onnx.save(model, tmp_path / "net.onnx")
    inputs = (TensorSpec("x", "float32", ("N", 4)),)
    request = Request(tmp_path / "net.onnx", tmp_path / "net.tflite", inputs, "arm", None)
    with pytest.raises(AnswerIsNo, match=r"starts from PyTorch, and the graph cannot go there: node 'sign' is a Sign"):
        convert("litert", request)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_wrong_answers_are_refused_and_older_files_go(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle whose golden outputs are another network's: what any wrong conversion looks like."""
    golden = {key: value + (0.5 if key.startswith("output.") else 0) for key, value in bundle.golden().items()}
    other = Bundle.write(tmp_path / "other.edgekd", bundle.manifest, {"float32": {"main": bundle.graph()}}, golden)
    assert convert_bundle(bundle, ["ort"], tmp_path / "out")["refused"] == {}
    result = convert_bundle(other, ["ort"], tmp_path / "out")
    assert not result["made"]
    assert "gives other answers: output" in result["refused"]["float32.ort"]
    assert list((tmp_path / "out").iterdir()) == []
    text = refused(1, "convert", other.path, tmp_path / "out")
    assert "float32.ort: it was converted into a file that gives other answers" in text


def test_a_converter_that_is_not_there(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    text = refused(1, "convert", bundle.path, tmp_path / "out", "--to", "ncnn", "--converter-env", tmp_path / "env")
    assert "float32.param: pnnx is not in" in text
    assert "converters/bin/pip install torch pnnx) and name it: --converter-env converters" in text
    text = refused(2, "convert", bundle.path, tmp_path / "out", "--to", "openvin")
    assert "unknown format 'openvin'. Did you mean 'openvino'?" in text
    with pytest.raises(UsageError, match="there is no such folder; expected a virtual environment"):
        convert_bundle(bundle, ["ort"], tmp_path / "out", env=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no variant 'float23'"):
        convert_bundle(bundle, ["ort"], tmp_path / "out", variants=["float23"])


def environment(folder: Path, script: str) -> Path:
    """A virtual environment whose pnnx is this Python script."""
    program = folder / "bin" / "pnnx"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


PNNX = """
import sys, pathlib
assert sys.argv[1:] == ["model.onnx", "inputshape=[1,3,12,12]", "fp16=0"], sys.argv
assert pathlib.Path("model.onnx").is_file()
pathlib.Path("model.ncnn.param").write_text(
    "7767517\\n2 2\\nInput in0 0 1 in0\\nReduction gap 1 1 in0 out0 0=3 1=0 -23303=2,1,2 4=0\\n")
pathlib.Path("model.ncnn.bin").write_bytes(b"")
"""


def test_an_environment_without_the_package(bundle: Bundle, tmp_path: Path) -> None:
    """The package is looked for before the graph is traced or the converter started."""
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to(sys.executable)
    if find_spec("litert_torch") is not None:
        pytest.skip("litert-torch is installed here, and so in what looks like another environment")
    reason = convert_bundle(bundle, ["litert"], tmp_path / "out", env=env)["refused"]["float32.tflite"]
    assert reason.startswith(f"litert-torch is not in {env}; make one for it (python -m venv converters")
    assert "pip install litert-torch) and name it: --converter-env converters" in reason


def test_a_converter_of_an_environment_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    """What is asked of pnnx, the shape written into what it leaves out, and a network that is not ours refused."""
    pytest.importorskip("ncnn")
    env = environment(tmp_path / "env", PNNX)
    result = convert_bundle(bundle, ["ncnn"], tmp_path / "out", env=env)
    assert not result["made"]
    assert "does not give" in result["refused"]["float32.param"] or "expected" in result["refused"]["float32.param"]
    broken = environment(tmp_path / "broken", "import sys\nprint('no operator Foo')\nsys.exit(3)")
    reason = convert_bundle(bundle, ["ncnn"], tmp_path / "out", env=broken)["refused"]["float32.param"]
    assert reason == "pnnx ended with 3: no operator Foo"
    silent = environment(tmp_path / "silent", "pass")
    reason = convert_bundle(bundle, ["ncnn"], tmp_path / "out", env=silent)["refused"]["float32.param"]
    assert reason.startswith("pnnx wrote no model for ncnn")


def test_programs_that_cannot_be_found_or_started(tmp_path: Path) -> None:
    with pytest.raises(MissingHere, match="nothing-of-the-kind is not in this environment"):
        find_program("nothing-of-the-kind", env=None, package="nothing")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "x").write_text("no program")
    with pytest.raises(MissingHere, match="x cannot be started"):
        run_program([find_program("x", env=tmp_path, package="x")], folder=tmp_path)
    with pytest.raises(AnswerIsNo, match="ended with 1: it said nothing"):
        run_program([sys.executable, "-c", "raise SystemExit(1)"], folder=tmp_path)


def test_which_platform_a_target_is() -> None:
    assert {name: platform_of(load_target(name)) for name in ("cpu", "android", "raspberry_pi", "web")} == {
        "cpu": "amd64",
        "android": "arm",
        "raspberry_pi": "arm",
        "web": "arm",
    }


def test_converted_files_are_benchmarked_beside_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    suite = tmp_path / "s.toml"
    suite.write_text(
        "min_calls = 8\nmin_blocks = 2\nlaunches = 1\nmax_seconds = 1\nblock_ms = 1\ncold_starts = 0\nmemory = false\n"
    )
    ok("convert", bundle.path, tmp_path / "out", "--to", "ort,openvino")
    files = [tmp_path / "out" / "float32.ort", tmp_path / "out" / "float32.xml"]
    ok("benchmark", bundle.path, *files, "--same-as", bundle.path, "--suite", suite, "--out", tmp_path / "r.json")
    results: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    assert [item["golden"] for item in results["candidates"]] == ["ok"] * 3
    sizes = {row["candidate"]: row["size_bytes"] for row in results["rows"]}
    assert sizes["float32.xml"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("float32.[xb]*"))


def test_a_tokenizer_goes_in_front_of_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_extensions", reason="the tokenizer in the graph needs the extra extensions")
    place = make_text_bundle(tmp_path / "texts", more=False)
    result = ok_json("convert", place, tmp_path / "out", "--to", "extensions")
    assert list(result["made"]) == ["float32.text.onnx", "int8_dynamic.text.onnx"]
    with edgekd.load(place) as student:
        for variant in ("float32", "int8_dynamic"):
            session = open_session(tmp_path / "out" / f"{variant}.text.onnx")
            [spec] = session.inputs
            assert (spec.name, spec.dtype, spec.shape) == ("text", "str", (1,))
            for text in ("book a table for two", "", "Ätsch!", "a, b; c", "a " * 500):
                answer = student.predict(text)
                found = session.run({"text": np.array([text], object)})["logits"][0]
                np.testing.assert_allclose(found, answer.outputs["logits"], atol=1e-5 if variant == "float32" else 0.1)
                assert answer.truncated == (len(text) > 100)
    for more, text in ((True, "tokens beyond the vocabulary .Äpfel, Äp, <x>., which the operator does not do"),):
        other = make_text_bundle(tmp_path / "other", more=more)
        told = refused(1, "convert", other, tmp_path / "more", "--to", "extensions", "--variant", "float32")
        assert re.search(text + "; leave it outside of the graph", told), told


def test_a_model_of_something_else_gets_no_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    told = refused(1, "convert", bundle.path, tmp_path / "out", "--to", "extensions")
    assert "this model reads no texts, expected one with a tokenizer to put in front" in told


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t["model"].update(type="Unigram"), "model is Unigram, expected WordPiece"),
        (lambda t: t.update(normalizer=None), "normalizer is None, expected BertNormalizer"),
        (lambda t: t["normalizer"].update(clean_text=False), "controls kept, or another template"),
        (lambda t: t.update(post_processor=None), "controls kept, or another template"),
        (lambda t: t["model"]["vocab"].update(zzz=99_999), "ids of the vocabulary have gaps"),
    ],
)
def test_tokenizers_that_the_operator_cannot_be_are_refused(tmp_path: Path, change: Any, text: str) -> None:
    table = json.loads(character_tokenizer(tmp_path / "t.json", known=range(32, 127), more=False).read_text("utf-8"))
    assert attributes(table)["vocab_file"].startswith("[PAD]\n[UNK]\n")
    change(table)
    with pytest.raises(AnswerIsNo, match=text):
        attributes(table)
