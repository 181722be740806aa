"""How several processes end as one: whatever happens in which of them, one says why.

A process that fails writes why on the board, a key-value store of the launcher (or of process 0), before it closes its
connections; those who then lose it find the reason there. Nobody has to be asked, so nobody can hang.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch.distributed as dist

from edgekd.distill.distribution import World
from edgekd.errors import AnswerIsNo, EdgekdError, InputRefused, MissingHere, ProcessLost, StageFailed, UsageError

_FAILURE, _HEARD, _SAID = "edgekd/failure", "edgekd/heard", "edgekd/said"
_PATIENCE = timedelta(seconds=10)
_KINDS: dict[int, type[EdgekdError]] = {
    kind.exit_code: kind for kind in (AnswerIsNo, UsageError, InputRefused, MissingHere, StageFailed, EdgekdError)
}


class Told(KeyboardInterrupt):
    """The launcher tells this process to end: because another one has died, or because it was told itself."""


@dataclass(frozen=True)
class Failure:
    """Why process `rank` failed, and with which exit code."""

    rank: int
    code: int
    text: str


class Board:
    """What the processes leave for one another. A board that is gone says nothing and takes nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        self._store = dist.TCPStore(host, port, is_master=False, timeout=_PATIENCE)  # type: ignore[attr-defined]

    def write(self, failure: Failure) -> None:
        """The first failure counts."""
        with suppress(RuntimeError):
            self._store.compare_set(_FAILURE, "", json.dumps(asdict(failure)))

    def read(self) -> Failure | None:
        """The first failure, if there was one."""
        try:
            if not self._store.check([_FAILURE]):
                return None
            return Failure(**json.loads(self._store.get(_FAILURE)))
        except RuntimeError:
            return None

    def confirm(self) -> None:
        """Process 0 knows of the failure, and will say so."""
        with suppress(RuntimeError):
            self._store.set(_HEARD, "1")

    def wait(self) -> None:
        """Until process 0 knows of the failure, or for a while."""
        with suppress(RuntimeError):
            self._store.wait([_HEARD], _PATIENCE)

    def speaks(self) -> bool:
        """Whether this is the first process that asks: of several who have lost another, one says so."""
        try:
            return int(self._store.add(_SAID, 1)) == 1
        except RuntimeError:
            return True


@contextmanager
def one_ending(world: World, board: Board) -> Iterator[None]:
    """Around everything that the processes do together.

    Process 0 raises what went wrong, wherever it did. The others end silently with the same exit code: they raise
    `SystemExit`. When a process was killed, one of those that are left raises `ProcessLost`.
    """
    before = signal.signal(signal.SIGTERM, _tell)
    try:
        yield
    except (ProcessLost, KeyboardInterrupt) as error:
        _be_deaf()
        failure = board.read()
        if failure is not None and world.leads:
            board.confirm()
            kind = _KINDS.get(failure.code, EdgekdError)
            raise kind(f"process {failure.rank} of {world.size}: {failure.text}") from error
        if failure is not None:
            raise SystemExit(failure.code) from error
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Told):
            if world.leads:
                raise
            raise SystemExit(130) from error
        if not board.speaks():
            raise SystemExit(ProcessLost.exit_code) from error
        if isinstance(error, ProcessLost):
            raise
        raise ProcessLost(
            f"process {world.rank} of {world.size} was told to end: another one has died (was it killed, or is its "
            "machine out of memory?), or the launcher was told to end. What was finished is kept: run the same command "
            "again to go on"
        ) from error
    except EdgekdError as error:
        _be_deaf()
        board.write(Failure(world.rank, error.exit_code, str(error)))
        if world.leads:
            board.confirm()
            raise
        _leave(world, board)
        raise SystemExit(error.exit_code) from error
    except Exception as error:  # a bug: it is told, and shows itself where it is
        _be_deaf()
        board.write(Failure(world.rank, EdgekdError.exit_code, f"{type(error).__name__}: {error}"))
        if world.leads:
            board.confirm()
        else:
            _leave(world, board)
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is _tell:
            signal.signal(signal.SIGTERM, before)


def _tell(number: int, frame: FrameType | None) -> Any:
    raise Told


def _be_deaf() -> None:
    """What remains is to say why: the launcher, which ends all when one has ended, must not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _leave(world: World, board: Board) -> None:
    """Wake those who wait for this process, and stay until process 0 knows."""
    if world.control is None:
        dist.destroy_process_group()
    board.wait()
