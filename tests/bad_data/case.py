"""A bad input and its expected outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgpipe.records import Record

Kind = Literal["refused", "error row", "counted", "accepted", "found"]


@dataclass(frozen=True)
class Outcome:
    """How an input was handled, and the text that goes with it. A traceback is never an outcome.

    `refused`: the line for the user; `error row`: its reason; `counted`: the problem counts; `accepted`: the result;
    `found`: the message of `sgpipe verify`.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Case:
    """An input and its outcome.

    Attributes:
        make: creates the input in an empty folder; the result is passed to `process`.
        process: runs the library on the input.
        pattern: a regular expression that the text of the outcome matches; what is refused or found names a file or a
            setting in one line, in whatever words.
    """

    group: str
    name: str
    make: Callable[[Path], Any]
    process: Callable[[Path, Any], Outcome]
    kind: Kind
    pattern: str = ""

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


def outcome(records: Iterable[Record], problems: Counter[str] | dict[str, int]) -> Outcome:
    """The error rows, else the problem counts, else the records."""
    records = list(records)
    if failed := [record.error for record in records if not record.ok]:
        return Outcome("error row", "; ".join(map(str, failed)))
    if counted := {name: count for name, count in problems.items() if count}:
        return Outcome("counted", ", ".join(f"{name} {count}" for name, count in sorted(counted.items())))
    return Outcome("accepted", "; ".join(_described(record) for record in records))


def _described(record: Record) -> str:
    names = ", ".join(f"{box.category} {[round(float(side), 2) for side in box.bbox]}" for box in record.objects[:3])
    return f"{record.image_id} {record.width}x{record.height} {len(record.objects)} boxes: {names}"
