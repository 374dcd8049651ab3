"""The `Stage` protocol (records in, records out) and `LoadStage`, which only opens images.

A stage runs in a plain `for` loop and knows nothing about Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from sgpipe.images import ImageError, open_image
from sgpipe.recipe import Resources
from sgpipe.records import Record


class Stage(Protocol):
    """One step of the pipeline.

    A stage fills the columns named in `fills` for every record whose `status` is "ok" and returns all records in
    their original order. An unreadable image becomes an error row (`Record.fail`), never an exception; an exception
    means that the stage itself cannot run.
    """

    @property
    def name(self) -> str: ...

    @property
    def fills(self) -> tuple[str, ...]: ...

    @property
    def resources(self) -> Resources: ...

    def setup(self) -> None:
        """Load models. Called once, in the process that runs the stage."""

    def __call__(self, records: list[Record]) -> list[Record]: ...


@runtime_checkable
class ModelStage(Stage, Protocol):
    """A stage whose model can be checked before workers are started."""

    def check(self) -> None:
        """Raises UserError: there is no such model, or one of another kind, as far as its configuration tells."""


class LoadStage:
    """Opens each image once, so that unreadable images become error rows even in a run without a captioner.

    `roots` maps a split to its image folder.
    """

    name = "load"
    fills: tuple[str, ...] = ("status", "error")

    def __init__(self, roots: Mapping[str, Path], resources: Resources) -> None:
        self.roots = roots
        self.resources = resources

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                try:
                    open_image(self.roots, record)
                except ImageError as error:
                    record.fail(self.name, str(error))
        return records
