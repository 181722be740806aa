"""Static int8: ours beside other systems' on one student, its speed-up on two known nets, and the time that it takes.

    python benchmarks/quantizers.py peers --run runs/fashion --envs rivals --out quantizers.json
    python benchmarks/quantizers.py speedups --out quantizers_speedups.json
    python benchmarks/quantizers.py seconds --out quantizers_seconds.json

peers     the float student of a finished run, quantized by each system on the same calibration samples; accuracy on
          the test split, size, p50 and p90 of all of them interleaved in one run of `edgekd.device.benchmark`
speedups  ResNet-18 and MobileNetV2 (ReLU6) at 224x224, batch 1, random weights: float32 over our int8
seconds   export, static int8 and verify of a student of one million parameters from the command line, five times

`--envs`: a folder of virtual environments, each called as its system (rivals/nncf, ...): they exclude one another. A
system without one is looked for in this interpreter; one that is missing there is left out, and its reason is in the
result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekd.device.benchmark import Candidate, Samples, benchmark
from edgekd.device.machine import cpu_kind, describe, versions
from edgekd.device.rows import launch_of_calls
from edgekd.device.statistics import launch_ratio
from edgekd.device.suites import Suite
from edgekd.errors import UsageError
from edgekd.files import write_json
from edgekd.graph.inspection import inspect
from edgekd.graph.quantization import VARIANTS, Int8Static, quantize
from edgekd.graph.schemes import static_scheme
from edgekd.graph.targets import load_target
from edgekd.results import write_results
from edgekd.spec import Interval, TensorSpec

HERE = Path(__file__).resolve().parent
# System -> its package.
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "optimum": "optimum-onnx",
    "olive": "olive-ai",
    "neural_compressor": "neural-compressor",
    "nncf": "nncf",
}
SYSTEMS = tuple(PACKAGES)
OURS = "edgekd"
PER_TENSOR = "edgekd, per tensor"
FLOAT = "float32"


def suite(seconds: float) -> Suite:
    """Enough calls for a p90 of every candidate, also of one that takes 30 ms."""
    return Suite(name="quantizers", min_calls=200, max_seconds=seconds, block_ms=40.0, cold_starts=0, memory=False)


def ours() -> str:
    """The scheme that edgekd chooses for this CPU."""
    return static_scheme(load_target("cpu"), cpu_kind())


def measure(candidates: list[Candidate], samples: Samples | None, seconds: float) -> dict[str, Any]:
    """One interleaved run; p50 of each candidate over that of ours, from the same launches, is added."""
    results = benchmark(candidates, suite=suite(seconds), against=FLOAT, samples=samples)
    raw = results["samples"]
    for item in results["candidates"]:
        item["model"] = Path(item["model"]).name  # the folder was a temporary one
    results["over_ours"] = {
        item.id: ratio(raw[item.id], raw[OURS]).to_json() for item in candidates if item.id not in (OURS, FLOAT)
    }
    return results


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> Interval:
    """Median latency over median latency, with an interval over launches."""
    base, own = ((item["latency_ns"], launch_of_calls(item)) for item in (slow, fast))
    return launch_ratio(base, own)


def interpreter(envs: Path | None, system: str) -> str:
    """The Python that has the system."""
    own = None if envs is None else envs.absolute() / system / "bin" / "python"
    return str(own) if own is not None and own.is_file() else sys.executable


def version(python: str, system: str) -> str:
    """Of the system, and of the onnxruntime beside it."""
    names = [PACKAGES[system], *(["onnxruntime"] if system != "onnxruntime" else [])]
    code = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.strip()


def peers(run: Path, envs: Path | None, systems: list[str], seconds: float) -> dict[str, Any]:
    """All int8 files of one student; a system that fails is named with its last words."""
    from edgekd.recipe import load_recipe
    from edgekd.run_folder import Silence
    from edgekd.stages.graphs import calibration_feeds
    from edgekd.stages.workspace import Workspace

    loaded = load_recipe(run / "recipe.toml")
    space = Workspace(loaded.recipe, loaded.folder, run, Silence(), "cpu", 1, "", "")
    prepared, student = space.prepared, run.absolute() / "export" / "student.onnx"
    groups, left_out, told = calibration_feeds(space), {}, {}
    if len(groups) > 1:
        raise UsageError(f"{run} learned from texts, which the others do not read by their lengths; expected images")
    feeds = groups[0]
    chosen = VARIANTS[ours()]
    assert isinstance(chosen, Int8Static)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "calibration.npz", **feeds)
        files = {
            FLOAT: student,
            OURS: quantize(student, folder / "ours.onnx", chosen, calibration=feeds).path,
            PER_TENSOR: quantize(
                student, folder / "tensor.onnx", replace(chosen, per_channel=False), calibration=feeds
            ).path,
        }
        for system in systems:
            out = folder / f"{system}.onnx"
            python = interpreter(envs, system)
            command = [python, HERE / "peers" / "quantize_with.py", system, student, folder / "calibration.npz", out]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
            if done.returncode == 0 and out.is_file():
                files[system], told[system] = out, version(python, system)
            else:
                left_out[system] = (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        candidates = [
            Candidate(key, str(path), preprocess=prepared.arithmetic, postprocess=prepared.post)
            for key, path in files.items()
        ]
        results = measure(candidates, prepared.labelled(prepared.dataset.test), seconds)
    return {**results, "scheme": ours(), "left_out": left_out, "systems": told}


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


def speedups(size: int, seconds: float, threads: list[int]) -> dict[str, Any]:
    """Float over int8 of each net on each number of threads, in a run of its own."""
    from edgekd.distill.to_onnx import export

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for key, (module, spec) in known_nets(size).items():
            feeds = {spec.name: np.random.default_rng(0).normal(0, 1, (16, *spec.concrete()[1:])).astype(np.float32)}
            path = Path(name) / f"{key}.onnx"
            export(module, path, inputs=(spec,), outputs=("logits",), samples=feeds)
            made = quantize(path, Path(name) / f"{key}.int8.onnx", VARIANTS[ours()], calibration=feeds)
            for count in threads:
                candidates = [
                    Candidate(FLOAT, str(path), threads=count),
                    Candidate(OURS, str(made.path), threads=count),
                ]
                found[f"{key}, {count} thread{'s' if count > 1 else ''}"] = measure(candidates, None, seconds)
    return {"nets": found, "size": size, "scheme": ours()}


def seconds_taken(repeats: int, width: int) -> dict[str, Any]:
    """Wall time of each verb for a residual network of a million parameters (at the default width), 28x28 images, 256
    samples: three commands, as they are typed, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).normal(0, 1, (256, 1, 28, 28)).astype(np.float32)
        np.savez(folder / "samples.npz", input=images)
        commands = {
            "export": f"export resnet_teacher float.onnx --inputs input:N,1,28,28 --samples samples.npz "
            f"--args {json.dumps({'width': width}, separators=(',', ':'))}",
            "int8": "quantize float.onnx int8.onnx --config int8_static --data samples.npz",
            "verify": "verify float.onnx int8.onnx --samples samples.npz",
        }
        for _ in range(repeats):
            row: dict[str, Any] = {}
            for step, command in commands.items():
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "edgekd", *command.split()], cwd=folder, capture_output=True, check=True
                )
                row[step] = time.perf_counter() - started
            rows.append({**row, "all": sum(row.values())})
        parameters = inspect(folder / "float.onnx").parameters
    told = {step: f"edgekd {command}" for step, command in commands.items()}
    return {"parameters": parameters, "commands": told, "rows": rows, "median_s": median(row["all"] for row in rows)}


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
    parser.add_argument("--envs", type=Path, help="virtual environments of the other systems, by their names (peers)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which of them (peers)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, all candidates together")
    parser.add_argument("--size", type=int, default=224, help="of the images (speedups)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (speedups)")
    parser.add_argument("--repeats", type=int, default=5, help="(seconds)")
    parser.add_argument("--width", type=int, default=39, help="channels of the first layer (seconds)")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.part == "peers":
        if args.run is None:
            parser.error("peers needs --run RUN, a finished run folder: edgekd distill-and-export fashion_mnist")
        result = peers(args.run, args.envs, [item for item in args.systems.split(",") if item], args.seconds)
        say(result)
        for system, reason in result["left_out"].items():
            print(f"{system:<18} left out: {reason}")
    elif args.part == "speedups":
        result = speedups(args.size, args.seconds, [int(item) for item in args.threads.split(",")])
        for name, found in result["nets"].items():
            print(name)
            say(found)
    else:
        result = seconds_taken(args.repeats, args.width)
        print(f"{result['parameters']:,} parameters: {result['median_s']:.1f} s (median of {args.repeats})")
    if args.out is not None:
        told = {"command": " ".join(sys.argv), "machine": describe(), "versions": versions(), **result}
        (write_results if args.part == "peers" else write_json)(args.out, told)


if __name__ == "__main__":
    main()
