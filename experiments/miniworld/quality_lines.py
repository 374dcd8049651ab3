"""Figures of the miniworld as JSON lines, which README.md and docs/quality.md quote from
benchmarks/results.

A line has its script, number of images, seed, date and commit, beside what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

from experiments.code_state import commit

Line: TypeAlias = dict[str, Any]


def append_lines(file: Path, script: str, images: int, seed: int, lines: Iterable[Line]) -> None:
    """Append the figures that a script measured on some images of a seed."""
    origin = {"script": script, "images": images, "seed": seed}
    stamp = {"date": date.today().isoformat(), "commit": commit()}
    with file.open("a", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps({**origin, **line, **stamp}) + "\n")
