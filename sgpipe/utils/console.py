"""Printing: results to standard output, progress and errors to standard error, by Rich, imported
when it is needed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

QUIET = "SGPIPE_QUIET"  # an environment variable, so that worker processes see it, too

# Exit codes of every command. EXIT_FAILED: the work is not finished, or a check failed.
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_ALL_FAILED = 3
EXIT_INTERRUPTED = 130
_FILE_WIDTH = 120  # columns
# Shown instead of characters that a terminal would act on, by their category, such as controls and
# those of no width.
_INSTEAD = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "?", "Cf": ""}

_SECONDS_BETWEEN_LINES = 10.0

# images that are done, and their relations and errors
Advance: TypeAlias = Callable[[int, Mapping[str, int]], None]


def output() -> Console:
    """Return the console for results; in a file or pipe, tables are not folded to 80 columns."""
    console = _console()
    console.width = console.width if console.is_terminal else max(console.width, _FILE_WIDTH)
    return console


def errors() -> Console:
    """Return the console for errors, which are printed even with --quiet."""
    return _console(stderr=True)


def progress() -> Console:
    """Return the console for progress, notes and hints; `sgpipe --quiet …` silences it."""
    return _console(stderr=True, quiet=QUIET in os.environ)


def _console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that prints no character which the terminal would act on, wherever a text
    comes from.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class SafeConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield (
                    segment if segment.control else segment._replace(text=_printable(segment.text))
                )

    return SafeConsole(markup=False, emoji=False, highlight=False, stderr=stderr, quiet=quiet)


def _printable(text: str) -> str:
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character == "\n":
        return character
    return _INSTEAD.get(unicodedata.category(character), character)


def single_line(text: str, limit: int | None = None) -> str:
    """Text of data as a terminal can show it on one line, cut with an ellipsis after `limit`
    characters.
    """
    line = " ".join(_printable(text).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def isolated(text: str) -> str:
    """Text of data, without isolates of its own, whose direction of writing changes none of the
    text around it.
    """
    return f"\u2068{single_line(text)}\u2069"


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON for standard output. Escaped is what a terminal acts on, or what its encoding
    lacks.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escapes: dict[int, str] = {}
    for character in {*text} - {"\n"}:
        is_shown = bool(character.encode(encoding, "ignore"))
        if not is_shown or unicodedata.category(character) in _INSTEAD:
            escapes[ord(character)] = json.dumps(character)[1:-1]
    return text.translate(escapes)


def print_rows(title: str, rows: Mapping[str, str], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 file", "2,000 files"; `plural`: if it is not the noun with
    an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time in words, such as "3 h 5 min" or "12.3 s"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def listed(words: Sequence[str]) -> str:
    """Words with commas and "and" between them."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


class Progress:
    """Messages and the progress over images, on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or progress()

    def say(self, message: str) -> None:
        self.console.print(message, style="dim", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(
        self, work: str, expected: int | None = None
    ) -> Iterator[Callable[[int, int | None, str], None]]:
        """Yield a function that shows what is done, of how much (None: unknown), and a note; a file
        gets few lines.
        """
        if not self.console.is_terminal:
            last = time.monotonic()

            def show(done: int, total: int | None, note: str) -> None:
                nonlocal last
                if done == total or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                    last = time.monotonic()
                    self.say(f"{work} {done:,}{'' if total is None else f'/{total:,}'}, {note}")

            yield show
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn(work),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, TextColumn("{task.fields[note]}"), console=self.console) as bar:
            task = bar.add_task(work, total=expected, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)

    @contextmanager
    def images(
        self,
        total: int | None,
        work: str = "labelling",
        remark: Callable[[], str] = lambda: "",
    ) -> Iterator[Advance]:
        """Show progress over images.

        Args:
            total: how many there are; None: unknown.
            work: that is done to them.
            remark: returns what else to show of the work so far; "": nothing.

        Yields:
            What is called with (images, counts) as they are done.
        """
        with self.bar(work, total) as show:
            done = 0
            tally = Counter[str]()
            began = time.monotonic()

            def advance(images: int, counts: Mapping[str, int]) -> None:
                nonlocal done
                done += images
                tally.update(counts)
                notes = [f"{done / max(time.monotonic() - began, 1e-9):,.2f} images/s"]
                notes += [
                    count(tally[noun + "s"], noun)
                    for noun in ("relation", "error")
                    if tally[noun + "s"]
                ]
                show(done, total, ", ".join(filter(None, [*notes, remark()])))

            yield advance
