"""All verbs in one place: what each is called and which function answers it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from edgekd.cli import (
    app_verbs,
    bundle_verbs,
    cache_verbs,
    compare_verbs,
    convert_verbs,
    engine_verbs,
    measure_verbs,
    model_verbs,
    run_verbs,
)
from edgekd.cli.options import run_app, verb
from edgekd.device.isolation import wait_asleep
from edgekd.version import __version__

app = typer.Typer(
    name="edgekd",
    help="A teacher goes in; a small ONNX student, proven on the target device, comes out.",
    epilog="Begin with: edgekd distill-and-export    (handwritten digits, no download, about a minute)",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MAIN, PARTS, LOOK = "The main job", "Its stages alone", "Look and check"
VERBS = (
    (MAIN, "distill-and-export", run_verbs.distill_and_export),
    (MAIN, "recipes", run_verbs.recipes),
    (MAIN, "init", run_verbs.init),
    (PARTS, "distill", run_verbs.distill),
    (PARTS, "export", model_verbs.export),
    (PARTS, "quantize", model_verbs.quantize),
    (PARTS, "verify", model_verbs.verify),
    (PARTS, "bundle", bundle_verbs.bundle),
    (PARTS, "sign", bundle_verbs.sign),
    (PARTS, "convert", convert_verbs.convert),
    (PARTS, "embed", app_verbs.embed),
    (PARTS, "benchmark", measure_verbs.benchmark),
    (PARTS, "compare", compare_verbs.compare),
    (PARTS, "report", run_verbs.report),
    (PARTS, "cache", cache_verbs.cache),
    (LOOK, "predict", model_verbs.predict),
    (LOOK, "inspect", model_verbs.inspect),
    (LOOK, "taps", engine_verbs.taps),
    (LOOK, "runner", measure_verbs.runner),
    (LOOK, "doctor", measure_verbs.doctor),
)
for panel, name, function in VERBS:
    app.command(name, rich_help_panel=panel)(verb(function))


def show_version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        typer.echo(f"edgekd {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """A teacher goes in; a small ONNX student, proven on the target device, comes out."""


def main() -> None:
    """The entry point of the command `edgekd`."""
    wait_asleep(os.environ)
    run_app(app)
