"""What the apps cost beside the bare runtime: installed bytes, time to the first answer, peak memory, time per call.

    python benchmarks/apps_cost.py runs/digits/student.edgekd [--variant int8_u8s8] [--out apps_cost.json]

Every case runs in fresh processes, in turns (each case once, then each once more, ...), one at a time, on one thread,
with the same variant and the same sample. "Start" is from before the process is made to its first answer; memory is
the process's own peak resident set (VmHWM); a call is the median of many in each process. The bare runtime is
handed a preprocessed array; the apps also check the bundle's hashes, preprocess, postprocess and name the label. Of
texts the sample is one sentence, which the apps tokenize as well; C reads none. C++
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

from edgekd.device.bundle import Bundle
from edgekd.device.preprocess import apply_arithmetic, split_steps
from edgekd.device.preprocess import prepare as prepare_sample
from edgekd.device.tokens import tokenize_step
from edgekd.spec import Array

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
TEXT = "book a table for two at eight tonight"
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
raw = {sample}
"""
SINGLE = """
sys.path.insert(0, {app!r})
import numpy
from student import Student
student = Student({bundle!r}, variant={variant!r})
raw = {sample}
"""


def prepare(bundle: Path, variant: str, folder: Path, *, calls: int, runtime: Path | None) -> dict[str, list[str]]:
    """The command of every case."""
    from edgekd.stages.embedding import embed

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    name, output = manifest["inputs"][0]["name"], manifest["outputs"][0]["name"]
    x, raw = sample_of(opened)
    np.save(folder / "x.npy", x)
    (folder / "x.bin").write_bytes(x.tobytes())
    (folder / "model.onnx").write_bytes(opened.graph("main", variant))
    embed(opened, "python", folder / "python")
    reads_texts = isinstance(raw, str)
    if not reads_texts:
        np.save(folder / "raw.npy", raw)
        (folder / "raw.bin").write_bytes(raw.tobytes())
        embed(opened, "c", folder / "c", variant=variant)
    words = {
        "model": str(folder / "model.onnx"),
        "input": name,
        "x": str(folder / "x.npy"),
        "sample": repr(raw) if reads_texts else f"numpy.load({str(folder / 'raw.npy')!r})",
        "bundle": str(bundle.resolve()),
        "variant": variant,
        "app": str(folder / "python"),
    }

    def python(setup: str, call: str) -> list[str]:
        code = PYTHON.format(setup=setup.format(**words), call=call, calls=calls)
        return [sys.executable, "-c", code]

    programs = build(folder, runtime or wheel_as_release(folder), in_c=not reads_texts)
    sides = " ".join(map(str, x.shape))
    bare_cpp = [str(folder / "model.onnx"), str(folder / "x.bin"), name, output, sides, str(calls), x.dtype.name]
    given = raw if reads_texts else str(folder / "raw.npy")
    cases = {
        "Python: onnxruntime alone": python(BARE, "session.run(None, x)"),
        "Python: student.py": python(SINGLE, "student.predict(raw)"),
        "Python: edgekd.load": python(EDGEKD, "student.predict(raw)"),
        "C++: onnxruntime alone": [programs["bare"], *bare_cpp],
        "C++: edgekd.hpp": [programs["glue"], words["bundle"], variant, given, str(calls), *["text"] * reads_texts],
    }
    return cases if reads_texts else {**cases, "C: student.c": [programs["c"], str(folder / "raw.bin"), str(calls)]}


def sample_of(bundle: Bundle) -> tuple[Array, Array | str]:
    """The input of the graph, and what the apps are handed: the first golden sample, or a sentence."""
    steps, name = bundle.steps(), bundle.manifest["inputs"][0]["name"]
    if tokenize_step(steps) is None:
        golden = bundle.golden()
        return golden[f"input.{name}"][:1].astype(np.float32), golden["raw"][0]
    spatial, arithmetic = split_steps(steps)
    ids = apply_arithmetic(arithmetic, prepare_sample(spatial, TEXT)[np.newaxis])
    return ids.astype(np.int64), TEXT


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


def build(folder: Path, root: Path, *, in_c: bool) -> dict[str, str]:
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
    if in_c:
        source, made = folder / "c" / "student.c", folder / "student.o"
        subprocess.run(["gcc", "-std=c99", "-O2", "-c", str(source), "-o", str(made)], check=True)
    else:
        del commands["c"]
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
            total += own_bytes(name)
            needs = [need for need in distribution.requires or () if "extra ==" not in need and ";" not in need]
            wanted += [re.split(r"[^A-Za-z0-9_.-]", need)[0] for need in needs]
        return total

    own = [*(ROOT / "edgekd").rglob("*.py"), *(ROOT / "export").rglob("*")]
    library = (folder / "onnxruntime" / "lib" / "libonnxruntime.so").resolve()
    runtime = library.stat().st_size if library.is_file() else 0
    size = {name: (folder / name).stat().st_size for name in ("bare", "glue", "in_c") if (folder / name).exists()}
    bare = packages("onnxruntime", "numpy")
    # A tokenizer's own file only: what its package asks for besides is for downloads.
    tokens = 0 if "in_c" in size else own_bytes("tokenizers")
    return {
        "Python: onnxruntime alone": bare,
        "Python: student.py": bare + tokens + (folder / "python" / "student.py").stat().st_size,
        "Python: edgekd.load": packages("edgekd", "onnxruntime")
        + tokens
        + sum(p.stat().st_size for p in own if p.is_file()),
        "C++: onnxruntime alone": runtime + size["bare"],
        "C++: edgekd.hpp": runtime + size["glue"],
        "C: student.c": size.get("in_c", 0),
    }


def own_bytes(package: str) -> int:
    """What the files of one package take."""
    files = [Path(str(file.locate())) for file in importlib.metadata.distribution(package).files or ()]
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")


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
