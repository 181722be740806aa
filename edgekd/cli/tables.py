"""What the verbs print on stdout: tables, paths, the next commands to type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from edgekd import assets
from edgekd.cli.options import Common

if TYPE_CHECKING:
    from edgekd.doctor import Diagnosis
    from edgekd.pipeline import Plan, RunResult

COLOURS = {"met": "green", "missed": "red", "unproven": "yellow", "VALID": "green", "INVALID": "yellow"}


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """A table whose first `left` columns are texts and the others figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def command(*words: object) -> str:
    """`edgekd verify 'my run/student.edgekd'`: as it can be pasted into a shell."""
    return shlex.join(["edgekd", *map(str, words)])


def print_next(common: Common, *commands: str) -> None:
    """The commands that a user would type next."""
    common.out.print("[bold]next[/bold]")
    for text in commands:
        common.out.print(f"  [cyan]{escape(text)}[/cyan]", soft_wrap=True)


def print_results_table(common: Common, results: Mapping[str, Any]) -> None:
    """The comparison table of a run or a benchmark."""
    from edgekd.report import table_rows

    rows = table_rows(results)
    if rows:
        columns = list(rows[0])
        common.out.print(plain_table(columns, [[str(row[column]) for column in columns] for row in rows]))
    for item in results.get("candidates", ()):
        if "timed_on" in item:
            common.say(f"{item['id']}: timed on {item['timed_on']}")
    if len(parts := results.get("parts", ())) > 1:
        told = ", ".join(f"{part['launches']} launches from {part['started']}" for part in parts)
        common.say(f"measured in {len(parts)} parts: {told}")
    verdict = results["verdict"]
    colour = COLOURS[verdict["value"]]
    common.out.print(f"benchmark [{colour}]{verdict['value']}[/{colour}]", end="")
    common.out.print(
        escape("".join(f"\n  {text}" for text in (*verdict["reasons"], *verdict["advice"]))), soft_wrap=True
    )


def print_profiles(common: Common, results: Mapping[str, Any]) -> None:
    """The costliest operators of each candidate."""
    for row in results["rows"]:
        found = row.get("profile")
        if found is None:
            common.say(f"{row['candidate']}: no profile" + ("" if "error" in row else "; its runtime cannot tell"))
            continue
        common.say(f"{row['candidate']}: {found['total_ms']:.4g} ms in operators, median of {found['calls']} calls")
        cells = [
            (item["kind"], item["name"], f"{item['ms']:.4g}", f"{item['share']:.1%}") for item in found["operators"]
        ]
        common.out.print(plain_table(("operator", "node", "ms", "share"), cells, left=2))


def print_loadgen(common: Common, results: Mapping[str, Any]) -> None:
    """What MLPerf LoadGen says, and what we say of the same latencies."""
    from edgekd.device.loadgen import JUDGED_BY

    for row in results["rows"]:
        for found in row.get("loadgen", ()):
            name, verdict = found["scenario"], "VALID" if found["valid"] else "INVALID"
            if name == "offline":
                said = f"{found['samples_per_s']:,.0f} samples/s"
            else:
                percent = f"{100 * JUDGED_BY[name]:g}"
                ours = found["edgekd"]["percentiles_ns"][percent]
                said = f"p{percent} {found['percentiles_ns'][percent] / 1e6:.4g} ms (by edgekd {ours / 1e6:.4g})"
            early = found["early_stopping_ns"]
            proven = "" if early is None else f", proven within {early / 1e6:.4g} ms"
            reasons = "".join(f"; {text.strip()}" for text in found["reasons"] if text.strip())
            common.say(f"{row['candidate']}: LoadGen {name} {verdict}, {said}{proven}{reasons}")


def print_run(common: Common, run: RunResult) -> None:
    """The end of distill-and-export."""
    from edgekd.results import find_results

    described = run.results["run"]
    if not run.worked:
        common.say(f"nothing changed: every stage of {run.path} is done")
    print_results_table(common, run.results)
    for item in described["limits"]:
        colour = COLOURS[item["verdict"]]
        common.out.print(f"limit [{colour}]{item['verdict']:<8}[/{colour}] {escape(limit_line(item))}", soft_wrap=True)
    common.out.print(
        f"\n[bold]{escape(run.chosen)}[/bold] was chosen on validation; test was read once, for this table"
    )
    for label, path in (("bundle", run.bundle), ("report", run.report), ("numbers", find_results(run.path))):
        common.out.print(f"  {label:<8} {escape(str(path))}", soft_wrap=True)
    print_next(
        common,
        command("verify", run.bundle),
        command("benchmark", run.bundle),
        command("inspect", run.bundle),
    )


