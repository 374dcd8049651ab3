"""The judgements of a run: a file of JSON lines to which people's answers are appended, and their present state.

A line is written whole and synced before `append` returns, so that a killed process loses nothing that it acknowledged.
Several processes may append to one file: a lock of the system (flock) lets in one at a time. Lines that cannot be read,
such as one that a power cut tore, stay in the file, and are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sgpipe.storage.judgement_lines import Judgement, RelationState, SamplingPlan

JUDGEMENTS = "judgements.jsonl"


class JudgementLog:
    """A file of judgements, read once and kept up to date; threads may share it.

    Attributes:
        file: the file, which need not exist. read_only: whether `append` is refused.
        problems: one line for each line that is left out, and why.
        version: changes when lines are added.
        plans: the sampling plans, by id.
    """

    def __init__(self, file: Path, fingerprint: str, *, read_only: bool = False) -> None:
        """
        Args:
            file: of a run: `root / JUDGEMENTS`.
            fingerprint: of the run; lines of other runs are left out, and named.

        Raises UserError: the file cannot be read.
        """
        raise NotImplementedError

    def append(self, line: Judgement | SamplingPlan) -> Judgement | SamplingPlan:
        """Write a line and sync it; if its id is there already, nothing is written.

        Returns:
            the line as it is stored.

        Raises:
            UserError: the log is read-only, or the line is of another run.
            OSError: it is not saved, as the disk is full or the folder cannot be written.
        """
        raise NotImplementedError

    def reload(self) -> bool:
        """Read what other processes have appended; True if there was anything. Raises UserError: as `__init__`."""
        raise NotImplementedError

    def find(self, id: str) -> Judgement | SamplingPlan | None:
        """The line with this id."""
        raise NotImplementedError

    def state(self, split: str, image_id: str) -> list[RelationState]:
        """What people say now about the relations of an image, in the order in which they were first judged."""
        raise NotImplementedError

    def current(self) -> Iterator[RelationState]:
        """What people say now about all judged relations."""
        raise NotImplementedError
