"""Printing: results go to standard output, progress and errors to standard error.

Progress is a live bar on a terminal and plain lines anywhere else. Rich is imported when something is printed, so that
commands start fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from sgpipe.errors import EngineError, UserError

if TYPE_CHECKING:
    from rich.console import Console

QUIET = "SGPIPE_QUIET"  # an environment variable, so that worker processes see it, too

# Exit codes of every command. EXIT_FAILED: the work is not finished, or a check failed.
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_ALL_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


def output() -> Console:
    """The console for results."""
    return _console()


def errors() -> Console:
    """The console for errors, which are printed even with --quiet."""
    return _console(stderr=True)


def progress() -> Console:
    """The console for progress, notes and hints; `sgpipe --quiet …` silences it."""
    return _console(stderr=True, quiet=QUIET in os.environ)


def _console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints no character which the terminal would act on, wherever a text comes from."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class SafeConsole(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(_printable(item) if isinstance(item, str) else item for item in objects), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=_printable(segment.text, ""))

    return SafeConsole(markup=False, highlight=False, stderr=stderr, quiet=quiet)


def _printable(text: str, instead: str = " ") -> str:
    """Text without what a terminal acts on: control characters become `instead`, those that format are removed.

    The latter are Unicode's category Cf: zero-width characters and those that change the direction of writing.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    kinds = {"Cc": instead, "Zl": instead, "Zp": instead, "Cs": "?", "Cf": ""}
    return "".join(letter if letter == "\n" else kinds.get(unicodedata.category(letter), letter) for letter in text)


def single_line(text: str, limit: int | None = None) -> str:
    """Text of data as a terminal can show it on one line, cut with an ellipsis after `limit` characters."""
    line = " ".join(_printable(text).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def isolated(text: str) -> str:
    """Text of data whose direction of writing changes none of the text around it, where no <bdi> can be.

    Isolates of Unicode end where a text closes them itself, so the text loses its own. `single_line` removes them.
    """
    return f"\u2068{single_line(text)}\u2069"


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON for standard output, in which letters are themselves and what a terminal acts on is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(
        json.dumps(letter)[1:-1] if unicodedata.category(letter) in _ACTED_ON and letter != "\n" else letter
        for letter in text
    )


class Reminder:
    """Says how far something is that takes long, now and then."""

    seconds = 20.0

    def __init__(self) -> None:
        self._next = time.monotonic() + self.seconds

    def say(self, text: str) -> None:
        """Print a line as progress, unless the last one was a moment ago."""
        if time.monotonic() > self._next:
            self._next = time.monotonic() + self.seconds
            progress().print(text, soft_wrap=True)


_ACTED_ON = ("Cc", "Zl", "Zp", "Cs", "Cf")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 file", "2,000 files"; `plural`: if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


_SECONDS_BETWEEN_LINES = 10.0
_SAME_MOMENT = 1e-6  # seconds


def listed(words: Sequence[str]) -> str:
    """Words with commas and "and" between them."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


class Advance(Protocol):
    """Tells a progress display that images are done; `seconds`: how long the work on them took, if that is known."""

    def __call__(self, images: int, counts: Mapping[str, int], seconds: float = 0) -> None: ...


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
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        class TimeLeft(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{meter.left_text} left" if meter.left_text else "")

        columns = (
            TextColumn(work),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeLeft(),
            TextColumn("{task.fields[note]}"),
        )
        meter = Meter(total)
        with RichProgress(*columns, console=self.console) as bar:
            task = bar.add_task(work, total=total, rate="", note="")

            def advance(images: int, counts: Mapping[str, int], seconds: float = 0) -> None:
                meter.add(images, counts, seconds)
                bar.update(task, advance=images, rate=meter.rate_text, note=meter.note)

            yield advance

    def _lines(self, total: int | None) -> Iterator[Advance]:
        meter, last = Meter(total), time.monotonic()

        def advance(images: int, counts: Mapping[str, int], seconds: float = 0) -> None:
            nonlocal last
            meter.add(images, counts, seconds)
            if meter.done == total or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                done = count(meter.done, "image") if total is None else f"{meter.done:,}/{count(total, 'image')}"
                left = f"{meter.left_text} left" if meter.left_text else ""
                self.say(", ".join(part for part in (done, meter.rate_text, left, meter.note) if part))

        yield advance


class Meter:
    """The rate of a growing count, and the time left, both without the start: loading models may take minutes.

    Images come in batches, from many workers at once. So the estimate is of whole rounds, as long as the first images
    took, in each of which every worker ends one batch; and there is none before a round has passed since then.

    Attributes:
        relations: None if they are not counted.
    """

    def __init__(self, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self.relations: int | None = None
        self.errors = 0
        self._clock = clock
        self._began = clock()
        self._times: list[float] = []
        self._totals: list[int] = []  # images done at each of the times
        self._left: tuple[float, float] | None = None  # seconds, and when they were estimated

    def add(self, images: int, counts: Mapping[str, int], seconds: float = 0) -> None:
        """Count images; `seconds`: how long the work on them took, if that is known."""
        now = self._clock()
        if not self.done and seconds:
            self._began = max(self._began, now - seconds)
        self.done += images
        self._times.append(now)
        self._totals.append(self.done)
        if "relations" in counts:
            self.relations = (self.relations or 0) + counts["relations"]
        self.errors += counts.get("errors", 0)
        if self.total is not None and (rate := self._rate_of_rounds(now)):
            self._left = (self.total - self.done) / rate, now

    def _rate_of_rounds(self, now: float) -> float | None:
        """Images per second in all rounds since the first images; None: there is none yet."""
        round_ = self._times[0] - self._began
        since = now - self._times[0]
        seconds = since // round_ * round_ if round_ > 0 else since
        before = bisect_right(self._times, now - seconds + _SAME_MOMENT)
        return (self.done - self._totals[before - 1]) / seconds if seconds > 0 else None

    @property
    def rate(self) -> float:
        """Images per second since work began."""
        return self.done / max(self._clock() - self._began, 1e-9)

    @property
    def rate_text(self) -> str:
        return f"{self.rate:.1f} images/s" if self.rate >= 1 else f"{1 / max(self.rate, 1e-9):.1f} s/image"

    @property
    def seconds_left(self) -> float | None:
        """None: there is nothing yet to estimate it from."""
        if self._left is None:
            return None
        seconds, at = self._left
        return max(0.0, seconds - (self._clock() - at))

    @property
    def left_text(self) -> str:
        """Hours, minutes and seconds; empty: unknown, or done."""
        if self.seconds_left is None or self.done == self.total:
            return ""
        seconds = round(self.seconds_left)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"

    @property
    def note(self) -> str:
        relations = [] if self.relations is None else [count(self.relations, "relation")]
        return ", ".join([*relations, *([count(self.errors, "error")] if self.errors else [])])


def run_command(function: Callable[..., None]) -> None:
    """Run a function as a command (`python -m MODULE`): options from the command line, errors as one line."""
    import typer

    try:
        typer.run(function)
    except UserError as error:
        errors().print(f"error: {error}", soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)
    except (EngineError, OSError) as error:
        errors().print(f"error: {error}", soft_wrap=True)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
