"""What edgekd costs on the device: time and peak memory of its import and first prediction, beside plain onnxruntime.

    python benchmarks/peers/import_cost.py [BUNDLE] [--processes 15] [--out import_cost.json]

Each case runs in fresh processes of its own, in turns (each case once, then each once more, ...), one at a time.
Time is taken inside the process, from after the interpreter's start; memory is the process's own peak resident set
(VmHWM). Without a bundle: a perceptron 64-32-10 with random weights. The comparison is unfair to edgekd in one
point: it also reads and hashes the bundle, and preprocesses, which a program on plain onnxruntime must do by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LEAST_PROCESSES = 10

# Each case: lines that are on the clock. MODEL and X are the paths of an ONNX file and of one input, BUNDLE and RAW
# those of the bundle and of one raw sample.
CASES = {
    "nothing": "pass",
    "import numpy": "import numpy",
    "import edgekd": "import edgekd",
    "import onnxruntime": "import onnxruntime",
    "onnxruntime, load and first run": (
        "import numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(MODEL, providers=['CPUExecutionProvider'])\n"
        "session.run(None, {session.get_inputs()[0].name: numpy.load(X)})"
    ),
    "edgekd, load and first prediction": (
        "import numpy, edgekd\nedgekd.load(BUNDLE, threads=1).predict(numpy.load(RAW))"
    ),
}

PROCESS = """
import sys, time
MODEL, X, BUNDLE, RAW = sys.argv[1:5]
start = time.perf_counter()
{case}
end = time.perf_counter()
peak = None
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM:"))
except OSError:
    pass  # not Linux: no peak is told
print((end - start) * 1e3, peak)
"""


def measure(case: str, paths: list[str]) -> tuple[float, float | None]:
    """Milliseconds and peak MB of one fresh process."""
    code = PROCESS.format(case=CASES[case])
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"'{case}' failed:\n{done.stderr}")
    time_ms, peak_mb = done.stdout.splitlines()[-1].split()
    return float(time_ms), None if peak_mb == "None" else float(peak_mb)


def lay_out(bundle: Path | None, folder: Path) -> list[str]:
    """The paths MODEL, X, BUNDLE, RAW for the processes."""
    import numpy as np

    from edgekd.device.bundle import Bundle

    opened = Bundle.open(bundle) if bundle is not None else write_bundle(folder)
    golden = opened.golden()
    (folder / "model.onnx").write_bytes(opened.graph())
    np.save(folder / "x.npy", golden[f"input.{opened.manifest['inputs'][0]['name']}"][:1])
    np.save(folder / "raw.npy", golden["raw"][0])
    return [str(folder / "model.onnx"), str(folder / "x.npy"), str(opened.path), str(folder / "raw.npy")]


def write_bundle(folder: Path) -> Any:
    """A bundle around the perceptron of bare_loop.py."""
    import numpy as np
    from bare_loop import built_in_models

    from edgekd.device.bundle import Bundle
    from edgekd.device.runtimes import open_session

    path = built_in_models(folder)[0]
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    session = open_session(path, threads=1)
    logits = session.run({"x": x})["logits"]
    session.close()
    manifest = {
        "name": "perceptron",
        "task": "classification",
        "created": "2026-01-01T00:00:00Z",
        "licence": "Apache-2.0",
        "labels": [str(digit) for digit in range(10)],
        "default": {"*": "float32"},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 64]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", 10]}],
        "preprocess": [],
        "postprocess": [{"op": "softmax"}],
        "variants": {"float32": {"tolerance": {"abs": 1e-5, "rel": 1e-4, "label_agreement": 1.0}}},
    }
    golden = {"raw": x, "input.x": x, "output.float32.logits": logits}
    return Bundle.write(folder / "perceptron.edgekd", manifest, {"float32": {"main": path}}, golden)


def main() -> int:
    """Measure, print a table, write JSON with every process."""
    from edgekd.device.machine import describe, versions
    from edgekd.device.statistics import median_interval

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--processes", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON with the figures of every process")
    arguments = parser.parse_args()
    if arguments.processes < LEAST_PROCESSES:
        parser.error(f"--processes {arguments.processes}: expected at least {LEAST_PROCESSES}, fewer give no interval")
    measured: dict[str, list[tuple[float, float | None]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="edgekd-import-cost-") as name:
        paths = lay_out(arguments.bundle, Path(name))
        for case in CASES:
            measure(case, paths)  # fills the caches of the file system, not counted
        for _ in range(arguments.processes):
            for case, values in measured.items():
                values.append(measure(case, paths))
    results: dict[str, Any] = {"machine": describe(), "versions": versions(), "cases": {}}
    for case, values in measured.items():
        times, peaks = [item[0] for item in values], [item[1] for item in values if item[1] is not None]
        time_ms, peak_mb = median_interval(times), median_interval(peaks)
        assert time_ms is not None
        results["cases"][case] = {
            "time_ms": time_ms.to_json(),
            "peak_mb": None if peak_mb is None else peak_mb.to_json(),
            "samples": {"time_ms": times, "peak_mb": peaks},
        }
        memory = "" if peak_mb is None else f"   {peak_mb.value:6.1f} MB ({peak_mb.low:.1f} to {peak_mb.high:.1f})"
        print(f"{case:36}{time_ms.value:8.1f} ms ({time_ms.low:.1f} to {time_ms.high:.1f}){memory}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