# What may help against a limit that is missed.
ADVICE = {
    "size_kb": "size_kb: quantize.variants with int8 or int4_weight_only, or a smaller student",
    "latency_p90_ms": "latency_p90_ms: a smaller student, int8, or more benchmark.threads",
    "peak_memory_mb": "peak_memory_mb: int8, or a smaller student",
    "accuracy_drop_points": (
        "accuracy_drop_points: quantize.variants with mixed or int8_qat, quantize.calibration = entropy or mse, more "
        "distill.epochs, a larger student"
    ),
}


def limit_lines(described: Mapping[str, Any], *, fail_unproven: bool) -> list[str]:
    """One line for each limit that a variant does not meet, every variant in turn; those that were not chosen because
    they are not proven faster say so."""
    bad = ("missed", "unproven") if fail_unproven else ("missed",)
    rows = [
        (name, item["verdict"], limit_line(item))
        for name, verdicts in described["all_limits"].items()
        for item in verdicts
        if item["verdict"] in bad
    ]
    rows += [(name, "not chosen", reason) for name, reason in described.get("held_back", {}).items()]
    first = max((len(row[0]) for row in rows), default=0)
    second = max((len(row[1]) for row in rows), default=0)
    return [f"{name:<{first}}  {verdict:<{second}}  {text}" for name, verdict, text in rows]


def limit_line(item: Mapping[str, Any]) -> str:
    """`size_kb <= 40: 12.3 kB`, with interval, overshoot and what a proof takes."""
    from edgekd.stages.choosing import UNITS

    unit, value = UNITS[item["name"]], item["value"]
    if value is None:
        return f"{item['name']} <= {item['limit']:g} {unit}: it could not be measured"
    low, high = item["interval"]
    text = f"{item['name']} <= {item['limit']:g}: {value:.3g} {unit}"
    if low != high:
        text += f" [{low:.3g}, {high:.3g}]"
    if item["verdict"] == "missed":
        text += f", missed by {value - item['limit']:.3g} {unit}"
    if item["verdict"] == "unproven" and "needed_n" in item:
        what = "timed calls" if item["name"] == "latency_p90_ms" else "validation samples"
        text += f", n too small: a proof takes about {item['needed_n']:,} {what}"
    return text


def print_plan(common: Common, plan: Plan) -> None:
    """The end of --dry-run."""
    if common.as_json:
        common.print_json(
            {
                "run": str(plan.path),
                "stages": list(plan.rows),
                "seconds": plan.seconds,
                "disk_mb": plan.disk_mb,
                "free_mb": plan.free_mb,
                "cache_mb": plan.cache_mb,
            }
        )
        return
    rows = [(row["stage"], row["state"], f"{row['seconds']:.1f}" if row["seconds"] else "") for row in plan.rows]
    common.out.print(plain_table(("stage", "state", "about s"), rows, left=2))
    common.say(
        f"about {plan.seconds:.0f} s, {plan.disk_mb:.1f} MB in {plan.path} ({plan.free_mb / 1000:.0f} GB free)"
        f"{f', {plan.cache_mb:.1f} MB of answers in the teacher cache' if plan.cache_mb else ''}; nothing was written"
    )


