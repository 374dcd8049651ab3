"""Printing: results go to standard output, progress and errors to standard error.

Progress is a live bar on a terminal and plain lines anywhere else. Rich is imported when something is printed, so that
commands start fast.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sgpipe.errors import EngineError, UserError, on_command_line

if TYPE_CHECKING:
    from rich.console import Console

QUIET = "SGPIPE_QUIET"  # an environment variable, so that worker processes see it, too

# Exit codes of every command. EXIT_FAILED: the work is not finished, or a check failed.
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_ALL_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


def output() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(markup=False, highlight=False)


def errors() -> Console:
    """The console for errors, which are printed even with --quiet."""
    from rich.console import Console

    return Console(markup=False, highlight=False, stderr=True)


def progress() -> Console:
    """The console for progress, notes and hints; `sgpipe --quiet …` silences it."""
    from rich.console import Console

    return Console(markup=False, highlight=False, stderr=True, quiet=QUIET in os.environ)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2,000 files"; `plural`: if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int, Mapping[str, int]], None]


class Progress:
    """Messages and the progress over images, on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or progress()

    def say(self, message: str) -> None:
        """Print one line about the current step."""
        self.console.print(message, style="dim", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def images(self, total: int | None, work: str = "labelling") -> Iterator[Advance]:
        """Show progress over `total` images (None: unknown); call the value with (images, counts) as they are done."""
        if self.console.is_terminal:
            yield from self._bar(total, work)
        else:
            yield from self._lines(total)

    def _bar(self, total: int | None, work: str) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

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
                done = count(meter.done, "image") if total is None else f"{meter.done}/{total} images"
                left = f"{meter.left_text} left, " if total is not None else ""
                self.say(f"{done}, {meter.rate_text}, {left}{meter.note}")

        yield advance


class Meter:
    """The rate of a growing count, and the time left."""

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
        errors = f", {count(self.errors, 'error')}" if self.errors else ""
        return f"{count(self.relations, 'relation')}{errors}"


def run_command(function: Callable[..., None]) -> None:
    """Run a function as a command (`python -m MODULE`): options from the command line, errors as one line."""
    import typer

    try:
        typer.run(function)
    except UserError as error:
        print(f"error: {on_command_line(error)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except (EngineError, OSError) as error:
        print(f"error: {on_command_line(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
