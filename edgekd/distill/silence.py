"""Exporters that talk: to stdout, to stderr, through their own log handlers and through warnings."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def silence(*packages: str) -> Iterator[None]:
    """Keep the talk of `packages` off the terminal: their deprecations, their logs, and what they print.

    What was printed meanwhile (by the model's own code too) goes to this module's log at level debug.
    """

    def not_below_critical(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL

    # Each of these libraries' loggers has a handler of its own, bound to the stderr of import time.
    known = [(name, logging.getLogger(name)) for name in logging.root.manager.loggerDict]
    loggers = [logger for name, logger in known if name.partition(".")[0] in packages]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        for category in (DeprecationWarning, FutureWarning):
            # copyreg: torch 2.13 copies its own deprecated tree specs.
            names = "|".join((*packages, "copyreg"))
            warnings.filterwarnings("ignore", category=category, module=rf"({names})(\.|$)")
        # Two inputs with one batch axis: that is what was asked for.
        warnings.filterwarnings("ignore", category=UserWarning, message=r"# The axis name: \w+ will not be used")
        for handler in handlers:
            handler.addFilter(not_below_critical)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(not_below_critical)
            if printed.getvalue():
                _log.debug("printed while exporting:\n%s", printed.getvalue())
