"""Do other instruments read what edgekd reads? The same model, runtime and settings, in turns.

    python benchmarks/outside.py --out outside.json                                 # a CNN of 1.9 million parameters
    python benchmarks/outside.py --model student.onnx --tflite student.tflite --out outside.json

    openvino   benchmark_app, synchronous calls, float32, one stream, one thread: its median
    loadgen    MLPerf LoadGen, single-stream, on onnxruntime: its p50
    litert     litert-benchmark, where a .tflite is given: its median, which it rounds to 10 microseconds

Each round runs edgekd and then the other; told is other / edgekd, the median of the rounds with the rounds. To reach:
within 5 %. Unfair to the others: benchmark_app feeds random pixels and allocates nothing per call, LoadGen reaches the
model through two Python calls more.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.device.machine import describe, versions
from edgekd.files import write_json

PEERS = Path(__file__).resolve().parent / "peers"
SUITE = "min_calls = 500\nmin_blocks = 24\nmax_seconds = {seconds}\nblock_ms = 50\ncold_starts = 0\nmemory = false\n"


def run(command: list[str]) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} failed: {(done.stdout + done.stderr)[-800:]}")
    return done.stdout


def by_edgekd(model: Path, runtime: str, folder: Path, *more: str) -> dict[str, Any]:
    """The row of a model."""
    command = [sys.executable, "-m", "edgekd", "benchmark", str(model), "--runtime", runtime, "--json", *more]
    results: dict[str, Any] = json.loads(run([*command, "--suite", str(folder / "outside.toml")]))
    return results["rows"][0] | {"verdict": results["verdict"]["value"]}


def by_benchmark_app(model: Path, shape: str, seconds: float) -> float:
    """Median in ms."""
    options = ["-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1", "-infer_precision", "f32"]
    program = str(Path(sys.executable).with_name("benchmark_app"))
    said = run([program, "-m", str(model), "-d", "CPU", *options, "-t", f"{seconds:g}", "-shape", shape])
    found = re.search(r"Median:\s+([0-9.]+) (ms|us)", said)
    if found is None:
        sys.exit(f"benchmark_app told no median: {said[-500:]}")
    return float(found.group(1)) / (1000.0 if found.group(2) == "us" else 1.0)


def by_litert(model: Path, folder: Path) -> float:
    """Median in ms."""
    program = str(Path(sys.executable).with_name("litert-benchmark"))
    out = folder / "litert.json"
    run([program, "--model", str(model), "--num_threads", "1", "--num_runs", "1000", "--result_json", str(out)])
    return float(json.loads(out.read_text())["latency"]["median_ms"])


def make_model(folder: Path) -> tuple[Path, str]:
    """The teacher of fashion_quality.py with random weights."""
    sys.path.insert(0, str(PEERS))
    import models
    import numpy as np
    import torch

    from edgekd.distill.to_onnx import export
    from edgekd.spec import TensorSpec

    torch.manual_seed(0)
    path = folder / "fashion_teacher.onnx"
    samples = np.random.default_rng(0).standard_normal((64, 1, 28, 28)).astype(np.float32)
    spec = TensorSpec("input", "float32", ("N", 1, 28, 28))
    export(models.fashion_teacher().eval(), path, inputs=[spec], samples={"input": samples})
    return path, "[1,1,28,28]"


def main() -> None:
    """The rounds, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--shape", default="[1,1,28,28]", help="the model's input, for benchmark_app")
    parser.add_argument("--tflite", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "outside.toml").write_text(SUITE.format(seconds=args.seconds))
        model, shape = (args.model, args.shape) if args.model is not None else make_model(folder)
        pairs: dict[str, Callable[[], tuple[float, float, str]]] = {}

        def openvino() -> tuple[float, float, str]:
            row = by_edgekd(model, "openvino", folder)
            return row["latency_ms"]["p50"]["value"], by_benchmark_app(model, shape, args.seconds), row["verdict"]

        def loadgen() -> tuple[float, float, str]:
            row = by_edgekd(model, "onnxruntime", folder, "--loadgen", str(folder / "logs"))
            return row["latency_ms"]["p50"]["value"], row["loadgen"][0]["percentiles_ns"]["50"] / 1e6, row["verdict"]

        def litert() -> tuple[float, float, str]:
            row = by_edgekd(args.tflite, "litert", folder)
            return row["latency_ms"]["p50"]["value"], by_litert(args.tflite, folder), row["verdict"]

        pairs = {"openvino": openvino, "loadgen": loadgen}
        if args.tflite is not None:
            pairs["litert"] = litert
        rounds: dict[str, list[dict[str, Any]]] = {key: [] for key in pairs}
        for _ in range(args.rounds):
            for key, measure in pairs.items():
                ours, theirs, verdict = measure()
                rounds[key].append({"edgekd_ms": ours, "other_ms": theirs, "ratio": theirs / ours, "verdict": verdict})
                print(f"{key:<10} {theirs / ours:.3f}  ({ours:.4f} ms by edgekd, {verdict})", flush=True)
    summary = {key: statistics.median(item["ratio"] for item in found) for key, found in rounds.items()}
    print(json.dumps(summary))
    if args.out is not None:
        facts = {"model": model.name, "machine": describe(), "versions": versions()}
        write_json(args.out, {**facts, "ratios": summary, "rounds": rounds})


if __name__ == "__main__":
    main()
