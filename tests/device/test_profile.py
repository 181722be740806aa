"""Profiles: the heavy operator is named first, shares add up, and runtimes that cannot tell say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from device_models import to_bytes, write_bundle
from make_models import FOLDER
from onnx import TensorProto, helper

from edgekd.device.benchmark import Candidate, benchmark
from edgekd.device.profile import can_tell, profile, summarize
from edgekd.device.runtimes import OperatorTime, open_session
from edgekd.device.suites import Suite
from edgekd.errors import UsageError

TINY = Suite("tiny", min_calls=8, max_seconds=2.0, block_ms=1.0, cold_starts=0, memory=False, min_blocks=4, launches=1)
SIZE = 512


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of 512 x 512 beside a few operators on its 512 results: without names but for one."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="the_product"),
        helper.make_node("Sin", ["h"], ["s"]),
        helper.make_node("Sin", ["s"], ["t"]),
        helper.make_node("Erf", ["t"], ["y"]),
    ]
    model = to_bytes(
        nodes,
        [("x", TensorProto.FLOAT, ["N", SIZE])],
        [("y", TensorProto.FLOAT, ["N", SIZE])],
        [("w", random.standard_normal((SIZE, SIZE)).astype(np.float32))],
    )
    path = tmp_path_factory.mktemp("profile") / "lopsided.onnx"
    path.write_bytes(model)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_heavy_operator_comes_first(lopsided: Path, tmp_path: Path, runtime: str) -> None:
    session = open_session(lopsided, runtime=runtime, options={"profile": str(tmp_path)})
    found = profile(session, {"x": np.ones((64, SIZE), np.float32)}, calls=10)
    first = found["operators"][0]
    assert first["name"] == "the_product"
    # 64 * 512 * 512 products against 64 * 512 sines.
    assert first["share"] > 0.4
    assert found["calls"] == 10
    assert sum(item["share"] for item in found["operators"]) == pytest.approx(1.0)
    assert sum(item["ms"] for item in found["operators"]) == pytest.approx(found["total_ms"])


def test_nodes_without_a_name_are_told_apart(lopsided: Path, tmp_path: Path) -> None:
    session = open_session(lopsided, options={"profile": str(tmp_path), "session_config": {}})
    names = [item["name"] for item in profile(session, {"x": np.ones((1, SIZE), np.float32)}, calls=5)["operators"]]
    assert len(names) == len(set(names)) == 4


def test_medians_shares_and_the_ten_costliest_by_hand() -> None:
    times = [OperatorTime("a", "Conv", ms) for ms in (9.0, 3.0, 1.0, 2.0)] + [OperatorTime("b", "Relu", 2.0)] * 3
    found = summarize(times, calls=3)
    assert found == {
        "calls": 3,
        "total_ms": 4.0,
        "operators": [
            {"name": "a", "kind": "Conv", "ms": 2.0, "share": 0.5},
            {"name": "b", "kind": "Relu", "ms": 2.0, "share": 0.5},
        ],
    }
    many = summarize([OperatorTime(str(number), "Relu", number) for number in range(30)], calls=1)
    assert [item["name"] for item in many["operators"]] == [str(number) for number in range(29, 19, -1)]
    assert many["total_ms"] == sum(range(30))
    assert summarize([], calls=1) == {"calls": 1, "total_ms": 0, "operators": []}


def test_runtimes_that_cannot_tell_say_so() -> None:
    session = open_session(FOLDER / "linear.tflite", runtime="litert")
    assert not can_tell(session)
    with pytest.raises(UsageError, match="does not tell what its operators take; onnxruntime and openvino do"):
        profile(session, {})


def test_a_benchmark_with_profile(lopsided: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.edgekd")
    told: list[str] = []
    found = benchmark(
        [
            Candidate("lopsided", lopsided, batch=8),
            Candidate("bundle", bundle.path),
            Candidate("litert", FOLDER / "linear.tflite", runtime="litert"),
        ],
        suite=TINY,
        profile=True,
        progress=lambda text, done, total: told.append(text),
    )
    assert "profiling" in told
    assert found["rows"][0]["profile"]["operators"][0]["name"] == "the_product"
    assert len(found["rows"][1]["profile"]["operators"]) >= 1
    assert "profile" not in found["rows"][2]
    assert "error" not in found["rows"][2]
    assert "profile" not in benchmark([Candidate("bundle", bundle.path)], suite=TINY)["rows"][0]
