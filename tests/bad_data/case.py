"""Tables of bad inputs: what it is, `make`, whose result `process` gets, the kind of outcome, of
some a pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Outcome(NamedTuple):
    """How an input was handled, with the line, reason, problem counts, result or message of
    `verify` that tells it.
    """

    kind: str
    text: str


def cases(
    group: str, process: Callable[[Path, Any], Outcome], rows: Iterable[tuple[Any, ...]]
) -> list[Any]:
    """The parameters of the test: `make`, `process`, the kind and the pattern of each row."""
    return [
        pytest.param(make, process, kind, *(pattern or [""]), id=f"{group}: {damage}")
        for damage, make, kind, *pattern in rows
    ]
