"""The device side runs without torch, onnx and Pillow, and `import edgekd` is light. In fresh processes: the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BLOCK = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named '{name}' (blocked)", name=name)
        return None

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Block())
"""
HEAVY = "torch,torchvision,onnx,onnxscript,PIL,sklearn,transformers,accelerate,safetensors,matplotlib"
TOP = "pydantic,typer,click,rich,jinja2"


def run(code, *arguments, blocked=HEAVY):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK + code, blocked, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).parent / "device"))
    try:
        from device_models import write_bundle
    finally:
        sys.path.pop(0)
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b.edgekd").path


def test_the_block_blocks():
    assert "blocked" in run(
        """
for name in BLOCKED:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error)
    else:
        raise SystemExit(f"{name} came through")
"""
    )


def test_import_edgekd_is_light():
    found = json.loads(
        run(
            """
import json, edgekd
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))))
"""
        )
    )
    assert "edgekd" in found
    for heavy in ("onnxruntime", *TOP.split(","), *HEAVY.split(",")):
        assert heavy not in found


def test_every_module_of_the_device_imports_with_numpy_alone():
    """Adapters import their runtime when a model is opened, not before."""
    names = run(
        """
import importlib, pkgutil
import edgekd, edgekd.data, edgekd.device
for package in (edgekd.device, edgekd.data):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name.endswith("__main__"):
            continue
        importlib.import_module(found.name)
        print(found.name)
""",
        blocked=f"{HEAVY},{TOP},onnxruntime",
    ).split()
    for expected in ("bundle", "predictor", "preprocess", "selftest", "metrics", "benchmark", "runtimes.onnxruntime"):
        assert f"edgekd.device.{expected}" in names


def test_a_bundle_loads_predicts_and_proves_itself(bundle_path, tmp_path):
    raw = np.random.default_rng(3).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.save(tmp_path / "raw.npy", raw)
    found = json.loads(
        run(
            """
import json
import numpy as np
import edgekd
from edgekd.device.selftest import self_test

raw = np.load(sys.argv[3])
with edgekd.load(sys.argv[2]) as predictor:
    prediction = predictor.predict(raw, top_k=3)
    rows = self_test(predictor.bundle)
print(json.dumps({"top": prediction.top, "ok": [row["ok"] for row in rows], "modules": sorted(sys.modules)}))
""",
            bundle_path,
            tmp_path / "raw.npy",
            blocked=f"{HEAVY},{TOP}",
        )
    )
    import edgekd

    here = edgekd.load(bundle_path).predict(raw, top_k=3)
    assert [tuple(item) for item in found["top"]] == list(here.top)
    assert found["ok"] == [True]
    assert not {"torch", "onnx", "PIL", "pydantic"} & set(found["modules"])


def test_an_image_without_pillow_ends_in_the_pip_command(bundle_path):
    found = run(
        """
import edgekd
from edgekd.errors import MissingExtra
try:
    edgekd.load(sys.argv[2]).predict(b"an image")
except MissingExtra as error:
    print(error)
""",
        bundle_path,
    )
    assert "pip install 'edgekd[image]'" in found


def test_a_bundle_without_its_runtime_ends_in_the_pip_command(bundle_path):
    found = run(
        """
import edgekd
from edgekd.errors import MissingExtra
try:
    edgekd.load(sys.argv[2])
except MissingExtra as error:
    print(error)
""",
        bundle_path,
        blocked="onnxruntime",
    )
    assert "pip install 'edgekd[cpu]'" in found


def test_data_is_read_without_torch(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.arange(240, dtype=np.float32).reshape(60, 4), y=np.arange(60) % 3)
    found = run(
        """
from edgekd.data.registry import load_dataset
data = load_dataset(kind="arrays", root=sys.argv[2], licence="CC0")
print(len(data.train), len(data.val), len(data.test), data.num_outputs)
""",
        tmp_path / "data.npz",
        blocked=f"{HEAVY},{TOP},onnxruntime",
    )
    train, val, test, outputs = map(int, found.split())
    assert train + val + test == 60
    assert outputs == 3
