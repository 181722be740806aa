"""The benchmark on a device that has only Python 3.10, numpy and an inference runtime: the main of `edgekd runner`.

python bench.pyz student.edgekd                         measure here, print a table, write result.json
python bench.pyz --plan plan.json --out result.json.gz  what `edgekd benchmark --on ...` runs over there
python bench.pyz --probe                                what this machine is, as JSON
"""

from __future__ import annotations

import argparse
import gzip
import json
import pkgutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.device.benchmark import benchmark
from edgekd.device.machine import available_cores, describe, versions
from edgekd.device.plans import Request, read_plan
from edgekd.device.requests import choose_axes, expand, find_reference, read_samples
from edgekd.device.runtimes import RUNTIMES, why_missing
from edgekd.device.suites import Suite, load_suite, parse_suite
from edgekd.errors import EdgekdError, InputRefused, UsageError, explain_os_errors, nearest
from edgekd.files import write_bytes

# Inside the zipapp: the shipped suites as JSON.
PACKED = "_runner/suites.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments say; the exit code is that of `edgekd benchmark`."""
    arguments = _parser().parse_args(argv)
    # What stops a program without a terminal: then what was measured is kept, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.probe:
            sys.stdout.write(json.dumps(probe()) + "\n")
            return 0
        results = measure(read_plan(arguments.plan) if arguments.plan is not None else _request(arguments))
        _write(arguments.out, results)
    except EdgekdError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before anything was measured\n")
        return 130
    sys.stdout.write(table(results) + f"\nwrote {arguments.out}\n")
    if results["interrupted"]:
        return 130
    bad = [item for item in results["candidates"] if item.get("error") or item["golden"] == "WRONG"]
    return 1 if bad else 0


def measure(request: Request) -> dict[str, Any]:
    """The result of a request."""
    return benchmark(
        request.candidates,
        suite=request.suite,
        against=request.against,
        samples=request.samples,
        seed=request.seed,
        keep_partial=True,
        profile=request.profile,
    )


def probe() -> dict[str, Any]:
    """What the one who plans must know about this machine."""
    return {
        "machine": describe(),
        "versions": versions(),
        "cores": available_cores(),
        "missing": {name: reason for name in RUNTIMES if (reason := why_missing(name)) is not None},
    }


def table(results: Mapping[str, Any]) -> str:
    """The figures as plain text: there is no terminal library here."""
    lines = [("candidate", "p50 ms", "p90 ms", "accuracy", "peak MB", "kB", "")]
    for candidate, row in zip(results["candidates"], results["rows"]):
        latency, memory = row["latency_ms"], row.get("memory_mb")
        problem = row.get("error") or ("WRONG" if candidate["golden"] == "WRONG" else "")
        lines.append(
            (
                candidate["id"],
                *("-" if latency[key] is None else f"{latency[key]['value']:.4g}" for key in ("p50", "p90")),
                "-" if row["accuracy"] is None else f"{row['accuracy']['value']:.4f}",
                "-" if memory is None else f"{max(memory.values()):.1f}",
                "-" if row["size_bytes"] is None else f"{row['size_bytes'] / 1000:.1f}",
                problem,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    said = ["  ".join([text.ljust(width) for text, width in zip(line, widths)] + [line[6]]).rstrip() for line in lines]
    verdict = results["verdict"]
    return "\n".join([*said, f"benchmark {verdict['value']}", *(f"  {text}" for text in verdict["reasons"])])


def find_suite(name: str) -> Suite:
    """A shipped suite: of the zipapp inside it, else from where edgekd is installed."""
    try:
        packed = pkgutil.get_data("edgekd", PACKED)
    except OSError:
        return load_suite(name)
    suites: dict[str, Any] = json.loads(packed or b"{}")
    if name not in suites:
        raise UsageError(f"no suite is called '{name}'. {nearest(name, suites)}")
    return parse_suite(suites[name], name=name, where=name)


def _request(arguments: argparse.Namespace) -> Request:
    if not arguments.candidates:
        raise UsageError("found no candidate; expected a bundle or a model: python bench.pyz student.edgekd")
    suite = find_suite(arguments.suite)
    against: str | None = arguments.against
    more = [against] if against is not None and against not in arguments.candidates else []
    axes, left_out = choose_axes(
        suite,
        [*arguments.candidates, *more],
        runtime=arguments.runtime,
        threads=arguments.threads,
        batch=arguments.batch,
        cores=available_cores(),
        missing=why_missing,
    )
    for item in left_out:
        sys.stderr.write(f"left out of the suite {suite.name}: {item}\n")
    chosen = expand([*arguments.candidates, *more], axes, same_as=arguments.same_as, against=against)
    return Request(
        tuple(chosen),
        suite,
        None if against is None else find_reference(chosen, against),
        None if arguments.data is None else read_samples(arguments.data, arguments.candidates),
        arguments.seed,
        arguments.profile,
    )


def _write(path: Path, results: Mapping[str, Any]) -> None:
    if path.suffix not in (".json", ".gz"):
        raise InputRefused(f"--out {path}: expected a name that ends in .json or .json.gz")
    data = (json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with explain_os_errors(path):
        write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.pyz", description="Latency, memory, size and accuracy of bundles and models on this device."
    )
    parser.add_argument(
        "candidates", nargs="*", metavar="CAND", help="BUNDLE, BUNDLE:VARIANT, .onnx .ort .tflite .param"
    )
    parser.add_argument("--suite", default="quick", help="quick (default), full, cpu, cuda, mobile, web")
    for option, what in (
        ("--runtime", "onnxruntime,openvino,..."),
        ("--threads", "1,2"),
        ("--batch", "1,8"),
        ("--against", "the candidate that speed-up and drop refer to"),
        ("--same-as", "the bundle that model files were converted from"),
    ):
        parser.add_argument(option, help=what)
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="labelled samples x and y")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="also the ten costliest operators")
    parser.add_argument("--out", type=Path, default=Path("result.json"), help="default: result.json")
    parser.add_argument("--plan", type=Path, help="what to measure, as edgekd resolved it")
    parser.add_argument("--probe", action="store_true", help="print what this machine is, and measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
