"""The script that tells what the apps cost: every case runs, and the glue is there in each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cpp_builds import tool
from test_embed import make_bundle

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "apps_cost.py"


@pytest.mark.slow
def test_every_app_is_measured(tmp_path):
    tool("g++")
    bundle = make_bundle(tmp_path / "made")
    command = [sys.executable, str(SCRIPT), str(bundle), "--processes", "10", "--calls", "3", "--out", "cost.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "cost.json").read_text())["cases"]
    assert list(cases) == [
        "Python: onnxruntime alone",
        "Python: student.py",
        "Python: edgekd.load",
        "C++: onnxruntime alone",
        "C++: edgekd.hpp",
        "C: student.c",
    ]
    for row in cases.values():
        assert len(row["samples"]["call_us"]) == 10
        assert row["peak_mb"]["value"] > 0.5
    # The runtime is most of what is installed; C has none.
    assert cases["C: student.c"]["installed_bytes"] < 1e6 < cases["C++: edgekd.hpp"]["installed_bytes"]


@pytest.mark.slow
def test_apps_of_texts_are_measured_too(tmp_path):
    tool("g++")
    pytest.importorskip("tokenizers", reason="models of texts need the extra text")
    from text_bundle import make_text_bundle

    bundle = make_text_bundle(tmp_path / "made")
    flags = ("--variant", "float32", "--processes", "10", "--calls", "3", "--out", "cost.json")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(bundle), *flags], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "cost.json").read_text())["cases"]
    assert [case for case in cases if "alone" not in case] == [
        "Python: student.py",
        "Python: edgekd.load",
        "C++: edgekd.hpp",
    ]
    installed = {case: row["installed_bytes"] for case, row in cases.items()}
    assert installed["Python: student.py"] > installed["Python: onnxruntime alone"] + 1e6, "tokenizers counts"
