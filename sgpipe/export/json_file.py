"""Writing JSON files that are too large for memory, item by item."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from sgpipe.errors import UserError


class Members(NamedTuple):
    """An object of these keys and values, which are asked for when their turn comes."""

    pairs: Iterable[tuple[str, Any]]


def write_json(path: Path, value: Members | Iterator[Any]) -> None:
    """Write a new file and sync it to the disk. Iterators become arrays and `Members` objects, one item a line.

    Raises UserError: a number is not finite.
    """
    with path.open("x", encoding="utf-8") as file:
        _write(file, value)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _write(file: IO[str], value: Any) -> None:
    if isinstance(value, Members):
        file.write("{")
        for number, (key, inner) in enumerate(value.pairs):
            file.write(f"{',' if number else ''}\n{_text(key)}: ")
            _write(file, inner)
        file.write("}")
    elif isinstance(value, Iterator):
        file.write("[")
        for number, item in enumerate(value):
            file.write(f"{',' if number else ''}\n{_text(item)}")
        file.write("]")
    else:
        file.write(_text(value))


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UserError(f"{str(value)[:80]} holds a number that is not finite; `sgpipe verify` says where") from None
