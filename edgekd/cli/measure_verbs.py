"""Verbs that look at this machine: benchmark and doctor."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.cli import tables
from edgekd.cli.options import Common
from edgekd.cli.progress import counting
from edgekd.errors import AnswerIsNo, InputRefused, MissingHere, UsageError

if TYPE_CHECKING:
    from edgekd.device.benchmark import Candidate, Samples
    from edgekd.device.bundle import Bundle
    from edgekd.spec import Step, Task


def benchmark(
    common: Common,
    candidates: Annotated[
        list[str], typer.Argument(metavar="CAND...", help="Bundles (BUNDLE or BUNDLE:VARIANT) and ONNX files.")
    ],
    suite: Annotated[str, typer.Option("--suite", help="A shipped suite (quick, full) or a TOML file.")] = "quick",
    runtime: Annotated[str, typer.Option("--runtime", help="Runtimes, with commas between.")] = "onnxruntime",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes, with commas between.")] = "1",
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="TEACHER", help="The model that speed-up and drop refer to; a candidate."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FILE.npz", help="Labelled samples: x before scale/normalize, and y. For accuracy."
        ),
    ] = None,
    cpus: Annotated[
        str | None, typer.Option("--cpus", metavar="4-7", help="Cores to run on (big.LITTLE); default: those allowed.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when the result is INVALID.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the result with all raw samples.")
    ] = None,
) -> None:
    """Latency, memory, size and accuracy of bundles and ONNX files on this machine, interleaved. Needs no torch.

    Examples:

      edgekd benchmark student.edgekd

      edgekd benchmark student.edgekd --against teacher.onnx --threads 2 --batch 1,8 --out here.json
    """
    from edgekd.device.benchmark import benchmark as run_benchmark
    from edgekd.device.machine import use_cpus
    from edgekd.device.suites import load_suite
    from edgekd.results import write_results

    batches = [whole(item, option="--batch") for item in batch.split(",")]
    runtimes = [item.strip() for item in runtime.split(",")]
    names = [*candidates, *([against] if against is not None and against not in candidates else [])]
    chosen = expand(names, runtimes=runtimes, batches=batches, threads=common.threads or 1)
    reference = None if against is None else find_reference(chosen, against)
    samples = None if data is None else read_samples(data, candidates)
    if cpus is not None:
        use_cpus(cpus)
    with counting(common, "benchmark") as counter:
        results = run_benchmark(
            chosen,
            suite=load_suite(suite),
            against=reference,
            samples=samples,
            seed=common.seed or 0,
            progress=counter,
        )
    results["command"] = shlex.join(["edgekd", *sys.argv[1:]])
    if out is not None:
        out = write_results(out, results)
    if common.as_json:
        common.print_json(results)
    else:
        tables.print_results_table(common, results)
        tables.print_next(
            common,
            tables.command("benchmark", *candidates, "--out", "here.json")
            if out is None
            else tables.command("report", out),
            tables.command("benchmark", *candidates, "--suite", "full"),
            "edgekd doctor",
        )
    failed = [item for item in results["candidates"] if item.get("error") or item["golden"] == "WRONG"]
    if failed:
        raise AnswerIsNo(
            "; ".join(
                f"{item['id']}: {item.get('error') or 'does not give its golden outputs here'}" for item in failed
            )
        )
    verdict = results["verdict"]
    if strict and verdict["value"] != "VALID":
        raise AnswerIsNo(f"the benchmark is INVALID: {'; '.join(verdict['reasons'])}. {' '.join(verdict['advice'])}")


def expand(names: Sequence[str], *, runtimes: Sequence[str], batches: Sequence[int], threads: int) -> list[Candidate]:
    """Candidates times runtimes times batch sizes; a bundle without a variant gives all of its variants.

    A plain ONNX file beside a bundle gets the bundle's preprocessing, so that both see the same samples.
    """
    from edgekd.device.benchmark import Candidate
    from edgekd.device.bundle import Bundle
    from edgekd.device.preprocess import split_steps
    from edgekd.device.runtimes import RUNTIMES
    from edgekd.errors import nearest
    from edgekd.spec import parse_steps

    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise UsageError(f"--runtime {runtime}: there is no such runtime. {nearest(runtime, RUNTIMES)}")
    found: list[Candidate] = []
    shared: tuple[Step, ...] = ()
    for name in names:
        path, variant = split_name(name)
        # By the file's name, unless another candidate's file is called alike: two runs' bundles are.
        alike = {str(other) for other, _ in map(split_name, names) if other.name == path.name}
        title = path.name if len(alike) == 1 else str(path)
        if not path.exists():
            raise InputRefused(f"{path} is not there; expected a bundle (folder or zip) or an ONNX file")
        if path.is_file() and path.suffix in (".onnx", ".ort"):
            found.append(Candidate(title, str(path)))
            continue
        bundle = Bundle.open(path)
        steps = split_steps(parse_steps(bundle.manifest["preprocess"]))[1]
        shared = shared or steps
        for item in [variant] if variant else bundle.variants:
            check_variant(bundle, item)
            found.append(Candidate(f"{title}:{item}", str(path), variant=item, preprocess=steps))
    several = len(runtimes) * len(batches) > 1
    return [
        replace(
            item,
            id=f"{item.id} {runtime} b{size}" if several else item.id,
            runtime=runtime,
            batch=size,
            threads=threads,
            preprocess=item.preprocess or shared,
        )
        for item in found
        for runtime in runtimes
        for size in batches
    ]


def split_name(name: str) -> tuple[Path, str]:
    """The path and, behind a colon, the variant of a candidate as it was typed."""
    path, _, variant = (name, "", "") if Path(name).exists() else name.partition(":")
    return Path(path), variant


def find_reference(candidates: Sequence[Candidate], name: str) -> str:
    """The id of the first candidate that `name` stands for: a bundle's first variant, unless one is named."""
    path, variant = split_name(name)
    return next(item.id for item in candidates if item.model == str(path) and (not variant or item.variant == variant))


