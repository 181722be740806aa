"""Options that every verb has, and how errors become exit codes."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from edgekd.errors import EdgekdError, MissingHere, StageFailed, UsageError, is_out_of_memory

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no warnings, only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also say what was skipped and why.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random (default: that of the recipe, or 0)."),
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
        return Console(highlight=False, emoji=False, soft_wrap=False, width=None if sys.stdout.isatty() else 132)

    @property
    def err(self) -> Console:
        """Progress, warnings, logs: stderr."""
        return Console(stderr=True, highlight=False, emoji=False, quiet=self.quiet)

    def overrides(self, given: list[str] | None) -> list[str]:
        """`--set` values, with `--seed` as one of them."""
        return [*(given or []), *([] if self.seed is None else [f"seed={self.seed}"])]

    def print_json(self, value: Any) -> None:
        """One JSON object on stdout."""
        ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n")

    def say(self, text: str = "") -> None:
        """A line of the result, as it is: nothing in it is markup."""
        self.out.print(escape(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        self.err.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the common options as keyword `common`, and its errors their exit codes.

    A verb that has an option of such a name itself (several --threads) keeps its own, and `common` holds the default.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "common"]
    names = {parameter.name for parameter in own}
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in COMMON.items()
        if name not in names
    ]

    @functools.wraps(function)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in COMMON if name not in names}
        common = Common(**{name: given.get(name, default) for name, (_, default) in COMMON.items()})
        # Here and not in run_app: typer would swallow Ctrl-C, a closed pipe and the end of a file on the way there.
        with clear_ending(debug=common.debug):
            function(common=common, **values)
            sys.stdout.flush()

    parameters = [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *shared]
    # typer reads both; wraps() has copied the verb's own.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextmanager
def clear_ending(*, debug: bool) -> Iterator[None]:
    """Every way out of the block ends in one sentence and its exit code; with `debug` the traceback comes first."""
    try:
        yield
    except KeyboardInterrupt:
        # A second Ctrl-C, while threads and children end, kills instead of showing their tracebacks.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        complain("interrupted; what was finished is kept: run the same command again to go on", 130)
    except BrokenPipeError:
        # The reader of our output has gone (| head). Say nothing, and keep Python from saying it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except EdgekdError as error:
        show_traceback(debug)
        complain(f"[bold red]error:[/bold red] {escape(str(error))}", error.exit_code)
    except OSError as error:
        # What no verb foresaw, but the system said clearly: a path too long, a disk that fails, too many open files.
        show_traceback(debug)
        names = ": ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        complain(
            f"[bold red]error:[/bold red] {escape(names or type(error).__name__)}: "
            f"{escape(error.strerror or str(error))}; check the path, its permissions and the disk",
            MissingHere.exit_code,
        )
    except Exception as error:  # noqa: BLE001  the last line: a bug of ours must still end in one clear sentence
        show_traceback(debug)
        if is_out_of_memory(error):
            complain("[bold red]error:[/bold red] out of memory; take fewer or smaller samples", StageFailed.exit_code)
        complain(
            f"[bold red]this is a bug in edgekd:[/bold red] {escape(type(error).__name__)}: {escape(str(error))}\n"
            "Run the same command with --debug and report the traceback. What was finished is kept.",
            EdgekdError.exit_code,
        )


def show_traceback(debug: bool) -> None:
    """The traceback of the error at hand on stderr, if it was asked for."""
    if debug:
        traceback.print_exc()


def complain(text: str, code: int) -> NoReturn:
    """Print why it ends on stderr, and leave with the code."""
    with suppress(OSError):  # nobody may read stderr any more; the code still tells
        Console(stderr=True, highlight=False, emoji=False).print(text, soft_wrap=True)
    sys.exit(code)


def run_app(app: typer.Typer) -> None:
    """Run the command line. Being asked to end (SIGTERM) and a closed terminal (SIGHUP) are treated like Ctrl-C."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    # A terminal that knows no box-drawing characters gets their numbers, not an error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with clear_ending(debug="--debug" in sys.argv):
        for word in sys.argv[1:]:
            if not word.isprintable() and any("\ud800" <= character <= "\udfff" for character in word):
                raise UsageError(
                    f"the argument {word!a} is not text in {sys.getfilesystemencoding()}; "
                    "rename the file, or set LANG=C.UTF-8"
                )
        app()


def parse_pairs(text: str, *, option: str) -> dict[str, str]:
    """`k=v,k=v` as a dict. Raises `UsageError` on anything else."""
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = item.partition("=")
        if not sign or not key or not value:
            raise UsageError(f"{option} {text}: found '{item}', expected key=value pairs with commas between")
        pairs[key] = value
    return pairs
