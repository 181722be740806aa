"""Verbs around a whole run: distill-and-export, distill, recipes, init, report."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd import assets
from edgekd.cli import tables
from edgekd.cli.options import Common
from edgekd.cli.processes import processes
from edgekd.cli.progress import bars
from edgekd.doctor import require
from edgekd.errors import AnswerIsNo, UsageError, explain_os_errors

if TYPE_CHECKING:
    from edgekd.pipeline import RunResult

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. distill.epochs=20; repeatable."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder (default: runs/NAME).")]
Device = Annotated[str, typer.Option("--device", help="Where to train: auto, cpu, cuda or mps.")]
Force = Annotated[
    str | None, typer.Option("--force", metavar="STAGE", help="Run this stage again, and what depends on it.")
]

CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="Where teachers' answers are kept (default: EDGEKD_CACHE, or yours)."),
]


def distill_and_export(
    common: Common,
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe (edgekd recipes), or a TOML file.", show_default="digits")
    ] = "digits",
    sets: Set = None,
    out: Out = None,
    device: Device = "auto",
    target: Annotated[
        str | None,
        typer.Option("--target", help="Device kind to make variants for; overrides the recipe's target.name."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say stages, time and disk; do nothing.")] = False,
    force: Force = None,
    cache: CacheFolder = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 also when a limit is unproven or the benchmark is INVALID.")
    ] = False,
) -> None:
    """Teacher in, proven ONNX student out: train, distil, export, quantize, verify, choose, bundle, benchmark, report.

    Without a recipe: real handwritten digits that ship with scikit-learn, no download, about a minute on two cores.
    Stop it whenever you like: the same command goes on where it stopped, and does nothing when nothing changed.

    Examples:

      edgekd distill-and-export

      edgekd distill-and-export fashion_mnist --set distill.epochs=20 --out runs/fashion

      edgekd distill-and-export my.toml --dry-run
    """
    require("train", "cpu", purpose="distilling and exporting")
    from edgekd import pipeline

    overrides = common.overrides(sets) + ([] if target is None else [f"target.name={json.dumps(target)}"])
    if dry_run:
        plan = pipeline.plan(recipe, out=out, overrides=overrides, device=device, threads=common.threads, force=force)
        tables.print_plan(common, plan)
        return
    with processes(device) as world:
        if not world.leads:
            pipeline.follow(recipe, world=world, out=out, overrides=overrides, device=device, cache=cache)
            return
        with bars(common) as listener:
            run = pipeline.distill_and_export(
                recipe,
                out=out,
                overrides=overrides,
                device=device,
                threads=common.threads,
                force=force,
                cache=cache,
                listener=listener,
                command=shlex.join(["edgekd", *sys.argv[1:]]),
                world=world,
            )
    if common.as_json:
        common.print_json(run.results)
    else:
        tables.print_run(common, run)
    refuse_missed(run, strict=strict)


def refuse_missed(run: RunResult, *, strict: bool) -> None:
    """Raise `AnswerIsNo` when a limit is missed, or not proven where that counts as failure."""
    described = run.results["run"]
    fail_unproven = strict or described["unproven"] == "fail"
    bad = [*run.missed, *(run.unproven if fail_unproven else [])]
    if bad:
        lines = "\n".join(f"  {line}" for line in tables.limit_lines(described, fail_unproven=fail_unproven))
        advice = "; ".join(dict.fromkeys(tables.ADVICE[item["name"]] for item in bad))
        raise AnswerIsNo(
            f"no variant meets every limit; the best one, {run.chosen}, is in {run.bundle}:\n{lines}\n"
            f"to try: {advice}; or loosen the limit. Finished stages are kept"
        )
    verdict = run.results["verdict"]
    if strict and verdict["value"] != "VALID":
        raise AnswerIsNo(f"the benchmark is INVALID: {'; '.join(verdict['reasons'])}. {' '.join(verdict['advice'])}")


def distill(
    common: Common,
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a TOML file.")],
    sets: Set = None,
    out: Out = None,
    device: Device = "auto",
    student_only: Annotated[
        bool, typer.Option("--student-only", help="Leave out the student without teacher (trained for comparison).")
    ] = False,
    force: Force = None,
    cache: CacheFolder = None,
) -> None:
    """Only train: the teacher, the distilled student, and the same student alone on the same budget.

    The weights are plain safetensors in RUN/student. distill-and-export into the same folder goes on from here.
    """
    require("train", "cpu", purpose="distilling")
    from edgekd import pipeline
    from edgekd.stages import masks

    overrides = common.overrides(sets)
    with processes(device) as world:
        if not world.leads:
            pipeline.follow(recipe, world=world, out=out, overrides=overrides, device=device, cache=cache)
            return
        with bars(common) as listener:
            path, results, worked = pipeline.train(
                recipe,
                out=out,
                overrides=overrides,
                student_only=student_only,
                device=device,
                threads=common.threads,
                force=force,
                cache=cache,
                listener=listener,
                world=world,
            )
    if common.as_json:
        common.print_json({"run": str(path), "worked": worked, "stages": results})
        return
    if not worked:
        common.say(f"nothing changed: every training stage of {path} is done")
    tables.print_training(common, path, results)
    if (path / "student" / masks.FOLDER).is_dir():
        tables.print_next(common, tables.after_masked_lm(path, masks.FOLDER))
        return
    same = path / "recipe.toml" if overrides else recipe  # as it was run, with all that --set said
    tables.print_next(
        common,
        tables.command("distill-and-export", same, "--out", path),
        tables.command("export", path, "student.onnx"),
        tables.command("distill", same, "--out", path, "--force", "student"),
    )


def recipes(
    common: Common,
    name: Annotated[str | None, typer.Argument(help="Show this recipe; with --losses, this loss or adapter.")] = None,
    copy: Annotated[Path | None, typer.Option("--copy", metavar="FILE", help="Copy it to FILE, to change it.")] = None,
    models: Annotated[
        bool,
        typer.Option(
            "--models", help="List the built-in students and teachers with parameters and MACs (needs torch)."
        ),
    ] = False,
    losses: Annotated[
        bool,
        typer.Option(
            "--losses", help="List the losses and adapters of [[distill.terms]]; with NAME, its formula (needs torch)."
        ),
    ] = False,
) -> None:
    """List the shipped recipes, show one, or copy one to start from."""
    if copy is not None and (name is None or models or losses):
        raise UsageError("--copy copies a recipe, by its name: edgekd recipes NAME --copy FILE")
    if losses:
        require("train", purpose="listing losses")
        tables.print_losses(common) if name is None else tables.print_loss(common, name)
        return
    if models:
        require("train", purpose="building models")
        tables.print_models(common)
        return
    if name is None:
        tables.print_recipes(common)
        return
    path = assets.find("export", "recipes", name)
    text = path.read_text(encoding="utf-8")
    if copy is None:
        if common.as_json:
            common.print_json({"name": name, "toml": text})
        else:
            sys.stdout.write(text)
        return
    if copy.exists():
        raise UsageError(f"{copy} is there already; choose another name, or delete it first")
    with explain_os_errors(copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")
    if common.as_json:
        common.print_json({"name": name, "path": str(copy)})
        return
    common.say(f"wrote {copy}; run it with: {tables.command('distill-and-export', copy)}")


def init(
    common: Common,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
) -> None:
    """Scaffold a project with your own data, teacher and student, a recipe, and one passing test."""
    from edgekd.scaffold import write_project

    paths = write_project(folder)
    if common.as_json:
        common.print_json({"folder": str(folder), "files": [str(path) for path in paths]})
        return
    for path in paths:
        common.say(str(path))
    tables.print_next(
        common,
        shlex.join(["cd", str(folder)]),
        "edgekd distill-and-export recipe.toml",
        "python -m pytest tests",
    )


def report(
    common: Common,
    source: Annotated[
        Path, typer.Argument(metavar="RUN|RESULT.json", help="A run folder, or a result of `benchmark --out`.")
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Write the page here.")] = None,
    md: Annotated[Path | None, typer.Option("--md", help="Write Markdown here.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV here.")] = None,
) -> None:
    """Make the report of a run or a benchmark: one self-contained page, Markdown, or CSV.

    Without options: report.html and report.md beside the results.
    """
    if html is not None or (md is None and csv is None):
        require("report", purpose="report.html")
    from edgekd import report as reports
    from edgekd.files import write_text
    from edgekd.results import read_results

    places = [place for place in (html, md, csv) if place is not None]
    if len(set(places)) < len(places):
        raise UsageError("--html, --md and --csv name the same file; give each its own")
    results = read_results(source)
    makers = {html: reports.to_html, md: reports.to_markdown, csv: reports.to_csv}
    written = [write_text(place, make(results)) for place, make in makers.items() if place is not None]
    if not written:
        written = reports.write_report(results, source if source.is_dir() else source.parent)
    if common.as_json:
        common.print_json({"files": [str(item) for item in written]})
        return
    for item in written:
        common.say(f"wrote {item}")
