"""Static int8: ours beside other systems' on one student, its speed-up on two known nets, and the time that it takes.

    python benchmarks/quantizers.py peers --run runs/fashion --python rivals/bin/python --out quantizers.json.gz
    python benchmarks/quantizers.py speedups --out quantizers_speedups.json.gz
    python benchmarks/quantizers.py seconds --out quantizers_seconds.json

peers     the float student of a finished run, quantized by each system on the same calibration samples; accuracy on
          the test split, size, p50 and p90 of all of them interleaved in one run of `edgekd.device.benchmark`
speedups  ResNet-18 and MobileNetV2 (ReLU6) at 224x224, batch 1, random weights: float32 over our int8
seconds   export, verify and static int8 of a student of one million parameters, five times

`--python`: the interpreter that has the other systems (default: this one); one that is missing there is left out, and
its reason is in the result.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.benchmark import Candidate, Samples, benchmark
from edgekd.device.machine import cpu_kind, describe, versions
from edgekd.device.statistics import block_bootstrap_ratio
from edgekd.device.suites import Suite
from edgekd.files import write_json
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.graph.schemes import static_scheme
from edgekd.graph.targets import load_target
from edgekd.graph.verification import verify
from edgekd.results import write_results
from edgekd.spec import Array, Interval, TensorSpec

HERE = Path(__file__).resolve().parent
SYSTEMS = ("onnxruntime", "optimum", "olive", "neural_compressor", "nncf")
OURS = "edgekd"
FLOAT = "float32"


def suite(seconds: float) -> Suite:
    """Enough calls for a p90 of every candidate."""
    return Suite(name="quantizers", min_calls=1000, max_seconds=seconds, block_ms=20.0, cold_starts=0, memory=False)


def ours() -> str:
    """The scheme that edgekd chooses for this CPU."""
    return static_scheme(load_target("cpu"), cpu_kind())


def measure(candidates: list[Candidate], samples: Samples | None, seconds: float) -> dict[str, Any]:
    """One interleaved run; p50 of each candidate over that of ours, from the same blocks, is added."""
    results = benchmark(candidates, suite=suite(seconds), against=FLOAT, samples=samples)
    raw = results["samples"]
    results["over_ours"] = {
        item.id: ratio(raw[item.id], raw[OURS]).to_json() for item in candidates if item.id not in (OURS, FLOAT)
    }
    return results


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> Interval:
    """Median latency over median latency, with an interval from whole blocks."""
    series: list[Array] = []
    for item in (slow, fast):
        series += [np.array(item["latency_ns"]), np.repeat(np.arange(len(item["block"])), item["block"])]
    return block_bootstrap_ratio(*series, seed=0)


def peers(run: Path, python: str, systems: list[str], seconds: float) -> dict[str, Any]:
    """All int8 files of one student; a system that fails is named with its last words."""
    from edgekd.recipe import load_recipe
    from edgekd.run_folder import Silence
    from edgekd.stages.graphs import calibration_feeds
    from edgekd.stages.workspace import Workspace

    loaded = load_recipe(run / "recipe.toml")
    space = Workspace(loaded.recipe, loaded.folder, run, Silence(), "cpu", 1, "", "")
    prepared, student = space.prepared, run / "export" / "student.onnx"
    feeds, left_out = calibration_feeds(space), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "calibration.npz", **feeds)
        files = {
            FLOAT: student,
            OURS: quantize(student, folder / "ours.onnx", VARIANTS[ours()], calibration=feeds).path,
        }
        for system in systems:
            out = folder / f"{system}.onnx"
            command = [python, HERE / "peers" / "quantize_with.py", system, student, folder / "calibration.npz", out]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
            if done.returncode == 0 and out.is_file():
                files[system] = out
            else:
                left_out[system] = (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        candidates = [
            Candidate(key, str(path), preprocess=prepared.arithmetic, postprocess=prepared.post)
            for key, path in files.items()
        ]
        results = measure(candidates, prepared.labelled(prepared.dataset.test), seconds)
    return {**results, "scheme": ours(), "left_out": left_out, "python": python}


def known_nets(size: int) -> dict[str, tuple[Any, TensorSpec]]:
    """Modules by name; random weights are as fast as trained ones."""
    import torch

    from edgekd.distill.models import build_model

    torch.manual_seed(0)
    spec = TensorSpec("input", "float32", ("N", 3, size, size))
    names = ("resnet18", "mobilenet_v2")
    return {
        name: (build_model(f"torchvision:{name}", num_outputs=1000, input_shape=spec.concrete()[1:]).eval(), spec)
        for name in names
    }


def speedups(size: int, seconds: float) -> dict[str, Any]:
    """Float over int8 of each net, in a run of its own."""
    from edgekd.distill.to_onnx import export

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for key, (module, spec) in known_nets(size).items():
            feeds = {spec.name: np.random.default_rng(0).normal(0, 1, (16, *spec.concrete()[1:])).astype(np.float32)}
            path = Path(name) / f"{key}.onnx"
            export(module, path, inputs=(spec,), outputs=("logits",), samples=feeds)
            made = quantize(path, Path(name) / f"{key}.int8.onnx", VARIANTS[ours()], calibration=feeds)
            candidates = [Candidate(FLOAT, str(path)), Candidate(OURS, str(made.path))]
            found[key] = measure(candidates, None, seconds)
    return {"nets": found, "size": size, "scheme": ours()}


def seconds_taken(repeats: int, width: int) -> dict[str, Any]:
    """Wall time of each step for a CNN of about a million parameters (at the default width), 28x28 images."""
    import torch
    from torch import nn

    from edgekd.distill.to_onnx import export

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((1, width, 2 * width, 4 * width), (width, 2 * width, 4 * width, 4 * width)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 10)).eval()
    spec = TensorSpec("input", "float32", ("N", 1, 28, 28))
    feeds = {"input": np.random.default_rng(0).normal(0, 1, (256, 1, 28, 28)).astype(np.float32)}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        float_path, int8_path = Path(name) / "float.onnx", Path(name) / "int8.onnx"
        for _ in range(repeats):
            marks = [time.perf_counter()]
            export(module, float_path, inputs=(spec,), outputs=("logits",), samples=feeds)
            marks.append(time.perf_counter())
            quantize(float_path, int8_path, VARIANTS[ours()], calibration=feeds)
            marks.append(time.perf_counter())
            ok = verify(float_path, int8_path, feeds, tolerance="int8").ok
            marks.append(time.perf_counter())
            steps = dict(zip(("export_and_parity", "int8", "verify"), np.diff(marks).tolist()))
            rows.append({**steps, "all": marks[-1] - marks[0], "verified": ok})
    parameters = sum(item.numel() for item in module.parameters())
    return {"parameters": parameters, "rows": rows, "median_s": statistics.median(row["all"] for row in rows)}


def say(results: Mapping[str, Any]) -> None:
    """A line per candidate."""
    sizes = {row["candidate"]: row["size_bytes"] for row in results["rows"]}
    for row in results["rows"]:
        name, latency = row["candidate"], row["latency_ms"]
        p50, p90 = (latency[key] and f"{latency[key]['value']:.4f}" for key in ("p50", "p90"))
        accuracy = f"{100 * row['accuracy']['value']:.2f} %" if row.get("accuracy") else "-"
        over = results["over_ours"].get(name)
        told = f"{over['value']:.2f} [{over['low']:.2f}, {over['high']:.2f}] of ours" if over else ""
        faster = row["speedup"]
        against = f"{faster['value']:.2f}x [{faster['low']:.2f}, {faster['high']:.2f}]" if faster else ""
        print(f"{name:<18} {accuracy:>8} {sizes[name] / 1000:>9.1f} kB  p50 {p50} p90 {p90} ms  {against}  {told}")
    print(f"{results['verdict']['value']}: {'; '.join(results['verdict']['reasons']) or 'nothing against it'}")


def main() -> None:
    """Run the part that was asked for, say it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("peers", "speedups", "seconds"))
    parser.add_argument("--run", type=Path, help="a finished run folder (peers)")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the other systems (peers)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which of them (peers)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, all candidates together")
    parser.add_argument("--size", type=int, default=224, help="of the images (speedups)")
    parser.add_argument("--repeats", type=int, default=5, help="(seconds)")
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer (seconds)")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.part == "peers":
        if args.run is None:
            parser.error("peers needs --run RUN, a finished run folder: edgekd distill-and-export fashion_mnist")
        result = peers(args.run, args.python, [item for item in args.systems.split(",") if item], args.seconds)
        say(result)
        for system, reason in result["left_out"].items():
            print(f"{system:<18} left out: {reason}")
    elif args.part == "speedups":
        result = speedups(args.size, args.seconds)
        for name, found in result["nets"].items():
            print(name)
            say(found)
    else:
        result = seconds_taken(args.repeats, args.width)
        print(f"{result['parameters']:,} parameters: {result['median_s']:.1f} s (median of {args.repeats})")
    if args.out is not None:
        told = {"command": " ".join(sys.argv), "machine": describe(), "versions": versions(), **result}
        if args.part == "peers":
            write_results(args.out, told)
        else:
            write_json(args.out, told)


if __name__ == "__main__":
    main()
