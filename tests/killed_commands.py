"""`python killed_commands.py PLAN`: edgekd's command line, each time in a fork of this process, which SIGKILL may end.

The plan is JSON, [[args, death], ...], run one after the other; the answer is JSON too, [[exit code, stderr], ...]. A
death is [file, writes, steps]: so many steps of an optimizer after the file was put in its place for so many times.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from command_server import IMPORTED, run
from torch.optim.optimizer import register_optimizer_step_post_hook

Death = tuple[str, int, int]


def arm(death: Death) -> None:
    """Make this process kill itself at that moment."""
    name, writes, steps = death
    replace = Path.replace

    def die_in_time() -> None:
        if writes == 0 and steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def replacing(self: Path, target: Path) -> Path:
        nonlocal writes
        done = replace(self, target)
        if str(target).endswith(name):
            writes -= 1
            die_in_time()
        return done

    def step(*_: object) -> None:
        nonlocal steps
        if writes == 0:
            steps -= 1
            die_in_time()

    Path.replace = replacing  # type: ignore[method-assign, assignment]
    register_optimizer_step_post_hook(step)


def attempt(args: list[str], death: Death | None) -> tuple[int, str]:
    """The exit code of a command, negative where a signal ended it, and what it told."""
    with tempfile.TemporaryFile() as err:
        process = os.fork()
        if process == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(err.fileno(), 2)
            if death is not None:
                arm(death)
            sys.argv = ["edgekd", *args]
            code = run()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(process, 0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), err.read().decode()


def main() -> None:
    """Run the plan and print what came of it."""
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("torch._dynamo")  # optimizers import it at their first step, which would cost every fork
    print(json.dumps([attempt(args, death and tuple(death)) for args, death in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
