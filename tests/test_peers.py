"""The peers' scripts run and give their JSON; their figures are measured on a quiet machine, not here."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(PEERS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bare_loop_compares_block_by_block_and_keeps_every_sample(tmp_path: Path) -> None:
    out = tmp_path / "bare_loop.json.gz"
    done = _run("bare_loop.py", "--repeats", "2", "--blocks", "4", "--block-ms", "1", "--out", str(out))
    # 1 is "not within 2 %", which four short blocks may well say.
    assert done.returncode in (0, 1), done.stderr
    assert ("NOT within 2 %" in done.stdout) == (done.returncode == 1)
    result = json.loads(gzip.decompress(out.read_bytes()))
    assert set(result["models"]) == {"perceptron.onnx", "cnn.onnx"}
    for model in result["models"].values():
        assert len(model["repeats"]) == 2
        values = [repeat["ratio"] for repeat in model["repeats"]]
        assert model["ratio"]["lowest"] == min(values) <= model["ratio"]["median"] <= max(values)
        for repeat in model["repeats"]:
            medians = {}
            for name in ("edgekd", "bare"):
                raw = repeat["samples"][name]
                assert len(raw["latency_ns"]) == len(raw["block"])
                assert sorted(set(raw["block"])) == [0, 1, 2, 3]
                ordered = sorted(raw["latency_ns"])
                medians[name] = ordered[len(ordered) // 2]
            assert repeat["ratio"] == pytest.approx(medians["edgekd"] / medians["bare"])


def test_import_cost_measures_fresh_processes(tmp_path: Path) -> None:
    out = tmp_path / "import_cost.json"
    done = _run("import_cost.py", "--processes", "10", "--out", str(out))
    assert done.returncode == 0, done.stderr
    cases = json.loads(out.read_text())["cases"]
    assert {"import edgekd", "import onnxruntime", "edgekd, load and first prediction"} <= cases.keys()
    for case in cases.values():
        assert case["time_ms"]["n"] == len(case["samples"]["time_ms"]) == 10
        assert case["time_ms"]["low"] <= case["time_ms"]["value"] <= case["time_ms"]["high"]
    if sys.platform == "linux":
        peaks = {name: case["peak_mb"]["value"] for name, case in cases.items()}
        assert peaks["nothing"] < peaks["import numpy"] < peaks["import onnxruntime"]
        # The promise of the package: `import edgekd` brings numpy at most.
        assert peaks["import edgekd"] < peaks["import numpy"] + 2


def test_import_cost_refuses_too_few_processes() -> None:
    done = _run("import_cost.py", "--processes", "3")
    assert done.returncode == 2
    assert "--processes 3: expected at least 10, fewer give no interval" in done.stderr
