"""Processes of this machine: what one has started, and whether one has ended."""

from __future__ import annotations

import os
from pathlib import Path


def descendants(pid: int | None) -> list[int]:
    """The processes that a process has started, and these in turn."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        child = int(entry.parent.name)
        try:
            parents.setdefault(parent_of(child), []).append(child)
        except (FileNotFoundError, ProcessLookupError):
            continue
    processes = []
    at = [pid]
    while at:
        children = parents.get(at.pop() or 0, [])
        processes += children
        at += children
    return processes


def parent_of(pid: int) -> int:
    """The process that has started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_gone(pid: int) -> bool:
    """Whether a process has ended: its files and connections are closed then, even if nobody has
    asked how it ended.
    """
    try:
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        # its other threads have ended, too
        return ended and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True
