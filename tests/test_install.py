"""The wheel, installed into an empty environment without torch: one top-level name, and the device side works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def call(*args: str | Path, code: int = 0, cwd: Path | None = None) -> str:
    """Run a command that must end with `code`; its stdout and stderr."""
    done = subprocess.run(list(map(str, args)), cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel, onnxruntime and Pillow, as a device engineer installs it."""
    folder = tmp_path_factory.mktemp("device")
    call(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    command = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        ROOT / "constraints-cpu.txt",
        f"edgekd[cpu,image] @ {wheel.as_uri()}",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        text = f"pip could not install the wheel's dependencies here: {done.stderr[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return python


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student as a bundle; made here, where torch is."""
    folder = tmp_path_factory.mktemp("bundle")
    edgekd = (sys.executable, "-m", "edgekd")
    call(*edgekd, "export", "cnn_s", folder / "net.onnx", "--inputs", "input:N,1,28,28")
    steps = (
        '[{"op":"decode"},{"op":"to_grey"},{"op":"resize","size":[28,28]},{"op":"scale"},{"op":"layout","to":"CHW"}]'
    )
    call(*edgekd, "bundle", folder / "net.onnx", folder / "net.edgekd", "--licence", "MIT", "--preprocess", steps)
    return folder / "net.edgekd"


def test_wheel_holds_one_top_level_name_and_the_shipped_files(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgekd"}
    for name in (
        "edgekd/py.typed",
        "edgekd/_export/recipes/digits.toml",
        "edgekd/_export/targets/cpu.toml",
        "edgekd/_export/schemas/bundle.schema.json",
        "edgekd/_export/apps/python/student.py",
        "edgekd/_export/apps/c/kernels.c",
        "edgekd/_export/templates/report.html.j2",
        "edgekd/_export/templates/project/recipe.toml",
        "edgekd/_benchmarks/suites/quick.toml",
    ):
        assert name in names
    assert not [name for name in names if name.endswith((".pyc", ".onnx"))]


def test_device_side_works_without_torch(device: Path, bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    edgekd = device.parent / "edgekd"
    assert "torch" not in json.loads(call(device, "-m", "pip", "list", "--format", "json")).__repr__()
    Image.new("L", (40, 30), 128).save(tmp_path / "grey.png")
    # From another folder: the checkout must not be what is imported.
    assert "grey.png: " in call(edgekd, "predict", bundle, "grey.png", cwd=tmp_path)
    assert json.loads(call(edgekd, "verify", bundle, "--json", cwd=tmp_path))["ok"]
    out = tmp_path / "here.json"
    assert "float32" in call(edgekd, "benchmark", bundle, "--out", out, cwd=tmp_path)
    call(edgekd, "report", out, "--md", tmp_path / "here.md", cwd=tmp_path)
    call(edgekd, "inspect", bundle, cwd=tmp_path)
    assert "digits" in call(edgekd, "recipes", cwd=tmp_path)
    code = f"import edgekd, numpy; print(edgekd.load({str(bundle)!r}).predict(numpy.zeros((28, 28), 'uint8')).label)"
    assert call(device, "-c", code, cwd=tmp_path).strip().isdigit()


def test_what_is_missing_is_told_with_its_pip_line(device: Path, bundle: Path, tmp_path: Path) -> None:
    edgekd = device.parent / "edgekd"
    text = call(edgekd, "distill-and-export", "--out", tmp_path / "run", code=4, cwd=tmp_path)
    assert "pip install 'edgekd[train,cpu]'" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
    text = call(edgekd, "inspect", bundle / "graphs" / "float32.onnx", code=4, cwd=tmp_path)
    assert "pip install 'edgekd[graph]'" in text
    doctor = call(edgekd, "doctor", cwd=tmp_path)
    assert "edgekd[train]" in doctor
    assert "works" in doctor
