"""Verbs that look at this machine: benchmark and doctor."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from edgekd.cli import tables
from edgekd.cli.options import Common, complain
from edgekd.cli.progress import counting
from edgekd.errors import AnswerIsNo, InputRefused, MissingHere, UsageError, explain_os_errors

if TYPE_CHECKING:
    from edgekd.device.loadgen import LoadGen
    from edgekd.device.parts import Journal
    from edgekd.device.plans import Request
    from edgekd.device.remote import Device


def benchmark(
    common: Common,
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CAND...",
            help="Bundles (BUNDLE or BUNDLE:VARIANT) and models: .onnx .ort .tflite .param model.json",
        ),
    ],
    suite: Annotated[
        str,
        typer.Option("--suite", help="A shipped suite (quick, full, cpu, cuda, mobile, web) or a TOML file."),
    ] = "quick",
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="a,b",
            help="Runtimes: onnxruntime, onnxruntime-mobile, openvino, litert, ncnn, mnn, torch, torch-cuda, ... "
            "(default: the suite's, or the usual one of each file).",
        ),
    ] = None,
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="1,2", help="Threads (default: the suite's, or 1).")
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="1,8", help="Batch sizes (default: the suite's, or 1).")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="TEACHER", help="The model that speed-up and drop refer to; a candidate."),
    ] = None,
    same_as: Annotated[
        str | None,
        typer.Option(
            "--same-as",
            metavar="BUNDLE",
            help="The model files were converted from this bundle (or BUNDLE:VARIANT): one that does not give its "
            "golden outputs reads WRONG and is not timed.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FILE.npz", help="Labelled samples: x before scale/normalize, and y. For accuracy."
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="ssh://USER@HOST[:PORT]|adb[:SERIAL]",
            help="Measure on that device: it needs Python 3.10, numpy and a runtime, no edgekd. Add ?python=PATH for "
            "its Python. A lost connection costs nothing: run the same command again. (adb: not run on a phone yet.)",
        ),
    ] = None,
    cpus: Annotated[
        str | None, typer.Option("--cpus", metavar="4-7", help="Cores to run on (big.LITTLE); default: those allowed.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also the ten costliest operators (onnxruntime, openvino).")
    ] = False,
    loadgen: Annotated[
        Path | None,
        typer.Option(
            "--loadgen",
            metavar="FOLDER",
            help="Also let MLPerf LoadGen ask, and keep its logs there: single-stream (batch 1), multi-stream (batch "
            "8), offline (others).",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="QPS:MS",
            help="With --loadgen: also as a server that gets QPS queries per second at random times and has to "
            "answer 99 % of them within MS milliseconds.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when the result is INVALID.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Keep the result with all raw samples.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure all of it, also what an interrupted command with this --out did.")
    ] = False,
) -> None:
    """Latency, memory, size and accuracy of bundles and models on this machine, interleaved.

    Candidates times runtimes times threads times batch sizes. Ctrl-C ends it early and keeps what was measured; with
    --out the same command then goes on, also after a crash.

    Examples:

      edgekd benchmark student.edgekd

      edgekd benchmark student.edgekd --against teacher.onnx --threads 1,2 --batch 1,8 --out here.json

      edgekd benchmark student.edgekd --on ssh://pi@raspberrypi.local --out pi.json

      edgekd benchmark student.edgekd student.tflite --same-as student.edgekd --runtime onnxruntime,openvino,litert
    """
    from edgekd.device.machine import available_cores, use_cpus
    from edgekd.device.plans import Request
    from edgekd.device.requests import choose_axes, expand, find_reference, read_samples
    from edgekd.device.runtimes import why_missing
    from edgekd.device.suites import load_suite
    from edgekd.results import write_results

    effort, device, driver = load_suite(suite), None, loadgen_of(loadgen, server)
    names = [*candidates, *([against] if against is not None and against not in candidates else [])]
    if on is not None:
        if driver is not None:
            raise UsageError("--loadgen drives models on this machine, --on measures on another one; leave one out")
        if cpus is not None:
            raise UsageError("--cpus chooses cores of this machine, --on another one; leave --cpus out")
        if fresh:
            raise UsageError(
                "--fresh measures again what this machine has measured, --on another one; leave --fresh out"
            )
        asked = [
            json.dumps(asdict(effort)),
            *map(str, (runtime, threads, batch, against, same_as, common.seed, profile)),
        ]
        device = connect_to(common, on, names, same_as=same_as, data=data, asked=asked)
    elif cpus is not None:
        use_cpus(cpus)
    axes, left_out = choose_axes(
        effort,
        names,
        runtime=runtime,
        threads=threads,
        batch=batch,
        cores=available_cores() if device is None else int(device.probed["cores"]),
        missing=why_missing if device is None else device.probed["missing"].get,
    )
    for item in left_out:
        common.warn(f"left out of the suite {effort.name}: {item}")
    chosen = expand(names, axes, same_as=same_as, against=against)
    plain = any(Path(item.model).suffix == ".onnx" for item in chosen)
    if plain and data is None and importlib.util.find_spec("onnx") is not None:
        from edgekd.stages.alone import with_text_limits

        chosen = with_text_limits(chosen)
    request = Request(
        tuple(chosen),
        effort,
        None if against is None else find_reference(chosen, against),
        None if data is None else read_samples(data, candidates),
        common.seed or 0,
        profile,
    )
    with keeping(common, out if device is None else None, request, driver, fresh=fresh) as journal:
        results = (
            measure_there(common, device, request)
            if device is not None
            else measure_here(common, request, driver, journal)
        )
        results["command"] = shlex.join(["edgekd", *sys.argv[1:]])
        if out is not None:
            out = write_results(out, results)
        if journal is not None and not results["interrupted"]:
            journal.remove()
    if common.as_json:
        common.print_json(results)
    else:
        tables.print_results_table(common, results)
        if profile:
            tables.print_profiles(common, results)
        tables.print_loadgen(common, results)
        tables.print_next(
            common,
            tables.command("benchmark", *candidates, "--out", "here.json")
            if out is None
            else tables.command("report", out),
            tables.command("benchmark", *candidates, "--suite", "full"),
            "edgekd doctor",
        )
    end(results, out, strict=strict)


@contextmanager
def keeping(
    common: Common, out: Path | None, request: Request, loadgen: LoadGen | None, *, fresh: bool
) -> Iterator[Journal | None]:
    """The journal beside the result, after saying what of it counts; none without a result file."""
    from edgekd.device.parts import key_of, opened

    if out is None:
        yield None
        return
    with opened(out, key_of(request, loadgen)) as journal:
        if fresh:
            journal.remove()
        elif journal.discarded:
            common.warn(
                "what an interrupted command measured is discarded: its models, options, suite, machine or versions "
                "are not these, or its files are damaged"
            )
        if (earlier := journal.earlier) is not None:
            starts = request.suite.cold_starts
            cold = f" and {earlier.num_cold_starts} of {starts} cold starts" if starts else ""
            dates = ", ".join(part.started for part in earlier.parts)
            launches = f"{len(earlier.spans)} of {request.suite.launches} launches"
            common.err.print(f"resuming: {launches}{cold} were measured earlier ({dates})", soft_wrap=True)
        yield journal


def measure_here(common: Common, request: Request, loadgen: LoadGen | None, journal: Journal | None) -> dict[str, Any]:
    """The result of a request on this machine."""
    from edgekd.device.benchmark import benchmark as run_benchmark

    with counting(common, "benchmark") as counter:
        return run_benchmark(
            request.candidates,
            suite=request.suite,
            against=request.against,
            samples=request.samples,
            seed=request.seed,
            progress=counter,
            keep_partial=True,
            profile=request.profile,
            loadgen=loadgen,
            journal=journal,
        )


def loadgen_of(folder: Path | None, server: str | None) -> LoadGen | None:
    """What --loadgen and --server ask for. Raises `UsageError` for a server without a folder, or other text."""
    from edgekd.device.loadgen import LoadGen

    if folder is None:
        if server is not None:
            raise UsageError("--server is a scenario of LoadGen; give --loadgen FOLDER too, where its logs are kept")
        return None
    if server is None:
        return LoadGen(folder)
    try:
        qps, bound_ms = map(float, server.split(":"))
    except ValueError as error:
        raise UsageError(f"--server {server}: expected QPS:MS, for example 200:10") from error
    return LoadGen(folder, qps=qps, bound_ms=bound_ms)


def connect_to(
    common: Common, url: str, names: Sequence[str], *, same_as: str | None, data: Path | None, asked: Sequence[str]
) -> Device:
    """The device of --on with the runner on it."""
    from edgekd.device import remote
    from edgekd.device.requests import split_name

    host = remote.find_host(url)
    models = [str(split_name(name)[0]) for name in (*names, *([same_as] if same_as is not None else []))]
    for model in models:
        if not Path(model).exists():
            raise InputRefused(f"{model} is not there; expected a bundle (folder or zip) or a model")
    key = remote.key_of([*asked, *names], models, data)
    return remote.connect(host, key, told=lambda text: common.err.print(escape(f"  {text}"), soft_wrap=True))


def measure_there(common: Common, device: Device, request: Request) -> dict[str, Any]:
    """The result of a request on the device of --on."""
    from edgekd.device import remote

    return remote.run(device, request, told=lambda text: common.err.print(escape(f"  {text}"), soft_wrap=True))


def end(results: Mapping[str, Any], out: Path | None, *, strict: bool) -> None:
    """The exit code: 130 interrupted, 1 when a candidate failed, is WRONG, or (strict) the whole is INVALID."""
    if results["interrupted"]:
        where = "above" if out is None else f"in {out}"
        more = "" if out is None or "on" in results else "; run the same command again to go on"
        complain(f"interrupted; what was measured is {where}, and reads INVALID{more}", 130)
    failed = [item for item in results["candidates"] if item.get("error") or item["golden"] == "WRONG"]
    if failed:
        raise AnswerIsNo("; ".join(f"{item['id']}: {item.get('error') or wrong(item)}" for item in failed))
    verdict = results["verdict"]
    if strict and verdict["value"] != "VALID":
        raise AnswerIsNo(f"the benchmark is INVALID: {'; '.join(verdict['reasons'])}. {' '.join(verdict['advice'])}")


def wrong(candidate: Mapping[str, Any]) -> str:
    """What is the matter with a candidate that reads WRONG."""
    return f"does not give its golden outputs here ({candidate['golden_problem']}), so it was not timed"


def runner(
    common: Common,
    out: Annotated[Path, typer.Argument(metavar="OUT.pyz", help="Where to write it.")],
) -> None:
    """The benchmark as one file of less than 1 MB, to carry to a device: `python3 OUT.pyz student.edgekd`.

    It needs Python 3.10 or newer, numpy and an inference runtime there; no edgekd, no network.
    """
    from edgekd.device.zipapp import write_runner

    if out.suffix != ".pyz":
        raise UsageError(f"{out}: expected a name that ends in .pyz")
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_runner(out)
    if common.as_json:
        common.print_json({"path": str(out), "size_bytes": out.stat().st_size})
        return
    common.say(f"wrote {out}: {out.stat().st_size / 1000:.0f} kB; on the device: python3 {out.name} student.edgekd")


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
