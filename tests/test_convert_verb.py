"""Other runtimes' files of a bundle: really converted, proven by golden vectors, refused with the reason."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import ok, ok_json, refused

from edgekd.device.bundle import Bundle
from edgekd.device.runtimes import open_session
from edgekd.errors import AnswerIsNo, MissingHere, UsageError
from edgekd.graph.formats import FORMATS, find_program, run_program
from edgekd.graph.targets import load_target
from edgekd.stages.bundling import bundle_model
from edgekd.stages.converting import convert_bundle, platform_of

sys.path.insert(0, str(Path(__file__).parent / "graph"))
from graphs import cnn

CONVERTED = [name for name in FORMATS if name != "ncnn"]


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
    pytest.importorskip(FORMATS[name].runtime)
    result = ok_json("convert", bundle.path, tmp_path / "out", "--to", name, "--target", target)
    file = f"float32{FORMATS[name].suffix}"
    assert list(result["made"]) == [file]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(result["made"][file]["files"])
    golden = bundle.golden()
    session = open_session(tmp_path / "out" / file, runtime=FORMATS[name].runtime)
    found = session.run({session.inputs[0].name: golden["input.x"]})
    [expected] = [golden[key] for key in golden if key.startswith("output.float32.")]
    np.testing.assert_allclose(next(iter(found.values())), expected, atol=1e-5)
    session.close()
    for part in result["made"][file]["files"]:
        assert str(tmp_path).encode() not in (tmp_path / "out" / part).read_bytes()


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


def test_pnnx_itself_where_it_is_installed(bundle: Bundle, tmp_path: Path) -> None:
    if shutil.which("pnnx", path=str(Path(sys.executable).parent)) is None:
        return  # an environment of its own: see the test before
    pytest.importorskip("ncnn")
    assert list(convert_bundle(bundle, ["ncnn"], tmp_path / "out")["made"]) == ["float32.param"]


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
        "min_calls = 8\nmin_blocks = 2\nmax_seconds = 1.0\nblock_ms = 1\ncold_starts = 0\nmemory = false\n"
    )
    ok("convert", bundle.path, tmp_path / "out", "--to", "ort,openvino")
    files = [tmp_path / "out" / "float32.ort", tmp_path / "out" / "float32.xml"]
    ok("benchmark", bundle.path, *files, "--same-as", bundle.path, "--suite", suite, "--out", tmp_path / "r.json")
    results: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    assert [item["golden"] for item in results["candidates"]] == ["ok"] * 3
    sizes = {row["candidate"]: row["size_bytes"] for row in results["rows"]}
    assert sizes["float32.xml"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("float32.[xb]*"))
