"""Stages: records in, records out. A stage runs in a plain `for` loop; Ray is the engine's business."""

from __future__ import annotations

from typing import Protocol

from sgpipe.recipe import Resources
from sgpipe.records import Record


class Stage(Protocol):
    """One step of the pipeline.

    A stage fills the columns it names in `fills` for every record whose `status` is "ok" and returns all
    records in the order it got them. An image it cannot read becomes an error row (`Record.fail`), never an
    exception; an exception means that the stage itself cannot work.
    """

    @property
    def name(self) -> str: ...

    @property
    def fills(self) -> tuple[str, ...]: ...

    @property
    def resources(self) -> Resources: ...

    def setup(self) -> None:
        """Load models; called once in the process that runs the stage."""

    def __call__(self, records: list[Record]) -> list[Record]: ...
