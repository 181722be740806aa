"""A model against itself, again and again: how often does the benchmark see a difference, or read INVALID?

    python benchmarks/against_itself.py MODEL --runs 20 --out against_itself.json          # a quiet machine
    python benchmarks/against_itself.py MODEL --runs 20 --busy --out against_itself.json   # one core kept busy
    python benchmarks/against_itself.py                            # a CNN of some milliseconds, random weights

Runs are added to those of the same model, suite and load that the file holds, so they may be done in pieces.
To reach, quiet: at most 5 % INVALID, at most 5 % "different"; with one busy core: at least 95 % within 3 % or INVALID,
at most 30 % INVALID. "Different" is an interval of the speed-up that leaves 1 out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.device.benchmark import benchmark
from edgekd.device.candidates import Candidate
from edgekd.device.machine import describe, versions
from edgekd.device.suites import load_suite
from edgekd.files import write_json


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """For the block, another program that never rests."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def once(model: Path, suite: str, seed: int) -> dict[str, Any]:
    """One comparison of the model with itself."""
    twins = [Candidate("a", str(model)), Candidate("b", str(model))]
    results = benchmark(twins, suite=load_suite(suite), against="a", seed=seed)
    by_name = {row["candidate"]: row for row in results["rows"]}
    return {
        "seed": seed,
        "speedup": by_name["b"]["speedup"],
        "p50_ms": [by_name[name]["latency_ms"]["p50"] for name in ("a", "b")],
        "verdict": results["verdict"]["value"],
        "reasons": results["verdict"]["reasons"],
        "conditions": results["conditions"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many runs were INVALID, how many saw a difference, how many may be believed."""
    told = [row["speedup"] for row in rows if row["speedup"] is not None]
    valid = [row["speedup"] for row in rows if row["verdict"] == "VALID" and row["speedup"] is not None]
    return {
        "runs": len(rows),
        "invalid": sum(row["verdict"] != "VALID" for row in rows),
        "different": sum(not item["low"] <= 1 <= item["high"] for item in told),
        "within_3_percent_or_invalid": len(rows) - sum(abs(item["value"] - 1) > 0.03 for item in valid),
    }


def cnn(path: Path) -> Path:
    """ResNet-18's first stages on 96x96, random weights: some milliseconds a call on one thread."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights = [], []

    def convolve(source: str, into: int, out: int, stride: int, name: str) -> str:
        weights.append(
            numpy_helper.from_array((random.standard_normal((out, into, 3, 3)) * 0.05).astype(np.float32), f"{name}.w")
        )
        nodes.append(helper.make_node("Conv", [source, f"{name}.w"], [name], pads=[1] * 4, strides=[stride] * 2))
        return name

    x, width = convolve("x", 3, 64, 2, "stem"), 64
    for number, out in enumerate((64, 64, 128, 128)):
        stride = 1 if out == width else 2
        nodes.append(helper.make_node("Relu", [convolve(x, width, out, stride, f"{number}.a")], [f"{number}.r"]))
        second = convolve(f"{number}.r", out, out, 1, f"{number}.b")
        side = x if stride == 1 else convolve(x, width, out, stride, f"{number}.side")
        nodes.append(helper.make_node("Add", [second, side], [f"{number}.sum"]))
        nodes.append(helper.make_node("Relu", [f"{number}.sum"], [f"{number}.out"]))
        x, width = f"{number}.out", out
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 96, 96])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["N", width, 1, 1])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


def main() -> None:
    """The runs, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="an .onnx file; default: a CNN of some milliseconds")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    held = json.loads(args.out.read_text()) if args.out is not None and args.out.exists() else {"series": []}
    name = "cnn" if args.model is None else "/".join(args.model.parts[-3:])
    facts = {"model": name, "suite": args.suite, "busy": args.busy}
    series = next((item for item in held["series"] if facts.items() <= item.items()), None)
    if series is None:
        series = {**facts, "rows": []}
        held["series"].append(series)
    with tempfile.TemporaryDirectory() as folder, busy(args.busy):
        model = args.model or cnn(Path(folder) / "cnn.onnx")
        for seed in range(len(series["rows"]), len(series["rows"]) + args.runs):
            series["rows"].append(once(model, args.suite, seed))
            series |= summary(series["rows"])
            print(json.dumps(series["rows"][-1]), flush=True)
            if args.out is not None:  # after each: what was measured stays when the rest is stopped
                write_json(args.out, {"machine": describe(), "versions": versions(), **held})
    print(json.dumps(summary(series["rows"])))


if __name__ == "__main__":
    main()
