"""Tables of bad inputs: what it is, `make`, the kind of its outcome and, of some, a pattern that is in the outcome.

`make` creates the input in an empty folder; its result is passed to `process`, which runs the library on the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Outcome(NamedTuple):
    """How an input was handled, and the text that goes with it. A traceback is never an outcome.

    `refused`: the line for the user; `error row`: its reason; `counted`: the problem counts; `accepted`: the result;
    `found`: the message of `sgpipe verify`.
    """

    kind: str
    text: str


def cases(group: str, process: Callable[[Path, Any], Outcome], rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The parameters of the test: `make`, `process`, the kind and the pattern of each row."""
    return [
        pytest.param(make, process, kind, *(pattern or [""]), id=f"{group}: {what}")
        for what, make, kind, *pattern in rows
    ]