def print_training(common: Common, path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """One line per trained model."""
    rows = [
        (
            name,
            f"{result['best']:.4f}",
            f"{result['last']:.4f}",
            "" if result["best_epoch"] is None else f"{result['best_epoch']} of {result['epochs']}",
            "" if result["parameters"] is None else f"{result['parameters']:,}",
            "" if result["macs"] is None else f"{result['macs']:,}",
        )
        for name, result in results.items()
        if "best" in result
    ]
    columns = ("model", "validation best", "last", "best epoch", "parameters", "MACs")
    common.out.print(plain_table(columns, rows))
    common.say(f"weights: {path}/NAME/weights.safetensors")


def after_masked_lm(path: Path, folder: str) -> str:
    """The command that goes on from masked language models: their folders, as teacher and student of a task."""
    teacher, student = path / "teacher" / folder, path / "student" / folder
    steps = f'preprocess.steps=[{{op="tokenize",file="{student}",max_length=64}},{{op="trim"}}]'
    return command(
        "distill-and-export",
        "sst2",
        *("--set", steps, "--set", f"teacher.model=hf:{teacher}", "--set", f'student={{model="hf:{student}"}}'),
    )


def print_recipes(common: Common) -> None:
    """The shipped recipes with their descriptions."""
    from edgekd import toml

    rows = []
    for name in assets.names("export", "recipes"):
        keys = toml.loads(assets.find("export", "recipes", name).read_text(encoding="utf-8"))
        rows.append({"name": name, "task": keys["task"], "description": keys["description"]})
    if common.as_json:
        common.print_json(rows)
        return
    cells = [(row["name"], row["task"], row["description"]) for row in rows]
    common.out.print(plain_table(("recipe", "task", "what"), cells, left=3))
    print_next(
        common, "edgekd recipes digits", "edgekd recipes digits --copy my.toml", "edgekd distill-and-export digits"
    )


def print_models(common: Common) -> None:
    """The built-in models with their sizes, at a typical input and ten outputs."""
    from edgekd.distill.models import TYPICAL_INPUT, typical_cost

    rows = []
    for name, shape in TYPICAL_INPUT.items():
        parameters, macs = typical_cost(name, num_outputs=10)
        rows.append({"model": name, "input_shape": list(shape), "parameters": parameters, "macs": macs})
    if common.as_json:
        common.print_json(rows)
        return
    cells = [
        (name, "x".join(map(str, shape)), f"{row['parameters']:,}", f"{row['macs']:,}")
        for (name, shape), row in zip(TYPICAL_INPUT.items(), rows)
    ]
    common.out.print(plain_table(("model", "input", "parameters", "MACs"), cells, left=2))
    common.say("10 outputs, batch 1; use one as student.model or teacher.model, or your own package.module:function")


def print_losses(common: Common) -> None:
    """The losses and adapters that a recipe's terms may name."""
    from edgekd.distill import catalogue

    losses, adapters = catalogue.losses(), catalogue.adapters()
    if common.as_json:
        common.print_json(
            {
                part: [choice.to_json() for choice in found]
                for part, found in (("losses", losses), ("adapters", adapters))
            }
        )
        return
    cells = [
        (
            loss.name,
            ", ".join(loss.needs) or "-",
            "" if loss.usual_weight is None else f"{loss.usual_weight:g}",
            loss.adapter or "",
        )
        for loss in losses
    ]
    common.out.print(plain_table(("loss", "needs", "usual weight", "its adapter"), cells, left=4))
    others = [(adapter.name, _settings(adapter.options)) for adapter in adapters]
    common.out.print(plain_table(("adapter", "adapter_options"), others, left=2))
    common.say("a term without a weight has 1; formula, shapes, source and options of one:")
    print_next(common, command("recipes", "--losses", "kd"))


def print_loss(common: Common, name: str) -> None:
    """One loss or adapter: what it computes, and how a recipe asks for it."""
    from edgekd.distill import catalogue

    choice = catalogue.one(name)
    if common.as_json:
        common.print_json(choice.to_json())
        return
    common.say(choice.description)
    lines = ["", "[[distill.terms]]"]
    if choice.kind == "adapter":
        lines += ['loss = "..."', f'adapter = "{name}"']
        lines += [f"adapter_options = {{{_settings(choice.options)}}}"] if choice.options else []
    else:
        lines += [f'loss = "{name}"']
        lines += [] if choice.usual_weight is None else [f"weight = {choice.usual_weight:g}"]
        lines += [f"options = {{{_settings(choice.options)}}}"] if choice.options else []
    common.say("\n".join(lines))


def _settings(options: Mapping[str, Any]) -> str:
    """`temperature = 4.0, by = "confidence"`: as a recipe writes it."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())


def print_diagnosis(common: Common, diagnosis: Diagnosis) -> None:
    """The end of `doctor`."""
    machine = diagnosis.machine
    common.say(
        f"edgekd {diagnosis.edgekd}, Python {diagnosis.python}, {machine['cpu']}, {machine['cores_allowed']} cores"
    )
    cells: list[tuple[str, ...]]
    cells = [(item.name, "works" if item.works else "-", item.detail) for item in diagnosis.runtimes]
    common.out.print(plain_table(("runtime", "", "detail"), cells, left=3))
    cells = [(item.name, item.purpose, "missing" if item.missing else "installed") for item in diagnosis.extras]
    common.out.print(plain_table(("extra", "for", ""), cells, left=3))
    for item in diagnosis.extras:
        if item.missing:
            common.say(f"{item.name} lacks {', '.join(item.missing)}: {item.install}")
    cells = [(item.name, item.version or "-") for item in diagnosis.packages]
    common.out.print(plain_table(("package", "version"), cells, left=2))
    cells = [(item.name, item.value) for item in diagnosis.noise]
    common.out.print(plain_table(("noise", "now"), cells, left=2))
    for source in diagnosis.noise:
        if source.advice:
            common.say(f"{source.name}: {source.advice}")
    for problem in diagnosis.problems:
        common.out.print(f"[yellow]problem:[/yellow] {escape(problem)}", soft_wrap=True)
