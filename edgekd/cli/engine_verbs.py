"""Verbs around the distillation engine: taps."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekd.cli import tables
from edgekd.cli.model_verbs import parse_json
from edgekd.cli.options import Common
from edgekd.doctor import require
from edgekd.errors import UsageError


def taps(
    common: Common,
    model: Annotated[
        str,
        typer.Argument(
            help="A run folder, a built-in (edgekd recipes --models), torchvision:NAME, package.module:function; with "
            "--recipe also student or teacher."
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A recipe: its samples, and its own models as student and teacher.")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="1,28,28", help="Shape of one sample, without the batch.")
    ] = None,
    num_outputs: Annotated[
        int, typer.Option("--num-outputs", min=1, max=10_000_000, help="Classes or targets of the model.")
    ] = 10,
    args: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="Arguments of the model's function.")
    ] = None,
) -> None:
    """What can be tapped in a model: the path of every module, what it gives, how many parameters it has.

    A path is a term's student_tap or teacher_tap; path@input is the module's input, path#1 one of several outputs.

    Examples:

      edgekd taps cnn_s --input 1,8,8

      edgekd taps teacher --recipe digits

      edgekd taps runs/digits
    """
    require("train", purpose="building models")
    from edgekd.stages.tapping import tap_tables

    arguments = parse_json(args, option="--args")
    if not (arguments is None or isinstance(arguments, dict)):
        raise UsageError(f"--args {args}: expected a JSON object, for example '{{\"width\": 8}}'")
    found = tap_tables(model, recipe=recipe, input_shape=input_shape, num_outputs=num_outputs, args=arguments)
    if common.as_json:
        common.print_json({"models": [table.to_json() for table in found]})
        return
    for table in found:
        name = table.name if table.name == table.reference else f"{table.name} ({table.reference})"
        common.say(f"{name}, samples of {_sizes(table.input_shape)}")
        cells = [
            (
                row.path,
                row.kind,
                ", ".join(map(_sizes, row.outputs)) if row.calls else "does not run",
                f"{row.parameters:,}",
            )
            for row in table.rows
        ]
        common.out.print(tables.plain_table(("path", "module", "output", "parameters"), cells, left=3))
    common.say("a path is a student_tap or teacher_tap of [[distill.terms]]; PATH@input is the module's input")


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