def check_variant(bundle: Bundle, name: str) -> None:
    """Raise `UsageError` with the nearest name when the bundle has no such variant."""
    from edgekd.errors import nearest

    if name not in bundle.variants:
        raise UsageError(f"{bundle.path} has no variant '{name}'. {nearest(name, bundle.variants)}")


def read_samples(path: Path, candidates: Sequence[str]) -> Samples:
    """x and y of an npz, with the task of the first bundle among the candidates."""
    from edgekd.data.npz import read_npz
    from edgekd.device.benchmark import Samples
    from edgekd.device.bundle import Bundle

    arrays = read_npz(path)
    if not {"x", "y"} <= set(arrays):
        raise InputRefused(f"{path} holds {', '.join(sorted(arrays))}; expected the arrays x and y")
    bundles = [name for name in (item.partition(":")[0] for item in candidates) if not name.endswith((".onnx", ".ort"))]
    task: Task = Bundle.open(Path(bundles[0])).manifest["task"] if bundles else "classification"
    return Samples(arrays["x"], arrays["y"], task)


def whole(text: str, *, option: str) -> int:
    """A positive whole number from an option."""
    if not text.strip().isdigit() or int(text) < 1:
        raise UsageError(f"{option}: found '{text}', expected whole numbers from 1 with commas between")
    return int(text)


def doctor(common: Common) -> None:
    """What is installed, which runtimes work, what to install for the others, what would disturb a measurement."""
    from edgekd.doctor import diagnose, to_json

    diagnosis = diagnose()
    if common.as_json:
        common.print_json(to_json(diagnosis))
    else:
        tables.print_diagnosis(common, diagnosis)
    if not any(item.works for item in diagnosis.runtimes):
        raise MissingHere("no inference runtime works here; install one with: pip install 'edgekd[cpu]'")
