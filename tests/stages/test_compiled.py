"""`[distill] compile`: the student through torch.compile."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from spaces import write_project

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import edgekd


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_learns_the_same_and_a_missing_compiler_is_told(tmp_path: Path) -> None:
    recipe, fresh = write_project(tmp_path, "classification"), {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    settings = [f"--set={item}" for item in ("distill.epochs=3", "teacher.train.epochs=2", "distill.baseline=false")]
    scores = {}
    for name, further in {"eager": (), "compiled": ("--set=distill.compile=true",)}.items():
        done = edgekd("distill", recipe, *settings, *further, "--out", tmp_path / name, "--json", env=fresh)
        assert done.returncode == 0, done.stderr
        scores[name] = json.loads(done.stdout)["stages"]["student"]["history"]
    assert [epoch["loss"] for epoch in scores["compiled"]] == pytest.approx(
        [epoch["loss"] for epoch in scores["eager"]], rel=1e-4
    )
    assert any((tmp_path / "cache").rglob("*.so")), "nothing was compiled"
    (tmp_path / "empty").mkdir()
    without = {"PATH": str(tmp_path / "empty"), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "another")}
    options = ("--set=distill.compile=true", "--set=distill.epochs=4", "--out", tmp_path / "none")
    done = edgekd("distill", recipe, *settings[1:], *options, env=without)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "torch.compile failed:" in done.stderr
    assert "go on with --set distill.compile=false" in done.stderr
