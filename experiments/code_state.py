"""The commit of the code that makes a result, and whether code that decides results changed
since.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from sgpipe.utils.console import count

ROOT = Path(__file__).parents[1]
CODE = (  # what decides a result, beside its settings
    "rlip_model",
    "pipelines",
    "experiments/measures.py",
    "experiments/workshop.py",
    "sgpipe/evaluation",
    "sgpipe/generation",
    "sgpipe/inference",
    "sgpipe/miniworld",
    "sgpipe/sources",
    "sgpipe/stages",
    "sgpipe/training",
)


@cache
def commit() -> str | None:
    """The commit of this clone, with a "+" if its code has been changed since; None outside a
    clone.
    """
    head = _git("rev-parse", "--short=10", "HEAD")
    return head and head.strip() + ("+" if _git("status", "--porcelain", "--", *CODE) else "")


def changed_code(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The commits of results whose code is not today's, and what differs."""
    for name in sorted({row["commit"] for row in rows if row.get("commit")}):
        output = _git("diff", "--name-only", name.rstrip("+"), "--", *CODE)
        if output is None:
            yield name, "this clone does not have it"
            continue
        files = output.splitlines()
        if len(files) > 1:
            yield name, f"{files[0]} and {count(len(files) - 1, 'more file')}"
        elif files:
            yield name, files[0]


def _git(*arguments: str) -> str | None:
    """Return what git prints; None if it fails or does not exist."""
    with suppress(OSError):
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return result.stdout if result.returncode == 0 else None
    return None
