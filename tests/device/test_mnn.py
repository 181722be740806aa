"""MNN's own files: converted here by its converter, run by the adapter, refused where they are none."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from device_models import weights, write_bundle

from edgekd.device.bundle import Bundle
from edgekd.device.runtimes import open_session, readers, why_missing
from edgekd.device.selftest import check_variant
from edgekd.errors import MissingExtra, ModelError, UsageError

pytestmark = pytest.mark.skipif(find_spec("MNN") is None, reason="MNN is not installed: pip install 'edgekd[mnn]'")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "a.edgekd")


@pytest.fixture(scope="module")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgekd.stages.converting import convert_bundle

    folder = tmp_path_factory.mktemp("mnn")
    assert convert_bundle(bundle, ["mnn"], folder)["refused"] == {}
    return folder / "float32.mnn"


def test_it_gives_the_golden_outputs_and_has_no_more_to_say_when_closed(bundle: Bundle, model: Path) -> None:
    session = open_session(model, runtime="mnn", threads=2)
    assert [spec.name for spec in (*session.inputs, *session.outputs)] == ["x", "logits"]
    assert check_variant(bundle, "float32", session)["ok"]
    session.close()
    session.close()
    with pytest.raises(UsageError, match="this session is closed"):
        session.run({"x": np.zeros((1, 1, 4, 4), np.float32)})


def test_prepared_calls_and_runs_do_not_disturb_each_other(model: Path) -> None:
    session = open_session(model, runtime="mnn")
    first, second = np.random.default_rng(0).standard_normal((2, 1, 1, 4, 4)).astype(np.float32)
    call = session.prepare({"x": first})  # type: ignore[attr-defined]
    kept = session.run({"x": second})["logits"]
    for _ in range(2):
        np.testing.assert_allclose(call()["logits"], first.reshape(1, 16) @ weights(16, 3), atol=1e-5)
    np.testing.assert_allclose(kept, second.reshape(1, 16) @ weights(16, 3), atol=1e-5)
    with pytest.raises(UsageError, match="input 'x' is float64"):
        session.run({"x": np.zeros((1, 1, 4, 4))})


def test_what_the_library_prints_stays_out_of_the_results(model: Path) -> None:
    code = (
        "import json, sys; from edgekd.device.runtimes import open_session\n"
        "print(json.dumps([spec.name for spec in open_session(sys.argv[1], runtime='mnn').inputs]))"
    )
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["x"]


@pytest.mark.parametrize("content", [b"", b"junk" * 8, b"\x08\x00\x00\x00" + bytes(40), None])
def test_files_that_are_none_are_refused(tmp_path: Path, model: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mnn"
    path.write_bytes(model.read_bytes()[:200] if content is None else content)
    with pytest.raises(ModelError, match=r"expected a \.mnn file that its converter wrote"):
        open_session(path, runtime="mnn")


def test_what_it_does_not_take(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"runtime 'mnn' opens a \.mnn file, found the bytes of a model"):
        open_session(b"MNN", runtime="mnn")
    with pytest.raises(UsageError, match="runtime 'mnn' has no options, found spin"):
        open_session(model, runtime="mnn", options={"spin": 1})
    assert readers(".mnn") == ("mnn",)
    assert why_missing("mnn") is None
    monkeypatch.setitem(sys.modules, "MNN", None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgekd\[mnn\]'"):
        open_session(model, runtime="mnn")
