"""Options that every verb has, and how errors become exit codes."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from edgekd.errors import EdgekdError, UsageError

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings, only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also say what was skipped and why.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of everything random (default: that of the recipe, or 0).")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads to compute with (default: all cores to train, 1 to run a model)."),
]

COMMON: dict[str, Any] = {
    "as_json": (Json, False),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "debug": (Debug, False),
    "seed": (Seed, None),
    "threads": (Threads, None),
}


@dataclass(frozen=True)
class Common:
    """The values of the options that every verb has, and the two consoles."""

    as_json: bool
    quiet: bool
    verbose: bool
    debug: bool
    seed: int | None
    threads: int | None

    @property
    def out(self) -> Console:
        """Results: stdout, coloured only on a terminal, as wide as the terminal or wide enough for a table."""
        return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 132)

    @property
    def err(self) -> Console:
        """Progress, warnings, logs: stderr."""
        return Console(stderr=True, highlight=False, quiet=self.quiet)

    def overrides(self, given: list[str] | None) -> list[str]:
        """`--set` values, with `--seed` as one of them."""
        return [*(given or []), *([] if self.seed is None else [f"seed={self.seed}"])]

    def print_json(self, value: Any) -> None:
        """One JSON object on stdout."""
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def say(self, text: str = "") -> None:
        """A line of the result, as it is: nothing in it is markup."""
        self.out.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        self.err.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the common options as keyword `common`, and its errors their exit codes."""

    @functools.wraps(function)
    def run(**values: Any) -> None:
        common = Common(**{name: values.pop(name) for name in COMMON})
        try:
            function(common=common, **values)
        except EdgekdError as error:
            if common.debug:
                raise
            stop(str(error), error.exit_code)

    signature = inspect.signature(function, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "common"]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in COMMON.items()
    ]
    parameters = [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *shared]
    # typer reads both; wraps() has copied the verb's own.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def stop(text: str, code: int) -> None:
    """Print an error and leave with its code."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)
    raise typer.Exit(code)


def run_app(app: typer.Typer) -> None:
    """Run the command line; every way out has its exit code, and only our own bugs show a traceback (with --debug)."""
    debug = "--debug" in sys.argv
    try:
        app()
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; what was finished is kept: run the same command again to go on")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (| head). Say nothing, and keep Python from saying it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except EdgekdError as error:
        if debug:
            raise
        sys.exit(error.exit_code)
    except Exception as error:  # the last line: a bug of ours must still end in one clear sentence
        if debug:
            raise
        Console(stderr=True, highlight=False).print(
            f"[bold red]this is a bug in edgekd:[/bold red] {escape(type(error).__name__)}: {escape(str(error))}\n"
            "Run the same command with --debug and report the traceback. What was finished is kept.",
            soft_wrap=True,
        )
        sys.exit(70)


def parse_pairs(text: str, *, option: str) -> dict[str, str]:
    """`k=v,k=v` as a dict. Raises `UsageError` on anything else."""
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = item.partition("=")
        if not sign or not key or not value:
            raise UsageError(f"{option} {text}: found '{item}', expected key=value pairs with commas between")
        pairs[key] = value
    return pairs
