"""The script that tells what the web and Node apps cost: every case runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium
from javascript import node, node_modules
from test_embed import make_bundle

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_every_case_runs(tmp_path, monkeypatch, kind):
    node()
    chromium()
    npm = node_modules("onnxruntime-web").parent
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("javascript_cost", BENCHMARKS / "javascript_cost.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    if kind == "texts":
        pytest.importorskip("tokenizers", reason="models of texts need the extra text")
        from text_bundle import make_text_bundle

        bundle = make_text_bundle(tmp_path / "made")
    else:
        bundle = make_bundle(tmp_path / "made")
    place, web = script.prepare(bundle, "float32", npm, tmp_path, calls=100)
    for title in ("bare", "glue"):
        done = subprocess.run(["node", place / f"{title}.mjs"], capture_output=True, text=True, check=True)
        first, call, peak = map(int, done.stdout.split())
        assert min(first, call, peak) > 0
        start, call, peak = script.measure_page(web, title)
        assert min(start, call) > 0
        assert peak > script.measure_empty(web) > 10
    if kind == "images":
        assert min(script.measure_installed(web)) > 0


def test_too_few_processes_are_refused(tmp_path):
    command = [sys.executable, BENCHMARKS / "javascript_cost.py", tmp_path, "--npm", tmp_path, "--processes", "9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected at least 10, fewer give no interval" in done.stderr
