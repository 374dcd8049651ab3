"""A bad input, and what may become of it."""

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
    """What became of an input.

    `refused`: one line for the user; `error row`: its reason; `counted`: what was set aside; `accepted`: what came
    out; `found`: what `sgpipe verify` says. A traceback is none of these.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Case:
    """An input: `make` puts it into an empty folder, `look` hands it to the library; `pattern` is what comes out."""

    group: str
    what: str
    make: Callable[[Path], Any]
    look: Callable[[Path, Any], Outcome]
    kind: Kind
    pattern: str

    @property
    def id(self) -> str:
        return f"{self.group}: {self.what}"


def outcome(records: Iterable[Record], problems: Counter[str] | dict[str, int]) -> Outcome:
    """Error rows before problems before what is fine."""
    records = list(records)
    if failed := [record.error for record in records if not record.ok]:
        return Outcome("error row", "; ".join(map(str, failed)))
    if counted := {name: count for name, count in problems.items() if count}:
        return Outcome("counted", ", ".join(f"{name} {count}" for name, count in sorted(counted.items())))
    return Outcome("accepted", "; ".join(_described(record) for record in records))


def _described(record: Record) -> str:
    names = ", ".join(f"{box.category} {[round(float(side), 2) for side in box.bbox]}" for box in record.objects[:3])
    return f"{record.image_id} {record.width}x{record.height} {len(record.objects)} boxes: {names}"
