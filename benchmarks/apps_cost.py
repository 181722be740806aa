"""What the apps cost beside the bare runtime: installed bytes, time to the first answer, peak memory, time per call.

    python benchmarks/apps_cost.py runs/digits/student.edgekd [--variant int8_u8s8] [--out apps_cost.json]

Every case runs in fresh processes, in turns (each case once, then each once more, ...), one at a time, on one thread,
with the same variant and the same sample. "Start" is from before the process is made to its first answer; memory is
the process's own peak resident set (VmHWM); a call is the median of many in each process. The bare runtime is
handed a preprocessed array; the apps also check the bundle's hashes, preprocess, postprocess and name the label. C++
is built with g++ -O2 on the library of onnxruntime's wheel, through the header of the tests (tests/onnxruntime_abi),
or on a release of onnxruntime: --onnxruntime-root.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
APPS = ROOT / "benchmarks" / "apps"
LEAST_PROCESSES = 10

PYTHON = """
import sys, time
{setup}
def call():
    return {call}
call()
first = time.monotonic_ns()
times = []
for _ in range({calls}):
    start = time.perf_counter_ns()
    call()
    times.append(time.perf_counter_ns() - start)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(first, sorted(times)[len(times) // 2], peak)
"""
BARE = """
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])
x = {{{input!r}: numpy.load({x!r})}}
"""
EDGEKD = """
import numpy, edgekd
student = edgekd.load({bundle!r}, variant={variant!r}, threads=1)
raw = numpy.load({raw!r})
"""
SINGLE = """
sys.path.insert(0, {app!r})
import numpy
from student import Student
student = Student({bundle!r}, variant={variant!r})
raw = numpy.load({raw!r})
"""


def prepare(bundle: Path, variant: str, folder: Path, *, calls: int, runtime: Path | None) -> dict[str, list[str]]:
    """The command of every case."""
    from edgekd.device.bundle import Bundle
    from edgekd.stages.embedding import embed

    opened = Bundle.open(bundle)
    golden, manifest = opened.golden(), opened.manifest
    name, output = manifest["inputs"][0]["name"], manifest["outputs"][0]["name"]
    x, raw = golden[f"input.{name}"][:1].astype(np.float32), golden["raw"][0]
    np.save(folder / "x.npy", x)
    (folder / "x.f32").write_bytes(x.tobytes())
    np.save(folder / "raw.npy", raw)
    (folder / "raw.bin").write_bytes(raw.tobytes())
    (folder / "model.onnx").write_bytes(opened.graph("main", variant))
    embed(opened, "python", folder / "python")
    embed(opened, "c", folder / "c", variant=variant)
    words = {
        "model": str(folder / "model.onnx"),
        "input": name,
        "x": str(folder / "x.npy"),
        "raw": str(folder / "raw.npy"),
        "bundle": str(bundle.resolve()),
        "variant": variant,
        "app": str(folder / "python"),
    }

    def python(setup: str, call: str) -> list[str]:
        code = PYTHON.format(setup=setup.format(**words), call=call, calls=calls)
        return [sys.executable, "-c", code]

    programs = build(folder, runtime or wheel_as_release(folder))
    sides = " ".join(map(str, x.shape))
    bare_cpp = [str(folder / "model.onnx"), str(folder / "x.f32"), name, output, sides, str(calls)]
    return {
        "Python: onnxruntime alone": python(BARE, "session.run(None, x)"),
        "Python: student.py": python(SINGLE, "student.predict(raw)"),
        "Python: edgekd.load": python(EDGEKD, "student.predict(raw)"),
        "C++: onnxruntime alone": [programs["bare"], *bare_cpp],
        "C++: edgekd.hpp": [programs["glue"], words["bundle"], variant, words["raw"], str(calls)],
        "C: student.c": [programs["c"], str(folder / "raw.bin"), str(calls)],
    }


def wheel_as_release(folder: Path) -> Path:
    """The wheel's library laid out as a release of onnxruntime."""
    import onnxruntime

    root = folder / "onnxruntime"
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (root / "lib").mkdir(parents=True)
    (root / "include").symlink_to(ROOT / "tests" / "onnxruntime_abi")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (root / "lib" / name).symlink_to(library)
    return root


