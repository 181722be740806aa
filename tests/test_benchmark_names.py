"""Candidates as they are typed: what each is called, and which of them is the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.cli.measure_verbs import expand, find_reference, split_name
from edgekd.cli.tables import limit_line


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/net.onnx", "b/net.onnx", "net.onnx.onnx", "other.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("models")
def test_files_of_one_name_are_told_apart() -> None:
    found = expand(["a/net.onnx", "b/net.onnx", "other.onnx"], runtimes=["onnxruntime"], batches=[1], threads=1)
    assert [item.id for item in found] == ["a/net.onnx", "b/net.onnx", "other.onnx"]
    assert expand(["a/net.onnx"], runtimes=["onnxruntime"], batches=[1], threads=1)[0].id == "net.onnx"


@pytest.mark.usefixtures("models")
def test_the_reference_is_the_file_and_not_a_namesake() -> None:
    names = ["net.onnx.onnx", "b/net.onnx", "a/net.onnx"]
    found = expand(names, runtimes=["onnxruntime"], batches=[1, 8], threads=1)
    assert find_reference(found, "a/net.onnx") == "a/net.onnx onnxruntime b1"
    alone = expand(["net.onnx.onnx", "b/net.onnx"], runtimes=["onnxruntime"], batches=[1], threads=1)
    assert find_reference(alone, "b/net.onnx") == "net.onnx"


@pytest.mark.usefixtures("models")
def test_a_variant_stands_behind_a_colon() -> None:
    assert split_name("s.edgekd:int8_u8s8") == (Path("s.edgekd"), "int8_u8s8")
    assert split_name("other.onnx") == (Path("other.onnx"), "")


def test_a_latency_is_proven_by_calls_and_not_by_samples() -> None:
    item = {"name": "latency_p90_ms", "limit": 1.0, "value": 0.9, "interval": [0.8, 1.1], "verdict": "unproven"}
    assert limit_line({**item, "needed_n": 400}).endswith("a proof takes about 400 timed calls")
