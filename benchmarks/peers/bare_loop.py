"""Does edgekd's benchmark time the model, or itself? Its p50 over that of a bare `session.run` loop.

    python benchmarks/peers/bare_loop.py [MODEL.onnx ...] [--repeats 7] [--out bare_loop.json]

Two processes: edgekd's own child, and a plain onnxruntime loop that never imports edgekd. Same model, same feeds,
one thread each, the same core, in alternating blocks (A B B A ...). Each repeat starts both afresh, because where
a process lies in memory alone shifts a call of 10 microseconds by some percent. Claim: within 2 %.
Without a model: a perceptron (a call of about 10 microseconds) and a small CNN, both with random weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLAIM = 0.02


def bare_loop(model: str, feeds_path: str, core: str) -> None:
    """The peer: answers each line "SECONDS" with the latencies in ns of a plain loop. Nothing of edgekd is imported."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    with np.load(feeds_path) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    session.run(outputs, feeds)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    print("ready", flush=True)
    for line in sys.stdin:
        deadline = time.perf_counter() + float(line)
        latencies = []
        while time.perf_counter() < deadline:
            start = time.perf_counter_ns()
            session.run(outputs, feeds)
            latencies.append(time.perf_counter_ns() - start)
        print(json.dumps(latencies), flush=True)


def compare(model: Path, *, blocks: int, block_ms: float, seed: int, folder: Path) -> dict[str, Any]:
    """One repeat: both processes afresh, `blocks` blocks of each, the ratio of the medians."""
    import numpy as np

    from edgekd.device.candidates import Candidate, Plan
    from edgekd.device.isolation import Child
    from edgekd.device.machine import allowed_cores
    from edgekd.device.statistics import percentile

    core = allowed_cores()[-1]
    feeds_path = folder / "feeds.npz"
    np.savez(feeds_path, **make_feeds(model, seed))
    golden_path = folder / "golden.npz"
    with np.load(feeds_path) as arrays:
        np.savez(golden_path, **{f"input.{name}": arrays[name] for name in arrays.files})
    command = [sys.executable, __file__, "--bare", str(model), str(feeds_path), str(core)]
    samples: dict[str, list[int]] = {"edgekd": [], "bare": []}
    block: dict[str, list[int]] = {"edgekd": [], "bare": []}
    with (
        Child(stderr=folder / "stderr.txt") as child,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare,
    ):
        assert bare.stdin is not None
        assert bare.stdout is not None
        bare.stdout.readline()
        plan = Plan(Candidate("edgekd", str(model)))
        child.ask(plan.load_command(samples=None, golden=golden_path, seed=seed, memory=False))
        child.ask({"do": "steady", "max_seconds": 1.0, "cores": [core]})
        ask_bare(bare, 0.2)
        for number in range(blocks):
            for name in ("edgekd", "bare") if number % 2 == 0 else ("bare", "edgekd"):
                if name == "edgekd":
                    child.ask({"do": "block", "seconds": block_ms / 1e3, "block": number})
                else:
                    latencies = ask_bare(bare, block_ms / 1e3)
                    samples["bare"] += latencies
                    block["bare"] += [number] * len(latencies)
        child.ask({"do": "samples", "out": str(folder / "samples.npy")})
        samples["edgekd"], block["edgekd"] = (part.tolist() for part in np.load(folder / "samples.npy"))
        bare.stdin.close()
    p50_us = {name: percentile(values, 0.5) / 1e3 for name, values in samples.items()}
    return {
        "ratio": p50_us["edgekd"] / p50_us["bare"],
        "p50_us": p50_us,
        "samples": {name: {"latency_ns": samples[name], "block": block[name]} for name in samples},
    }


def ask_bare(process: subprocess.Popen[str], seconds: float) -> list[int]:
    """One block of the bare loop."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    latencies: list[int] = json.loads(process.stdout.readline())
    return latencies


def make_feeds(model: Path, seed: int) -> dict[str, Any]:
    """Random inputs of batch 1."""
    from edgekd.device.runtimes import open_session
    from edgekd.device.worker import make_feeds as feeds_of

    session = open_session(model, threads=1)
    try:
        return feeds_of(session.inputs, {"batch": 1, "samples": None, "golden": None, "seed": seed}, ())[0]
    finally:
        session.close()


def built_in_models(folder: Path) -> list[Path]:
    """A perceptron 64-32-10 and a CNN on 28x28, random weights."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((random.standard_normal(shape) * 0.1).astype(np.float32), name)

    def save(name: str, nodes: list[Any], weights: list[Any], shape: list[object]) -> Path:
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.checker.check_model(model)
        path = folder / f"{name}.onnx"
        onnx.save(model, str(path))
        return path

    perceptron = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"]),
    ]
    cnn = [
        helper.make_node("Conv", ["x", "k1"], ["h1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Conv", ["a1", "k2"], ["h2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("GlobalAveragePool", ["a2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"]),
    ]
    return [
        save(
            "perceptron",
            perceptron,
            [weight("w1", 64, 32), weight("b1", 32), weight("w2", 32, 10), weight("b2", 10)],
            ["N", 64],
        ),
        save(
            "cnn",
            cnn,
            [weight("k1", 32, 1, 3, 3), weight("k2", 64, 32, 3, 3), weight("w", 64, 10), weight("b", 10)],
            ["N", 1, 28, 28],
        ),
    ]


def main() -> int:
    """Compare, print the ratios, write JSON with every sample. Exit 1 when a median ratio is beyond the claim."""
    if sys.argv[1:2] == ["--bare"]:
        bare_loop(*sys.argv[2:])
        return 0
    from edgekd.device.machine import describe, versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--block-ms", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="JSON with all samples; .json.gz is compressed")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": describe(), "versions": versions(), "claim": CLAIM, "models": {}}
    with tempfile.TemporaryDirectory(prefix="edgekd-bare-loop-") as name:
        folder = Path(name)
        for model in arguments.models or built_in_models(folder):
            repeats = [
                compare(model, blocks=arguments.blocks, block_ms=arguments.block_ms, seed=seed, folder=folder)
                for seed in range(arguments.repeats)
            ]
            ratios = [repeat["ratio"] for repeat in repeats]
            bare_us = statistics.median(repeat["p50_us"]["bare"] for repeat in repeats)
            summary = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            results["models"][model.name] = {"bare_p50_us": bare_us, "ratio": summary, "repeats": repeats}
            print(
                f"{model.name}: bare {bare_us:.1f} us, edgekd / bare = {summary['median']:.4f} "
                f"({summary['lowest']:.4f} to {summary['highest']:.4f} in {len(ratios)} repeats)"
            )
    if arguments.out is not None:
        text = json.dumps(results).encode()
        arguments.out.write_bytes(gzip.compress(text, mtime=0) if arguments.out.suffix == ".gz" else text)
    held = all(abs(model["ratio"]["median"] - 1) <= CLAIM for model in results["models"].values())
    print("within 2 %" if held else "NOT within 2 %")
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
