"""`edgekd compare` as CI calls it: two real results, exit codes, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused

from edgekd.device.bundle import Bundle
from edgekd.results import read_results

sys.path.insert(0, str(Path(__file__).parent / "device"))
from device_models import make_manifest, make_parts, write_bundle

SUITE = (
    "min_calls = 64\nmin_blocks = 8\nlaunches = 4\nmax_seconds = 1.0\nblock_ms = 2\ncold_starts = 0\nmemory = false\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one bundle, measured twice, and once with a wrong graph beside the same golden outputs."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "tiny.toml").write_text(SUITE)
    bundle = write_bundle(folder / "a.edgekd")
    raw = bundle.golden()["raw"]
    answers = bundle.golden()["output.float32.logits"].argmax(axis=1)
    np.savez(folder / "data.npz", x=np.tile(raw, (20, 1, 1, 1)), y=np.tile(answers, 20))
    for out in ("one.json", "two.json"):
        ok(*command(folder, "a.edgekd", out))
    golden = make_parts()[2]
    other = Bundle.open(folder / "a.edgekd").graph().replace(b"flat", b"flaT")
    golden["output.float32.logits"] += 1.0
    Bundle.write(folder / "a.edgekd", make_manifest(), {"float32": {"main": other}}, golden)
    assert edgekd(*command(folder, "a.edgekd", "wrong.json")).returncode == 1
    return folder


def command(folder: Path, bundle: str, out: str) -> tuple[str | Path, ...]:
    data = ("--data", folder / "data.npz", "--suite", folder / "tiny.toml", "--out", folder / out)
    return ("benchmark", folder / bundle, *data)


def test_a_bundle_against_itself_is_no_regression(folder: Path) -> None:
    # The machine may be busy meanwhile; what is exact must be equal, and a wide tolerance forgives the rest.
    wide = "latency=900,latency_p90=900"
    text = ok("compare", folder / "one.json", folder / "two.json", "--tolerance", wide)
    for word in ("a.edgekd:float32", "latency", "accuracy", "size", "exact", "p is adjusted for"):
        assert word in text
    found = ok_json("compare", folder / "one.json", folder / "two.json", "--tolerance", wide)
    assert found["schema"] == "edgekd.comparison/1"
    assert found["regressions"] == []
    changes = {item["metric"]: item for item in found["changes"]}
    assert changes["accuracy"]["before"] == changes["accuracy"]["after"] == 100.0
    assert changes["accuracy"]["change"] == 0
    assert changes["size"]["change"] == 0


def test_wrong_outputs_end_with_one(folder: Path) -> None:
    done = edgekd("compare", folder / "one.json", folder / "wrong.json")
    assert done.returncode == 1
    assert "regression: a.edgekd:float32: it does not give its golden outputs" in done.stderr


def test_a_slower_result_ends_with_one(folder: Path) -> None:
    fast = read_results(folder / "one.json")
    for row in fast["rows"]:  # on a busy machine it may not have been told
        row["latency_ms"]["p50"] = row["latency_ms"]["p50"] or {"value": 1.0, "low": 1.0, "high": 1.0}
    (folder / "fast.json").write_text(json.dumps(fast))
    slow = read_results(folder / "fast.json")
    for name in slow["samples"]:
        slow["samples"][name]["latency_ns"] = [3 * ns for ns in slow["samples"][name]["latency_ns"]]
    for row in slow["rows"]:
        row["latency_ms"]["p50"]["value"] *= 3
    (folder / "slow.json").write_text(json.dumps(slow))
    done = edgekd("compare", folder / "fast.json", folder / "slow.json")
    assert done.returncode == 1
    assert "REGRESSION" in done.stdout
    assert "latency" in done.stderr
    assert "tolerance 5)" in done.stderr
    ok("compare", folder / "fast.json", folder / "slow.json", "--tolerance", "latency=300%,latency_p90=300%")


def test_strict_wants_valid_results(folder: Path) -> None:
    busy = read_results(folder / "one.json")
    busy["verdict"] = {"value": "INVALID", "reasons": ["drift: it ended slower"], "advice": []}
    (folder / "busy.json").write_text(json.dumps(busy))
    done = edgekd("compare", folder / "busy.json", folder / "busy.json")
    assert done.returncode == 0
    assert "before is INVALID: drift: it ended slower; its latencies say little" in " ".join(done.stderr.split())
    assert "before is INVALID" in refused(1, "compare", folder / "busy.json", folder / "busy.json", "--strict", "-q")


def test_mistakes_end_in_a_sentence(folder: Path) -> None:
    other = read_results(folder / "one.json")
    other["machine"]["cpu"] = "another"
    (folder / "other.json").write_text(json.dumps(other))
    text = refused(2, "compare", folder / "one.json", folder / "other.json")
    assert "the results are from different machines: cpu" in text
    ok("compare", folder / "one.json", folder / "other.json", "--across-machines")
    assert "nowhere.json is not there" in refused(3, "compare", folder / "nowhere.json", folder / "one.json")
    assert "there is no such metric" in refused(
        2, "compare", folder / "one.json", folder / "one.json", "--tolerance", "speed=1"
    )
