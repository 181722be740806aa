"""Every error that edgekd raises on purpose, and the exit code that each one becomes.

    EdgekdError
    ├── AnswerIsNo (1)         limit missed, parity or self-test failed, INVALID under --strict
    ├── UsageError (2)         wrong argument or option; also a ValueError
    │   └── RecipeError        wrong key or value in a recipe
    ├── InputRefused (3)       missing, corrupt, tampered or too new; also a ValueError
    │   ├── DataError          a data set or sample
    │   ├── BundleError        a bundle
    │   └── ModelError         a model file, checkpoint or graph
    ├── MissingHere (4)        this machine lacks something
    │   ├── MissingExtra       a Python package (the message holds the pip command)
    │   └── StorageError       no space, no permission, locked
    └── StageFailed (5)        a stage stopped; the run can be resumed
        ├── Diverged           the loss became NaN or infinite
        └── ProcessLost        another process of the same training has ended

Every message says what was found, what was expected and what to do next. Users never see a traceback for
these (unless --debug); any other exception is a bug of ours and exits with 70.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike

# A path that cannot be, whatever the permissions: a file where a folder is wanted, the other way round, too long.
_NO_SUCH_PLACE = frozenset(
    {
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EBUSY,
        errno.ENOENT,
        errno.EINVAL,
    }
)


class EdgekdError(Exception):
    """Base of all errors that a user can cause or cure."""

    exit_code = 70


class AnswerIsNo(EdgekdError):
    """The work was done and the answer is no: a limit missed, parity or a self-test failed."""

    exit_code = 1


class UsageError(EdgekdError, ValueError):
    """A wrong argument, option or combination of them."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be run: unknown key, wrong value, contradiction."""


class InputRefused(EdgekdError, ValueError):
    """An input that is missing, corrupt, tampered with or too new."""

    exit_code = 3


class DataError(InputRefused):
    """A data set, image or array that cannot be used."""


class BundleError(InputRefused):
    """A bundle that must not be opened."""


class ModelError(InputRefused):
    """A model file, checkpoint, reference or graph that cannot be used."""


class MissingHere(EdgekdError):
    """This machine lacks something that the request needs."""

    exit_code = 4


class MissingExtra(MissingHere, ImportError):
    """A Python package is not installed; the message holds the exact pip command."""

    def __init__(self, package: str, extra: str, *, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'edgekd[{extra}]'"
        )


class StorageError(MissingHere):
    """No space, no permission, or a folder that another process holds."""


class StageFailed(EdgekdError):
    """A stage of a run stopped. What was finished is kept; running again resumes."""

    exit_code = 5


class Diverged(StageFailed):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class ProcessLost(StageFailed):
    """Another process of the same training has ended; the last checkpoint is kept."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'temperature'? Known: ...` for an unknown `name`; only the list if nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else 'none'}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch raises a RuntimeError that says so, on the CPU and on a GPU."""
    texts = ("allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    )


@contextmanager
def explain_os_errors(path: str | PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusals around `path` into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left while writing {path}; free some space or choose another folder, then run the "
                "same command again: finished work is kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"cannot write {path}: {error.strerror}; choose a place that you may write to"
            ) from error
        if error.errno in _NO_SUCH_PLACE:
            raise UsageError(
                f"cannot write {path}: {error.strerror}; check the path: is there a file where a folder should be?"
            ) from error
        raise StorageError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
