"""Candidates as they are typed: what each is called, and which of them is the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.cli.tables import limit_line
from edgekd.device.requests import Axes, choose_axes, expand, find_reference, split_name, whole_numbers
from edgekd.device.suites import Suite
from edgekd.errors import UsageError


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/net.onnx", "b/net.onnx", "net.onnx.onnx", "other.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("models")
def test_files_of_one_name_are_told_apart() -> None:
    found = expand(["a/net.onnx", "b/net.onnx", "other.onnx"], Axes())
    assert [item.id for item in found] == ["a/net.onnx", "b/net.onnx", "other.onnx"]
    assert expand(["a/net.onnx"], Axes())[0].id == "net.onnx"


@pytest.mark.usefixtures("models")
def test_the_reference_is_the_file_and_not_a_namesake() -> None:
    names = ["net.onnx.onnx", "b/net.onnx", "a/net.onnx"]
    found = expand(names, Axes(batches=(1, 8)))
    assert find_reference(found, "a/net.onnx") == "a/net.onnx b1"
    alone = expand(["net.onnx.onnx", "b/net.onnx"], Axes())
    assert find_reference(alone, "b/net.onnx") == "net.onnx"


@pytest.mark.usefixtures("models")
def test_a_variant_stands_behind_a_colon() -> None:
    assert split_name("s.edgekd:int8_u8s8") == (Path("s.edgekd"), "int8_u8s8")
    assert split_name("other.onnx") == (Path("other.onnx"), "")


@pytest.mark.usefixtures("models")
def test_every_axis_multiplies_and_only_what_varies_is_in_the_name() -> None:
    axes = Axes(runtimes=("onnxruntime", "openvino"), threads=(1, 2), batches=(1, 8))
    found = expand(["other.onnx"], axes)
    assert [item.id for item in found] == [
        f"other.onnx {runtime} t{threads} b{batch}"
        for runtime in ("onnxruntime", "openvino")
        for threads in (1, 2)
        for batch in (1, 8)
    ]
    assert [(item.runtime, item.threads, item.batch) for item in found[:3]] == [
        ("onnxruntime", 1, 1),
        ("onnxruntime", 1, 8),
        ("onnxruntime", 2, 1),
    ]
    assert [item.id for item in expand(["other.onnx"], Axes(threads=(2,)))] == ["other.onnx"]


@pytest.mark.usefixtures("models")
def test_a_file_is_opened_by_a_runtime_that_reads_it() -> None:
    for name in ("a.tflite", "a.param", "a.json", "a.ort"):
        Path(name).write_bytes(b"")
    names = ["other.onnx", "a.ort", "a.tflite", "a.param", "a.json"]
    assert [item.runtime for item in expand(names, Axes())] == ["onnxruntime", "onnxruntime", "litert", "ncnn", "torch"]
    found = expand(names, Axes(runtimes=("onnxruntime-mobile", "openvino")))
    assert [(item.model, item.runtime) for item in found] == [
        ("other.onnx", "onnxruntime-mobile"),
        ("other.onnx", "openvino"),
        ("a.ort", "onnxruntime-mobile"),
        ("a.tflite", "litert"),
        ("a.param", "ncnn"),
        ("a.json", "torch"),
    ]
    with pytest.raises(UsageError, match=r"--runtime ncnn: none of the candidates is a file that it opens; for other"):
        expand(["other.onnx"], Axes(runtimes=("ncnn",)))


SUITE = Suite(
    "s", 64, 1.0, 5, 0, False, runtimes=("onnxruntime", "openvino", "ncnn"), threads=(1, 2, 4), batches=(1, 8)
)


def test_a_suite_names_the_axes_and_what_is_missing_is_left_out_and_told() -> None:
    options = {"runtime": None, "threads": None, "batch": None}
    axes, left_out = choose_axes(
        SUITE, ["a.onnx", "b.param"], **options, cores=2, missing={"openvino": "openvino is not installed"}.get
    )
    assert axes == Axes(("onnxruntime", "ncnn"), (1, 2), (1, 8))
    assert left_out == ["openvino: openvino is not installed", "4 threads: this process may use 2 cores"]
    axes, left_out = choose_axes(SUITE, ["student.edgekd:int8"], **options, cores=4, missing={}.get)
    assert axes.runtimes == ("onnxruntime", "openvino")
    assert left_out == ["ncnn: none of the candidates is a file that it opens"]


def test_what_is_typed_stands_before_the_suite_and_is_never_left_out() -> None:
    axes, left_out = choose_axes(
        SUITE, ["a.onnx"], runtime="openvino, litert", threads="4", batch="1,1,2", cores=1, missing=lambda name: "gone"
    )
    assert axes == Axes(("openvino", "litert"), (4,), (1, 2))
    assert left_out == []
    plain = Suite("s", 64, 1.0, 5, 0, False)
    assert choose_axes(plain, ["a.onnx"], runtime=None, threads=None, batch=None, cores=1, missing=str)[0] == Axes()


def test_axes_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--runtime openvin: there is no such runtime. Did you mean 'openvino'\?"):
        choose_axes(SUITE, ["a.onnx"], runtime="openvin", threads=None, batch=None, cores=1, missing=str)
    with pytest.raises(UsageError, match="--batch: found '0', expected whole numbers from 1 with commas between"):
        whole_numbers("1,0", option="--batch")


def test_a_latency_is_proven_by_calls_and_not_by_samples() -> None:
    item = {"name": "latency_p90_ms", "limit": 1.0, "value": 0.9, "interval": [0.8, 1.1], "verdict": "unproven"}
    assert limit_line({**item, "needed_n": 400}).endswith("a proof takes about 400 timed calls")