def build(folder: Path, root: Path) -> dict[str, str]:
    """The programs in C++ and C, optimized and stripped."""
    flags = ["-std=c++17", "-O2", "-s", "-ffp-contract=off", f"-I{ROOT / 'export' / 'apps' / 'cpp'}"]
    runtime = [f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib", "-lonnxruntime", "-pthread"]
    commands = {
        "bare": ["g++", *flags, str(APPS / "bare.cpp"), "-o", str(folder / "bare"), *runtime],
        "glue": ["g++", *flags, "-DEDGEKD_ONNXRUNTIME", str(APPS / "glue.cpp"), "-o", str(folder / "glue"), *runtime],
        "c": [
            "g++",
            *flags,
            f"-I{folder}/c",
            str(APPS / "c.cpp"),
            str(folder / "student.o"),
            "-o",
            str(folder / "in_c"),
        ],
    }
    object_file = ["gcc", "-std=c99", "-O2", "-c", str(folder / "c" / "student.c"), "-o", str(folder / "student.o")]
    subprocess.run(object_file, check=True)
    for command in commands.values():
        subprocess.run(command, check=True)
    return {name: command[command.index("-o") + 1] for name, command in commands.items()}


def measure(command: list[str]) -> tuple[float, float, float]:
    """Milliseconds to the first answer, microseconds per call and peak MB of one fresh process."""
    started = time.monotonic_ns()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[:2]} failed:\n{done.stderr}")
    first, call, peak = map(int, done.stdout.split()[-3:])
    return (first - started) / 1e6, call / 1e3, peak * 1024 / 1e6


def installed_bytes(folder: Path) -> dict[str, int]:
    """What each case needs on the device besides the model, and besides Python and the C library."""

    def packages(*names: str) -> int:
        wanted, seen = list(names), set()
        total = 0
        while wanted:
            name = wanted.pop()
            if name in seen:
                continue
            seen.add(name)
            distribution = importlib.metadata.distribution(name)
            files = [Path(str(file.locate())) for file in distribution.files or ()]
            total += sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
            needs = [need for need in distribution.requires or () if "extra ==" not in need and ";" not in need]
            wanted += [re.split(r"[^A-Za-z0-9_.-]", need)[0] for need in needs]
        return total

    own = [*(ROOT / "edgekd").rglob("*.py"), *(ROOT / "export").rglob("*")]
    library = (folder / "onnxruntime" / "lib" / "libonnxruntime.so").resolve()
    runtime = library.stat().st_size if library.is_file() else 0
    size = {name: (folder / name).stat().st_size for name in ("bare", "glue", "in_c")}
    bare = packages("onnxruntime", "numpy")
    return {
        "Python: onnxruntime alone": bare,
        "Python: student.py": bare + (folder / "python" / "student.py").stat().st_size,
        "Python: edgekd.load": packages("edgekd", "onnxruntime") + sum(p.stat().st_size for p in own if p.is_file()),
        "C++: onnxruntime alone": runtime + size["bare"],
        "C++: edgekd.hpp": runtime + size["glue"],
        "C: student.c": size["in_c"],
    }


def main() -> int:
    """Measure, print a table, write JSON with every process."""
    from edgekd.device.machine import describe, versions
    from edgekd.device.statistics import median_interval

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="int8_u8s8", help="one that C can be made from")
    parser.add_argument("--calls", type=int, default=2000, help="in each process")
    parser.add_argument("--processes", type=int, default=15)
    parser.add_argument("--onnxruntime-root", type=Path, help="an unpacked release; default: the wheel's library")
    parser.add_argument("--out", type=Path, help="JSON with the figures of every process")
    arguments = parser.parse_args()
    if arguments.processes < LEAST_PROCESSES:
        parser.error(f"--processes {arguments.processes}: expected at least {LEAST_PROCESSES}, fewer give no interval")
    with tempfile.TemporaryDirectory(prefix="edgekd-apps-cost-") as name:
        folder = Path(name)
        commands = prepare(
            arguments.bundle, arguments.variant, folder, calls=arguments.calls, runtime=arguments.onnxruntime_root
        )
        sizes = installed_bytes(folder)
        measured: dict[str, list[tuple[float, float, float]]] = {case: [] for case in commands}
        for command in commands.values():
            measure(command)  # fills the caches of the file system, not counted
        for _ in range(arguments.processes):
            for case, values in measured.items():
                values.append(measure(commands[case]))
    results: dict[str, Any] = {"machine": describe(), "versions": versions(), "variant": arguments.variant, "cases": {}}
    print(f"{'':28}{'installed MB':>14}{'start ms':>22}{'peak MB':>20}{'a call, us':>22}")
    for case, values in measured.items():
        row: dict[str, Any] = {"installed_bytes": sizes[case], "samples": {}}
        cells = []
        for index, key in ((0, "start_ms"), (2, "peak_mb"), (1, "call_us")):
            samples = [value[index] for value in values]
            interval = median_interval(samples)
            assert interval is not None
            row[key], row["samples"][key] = interval.to_json(), samples
            cells.append(f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]")
        results["cases"][case] = row
        print(f"{case:28}{sizes[case] / 1e6:14.2f}{cells[0]:>22}{cells[1]:>20}{cells[2]:>22}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
