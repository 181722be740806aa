"""Draws a run's progress on stderr: a bar for the stage at work, a line for each that ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgekd.cli.options import Common


class Bars:
    """A listener (edgekd.run_folder) that draws bars on a terminal and plain lines elsewhere."""

    def __init__(self, common: Common, console: Console, progress: Progress) -> None:
        self._common = common
        self._console = console
        self._progress = progress
        self._task: TaskID | None = None
        self._stage = ""
        self._warned: set[str] = set()

    def stage_started(self, name: str, index: int, total: int) -> None:
        """A new bar, without a length yet."""
        self._stage = f"[{index + 1}/{total}] {name}"
        self._task = self._progress.add_task(escape(self._stage), total=None, numbers="")
        self._progress.refresh()

    def stage_skipped(self, name: str) -> None:
        """Only worth a line with -v."""
        if self._common.verbose:
            self._console.print(f"  [dim]· {escape(name)}: unchanged[/dim]")

    def step(self, text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._task is not None:
            said = "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            label = (
                f"{escape(self._stage)} [dim]{escape(text)}[/dim]" if text not in self._stage else escape(self._stage)
            )
            self._progress.update(
                self._task, completed=done, total=total, description=label, numbers=escape(said), refresh=True
            )

    def restart_clock(self) -> None:
        """What comes now takes another time per step: the time left is told from here on."""
        if self._task is not None:
            self._progress.reset(self._task)

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """The bar becomes a line."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._console.print(
            f"  [green]✓[/green] {name:<14} {escape(summary)} [dim]{seconds:.1f} s[/dim]", soft_wrap=True
        )

    def warn(self, text: str) -> None:
        """Each warning once."""
        if text not in self._warned:
            self._warned.add(text)
            self._console.print(f"  [yellow]![/yellow] {escape(text)}", soft_wrap=True)


@contextmanager
def bars(common: Common) -> Iterator[Bars]:
    """A listener that draws on stderr while the block runs."""
    console = common.err
    with Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[numbers]}[/dim]"),
        console=console,
        # Redrawn when a step is told, never by a thread of its own: that would disturb what is measured meanwhile.
        auto_refresh=False,
        transient=True,
        disable=common.quiet or not console.is_terminal,
    ) as progress:
        yield Bars(common, console, progress)


@contextmanager
def counting(common: Common, title: str) -> Iterator[Counter]:
    """A single bar for a verb that has no stages; gives the callback (text, done, total)."""
    with bars(common) as listener:
        listener.stage_started(title, 0, 1)
        yield Counter(listener)


class Counter:
    """The callback of `counting`; `warn` passes a warning on."""

    def __init__(self, listener: Bars) -> None:
        self._listener = listener
        self._text = ""
        self.started = time.monotonic()

    def __call__(self, text: str, done: int, total: int) -> None:
        if text != self._text:
            self._text = text
            self._listener.restart_clock()
        self._listener.step(text, done, total, {})

    def warn(self, text: str) -> None:
        """Pass a warning on."""
        self._listener.warn(text)
