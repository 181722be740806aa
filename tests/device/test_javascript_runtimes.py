"""onnxruntime in Node and in a browser: right answers first, timed where they run, and gone with who asked."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from commands import refused
from device_models import linear_model, make_manifest, weights, write_bundle
from javascript import node, node_modules

from edgekd.device import usage
from edgekd.device.benchmark import benchmark
from edgekd.device.bundle import Bundle
from edgekd.device.candidates import Candidate, Plan
from edgekd.device.isolation import Child
from edgekd.device.loadgen import LoadGen
from edgekd.device.runtimes import open_session, readers, why_missing
from edgekd.device.worker import Elsewhere
from edgekd.device.zipapp import write_runner
from edgekd.errors import MissingHere, ModelError, UsageError

NAMES = ("onnxruntime-node", "onnxruntime-web", "onnxruntime-web-chromium")
SUITE = "min_calls = 8\nmin_blocks = 4\nlaunches = 2\nmax_seconds = 1\nblock_ms = 5\ncold_starts = 0\nmemory = true\n"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A runtime that is here."""
    chosen: str = request.param
    (chromium if chosen.endswith("chromium") else node)()
    node_modules("onnxruntime-node" if chosen == "onnxruntime-node" else "onnxruntime-web")
    return chosen


def test_answers_are_those_of_the_native_runtime_and_calls_are_timed_where_they_run(name: str, tmp_path: Path) -> None:
    model = tmp_path / "a.onnx"
    model.write_bytes(linear_model(weights()))
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    native, session = open_session(model), open_session(model, runtime=name)
    assert isinstance(session, Elsewhere)
    try:
        assert (session.inputs, session.outputs) == (native.inputs, native.outputs)
        np.testing.assert_allclose(session.run({"x": x})["logits"], native.run({"x": x})["logits"], atol=1e-5)
        assert session.load_ms > 0
        session.lay([{"x": x}, {"x": x[:2]}])
        timing = session.time_calls(min_runs=7, min_seconds=0.0)
        assert len(timing.latency_ns) == 7
        assert len(session.time_calls(min_runs=1, min_seconds=0.02).latency_ns) > 1
        assert timing.seconds == pytest.approx(sum(timing.latency_ns) / 1e9)
        with pytest.raises(UsageError, match=r"input 'x' has the shape \(5, 15\), expected \(N, 16\)"):
            session.run({"x": x[:, :15]})
        with pytest.raises(UsageError, match="input 'x' is float64"):
            session.lay([{"x": x.astype(np.float64)}])
        if sys.platform == "linux":
            processes = [str(number) for number in session.processes()]
            before = usage.usage(processes)
            session.time_calls(min_runs=1, min_seconds=0.05)
            after = usage.usage(processes)
            assert after.cpu_s > before.cpu_s
            assert after.waited_s >= before.waited_s
            assert after.interrupted is None
    finally:
        session.close()
        native.close()
    session.close()
    with pytest.raises(UsageError, match="this session is closed; open another one"):
        session.run({"x": x})


def test_what_is_no_model_is_refused_in_words(name: str, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"onnxruntime-(node|web) cannot load .*no\.onnx: "):
        open_session(tmp_path / "no.onnx", runtime=name)
    with pytest.raises(UsageError, match="the runtimes in JavaScript have no options, found speed"):
        open_session(tmp_path / "no.onnx", runtime=name, options={"speed": 11})


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_missing("onnxruntime-node") == "Node is not installed (the package nodejs)"
    assert why_missing("onnxruntime-web-chromium") == "Chromium is not installed"
    for program in ("node", "chromium"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEKD_NODE_MODULES", raising=False)
    for name in NAMES:
        package = name.removesuffix("-chromium")
        assert f"there is no node_modules/{package} here or above (npm install {package}" in str(why_missing(name))
        with pytest.raises(MissingHere, match="or leave this runtime out"):
            open_session(linear_model(weights()), runtime=name)
    above = tmp_path / "node_modules" / "onnxruntime-node"
    above.mkdir(parents=True)
    (above / "package.json").write_text("{}")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert why_missing("onnxruntime-node") is None
    assert set(NAMES) < set(readers(".onnx"))


def test_golden_outputs_come_before_the_clock(name: str, tmp_path: Path) -> None:
    """Through the command line: right answers get latencies, memory where it can be told, and wrong ones neither."""
    good = write_bundle(tmp_path / "good.edgekd")
    golden: dict[str, Any] = good.golden()
    golden["output.float32.logits"] = golden["output.float32.logits"] + 1.0
    Bundle.write(tmp_path / "bad.edgekd", make_manifest(), {"float32": {"main": good.graph()}}, golden)
    (tmp_path / "s.toml").write_text(SUITE)
    out = tmp_path / "out.json"
    bad, suite = tmp_path / "bad.edgekd", tmp_path / "s.toml"
    said = refused(1, "benchmark", good.path, bad, "--runtime", name, "--suite", suite, "--out", out)
    assert "bad.edgekd:float32: does not give its golden outputs here" in said
    found = json.loads(out.read_text())
    assert [candidate["golden"] for candidate in found["candidates"]] == ["ok", "WRONG"]
    assert [row["n"] >= 8 for row in found["rows"]] == [True, False]
    assert found["candidates"][0]["runtime"] == name
    assert found["rows"][0]["latency_ms"]["p50"] is None or found["rows"][0]["latency_ms"]["p50"]["value"] > 0
    assert found["samples"][found["rows"][0]["candidate"]]["launch"] in ([2, 2], [4, 4])
    if sys.platform == "linux" and not name.endswith("chromium"):
        memory = found["rows"][0]["memory_mb"]
        assert set(memory) == {"load", "first", "steady"}
        assert memory["load"] > 30


def test_the_runner_for_other_devices_brings_the_program_along(tmp_path: Path) -> None:
    runner = write_runner(tmp_path / "bench.pyz")
    code = f"import sys; sys.path.insert(0, {str(runner)!r}); from edgekd.device.runtimes import javascript as j"
    code += "; print(j.__file__.startswith(sys.path[0]), 'COMMANDS' in j.source())"
    told = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "True"]


def test_loadgen_calls_from_python_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="LoadGen calls from Python, but onnxruntime-web runs in a process of its own"):
        benchmark([Candidate("a", "a.onnx", runtime="onnxruntime-web")], suite="quick", loadgen=LoadGen(tmp_path))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux lets one wait for another's child")
def test_the_process_is_gone_with_who_asked_even_in_the_middle_of_a_call(tmp_path: Path) -> None:
    node()
    node_modules("onnxruntime-node")
    model = tmp_path / "a.onnx"
    model.write_bytes(linear_model(weights()))
    with Child(stderr=tmp_path / "stderr") as child:
        plan = Plan(Candidate("a", model, runtime="onnxruntime-node"))
        child.ask(plan.load_command(samples=None, golden=None, seed=0, memory=False))
        engine = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0])
        watched = os.pidfd_open(engine)
        # An hour of calls: only its lifeline can end it.
        assert child._process.stdin is not None
        child._process.stdin.write(b'{"do": "block", "seconds": 3600, "block": 0}\n')
        child._process.stdin.flush()
        os.kill(child.pid, signal.SIGKILL)
        assert select.select([watched], [], [], 30)[0]
    os.close(watched)
