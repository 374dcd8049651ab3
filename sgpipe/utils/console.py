"""Where commands print: results on standard output, what happens meanwhile on standard error.

What a run says while it works: a live bar on a terminal, plain lines anywhere else.

Running a function of a module as a command: `python -m sgpipe.miniworld.NAME`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from sgpipe.errors import EngineError, UserError

QUIET = "SGPIPE_QUIET"  # in the environment, so that workers know it, too


def output() -> Console:
    """For results."""
    return Console(markup=False, highlight=False)


def errors() -> Console:
    """For what must be seen, even with --quiet."""
    return Console(markup=False, highlight=False, stderr=True)


def progress() -> Console:
    """For progress, notes and hints: silent with `sgpipe --quiet …`."""
    return Console(markup=False, highlight=False, stderr=True, quiet=QUIET in os.environ)


_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int, Mapping[str, int]], None]


class Progress:
    """Messages and the progress of images, on standard error."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, message: str) -> None:
        """One line about what happens now."""
        self.console.print(message, style="dim", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def images(self, total: int | None, work: str = "labelling") -> Iterator[Advance]:
        """A bar over `total` images (None: nobody knows); the value called with (images, counts) when some are done."""
        if self.console.is_terminal:
            yield from self._bar(total, work)
        else:
            yield from self._lines(total)

    def _bar(self, total: int | None, work: str) -> Iterator[Advance]:
        columns = (
            TextColumn(work),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
        )
        meter = Meter(total)
        with RichProgress(*columns, console=self.console) as bar:
            task = bar.add_task(work, total=total, rate="", note="")

            def advance(images: int, counts: Mapping[str, int]) -> None:
                meter.add(images, counts)
                bar.update(task, advance=images, rate=meter.rate_text, note=meter.note)

            yield advance

    def _lines(self, total: int | None) -> Iterator[Advance]:
        meter, last = Meter(total), time.monotonic()

        def advance(images: int, counts: Mapping[str, int]) -> None:
            nonlocal last
            meter.add(images, counts)
            if meter.done == total or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                done = f"{meter.done} images" if total is None else f"{meter.done}/{total} images"
                left = f"{meter.left_text} left, " if total is not None else ""
                self.say(f"{done}, {meter.rate_text}, {left}{meter.note}")

        yield advance


class Meter:
    """Rate and time left of a count that grows."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.done = 0
        self.relations = 0
        self.errors = 0
        self.began = time.monotonic()

    def add(self, images: int, counts: Mapping[str, int]) -> None:
        self.done += images
        self.relations += counts.get("relations", 0)
        self.errors += counts.get("errors", 0)

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return self.done / max(time.monotonic() - self.began, 1e-9)

    @property
    def rate_text(self) -> str:
        return f"{self.rate:.1f} images/s" if self.rate >= 1 else f"{1 / max(self.rate, 1e-9):.1f} s/image"

    @property
    def left_text(self) -> str:
        seconds = int(((self.total or self.done) - self.done) / max(self.rate, 1e-9))
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"

    @property
    def note(self) -> str:
        errors = f", {self.errors} errors" if self.errors else ""
        return f"{self.relations} relations{errors}"


_UNFINISHED, _BAD_INPUT, _INTERRUPTED = 1, 2, 130


def run_command(function: Callable[..., None]) -> None:
    """Run it with the options of the command line; an error that a user is meant to see becomes one line."""
    try:
        typer.run(function)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_UNFINISHED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
