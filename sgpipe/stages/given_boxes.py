"""Boxes of a COCO file for pictures that are known by their names."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sgpipe.recipe import Resources
from sgpipe.records import Record
from sgpipe.sources.annotated import ProblemCounts
from sgpipe.sources.clip import clip_objects
from sgpipe.sources.forms import COCO_INSTANCES, require
from sgpipe.sources.instances import load_instances


class GivenBoxesStage:
    """Fills `objects` of each picture from the entry of an instances file that has its file name, folders aside."""

    name = "boxes"
    fills: tuple[str, ...] = ("objects", "status", "error")
    resources = Resources()

    def __init__(self, file: Path) -> None:
        """Raises UserError: it is no instances file."""
        require(file, COCO_INSTANCES)
        self._file = file
        self._instances = load_instances(file)
        self._numbers: dict[str, list[str]] = {}
        for number, (name, _, _) in self._instances.images.items():
            self._numbers.setdefault(PurePosixPath(name).name, []).append(number)
        self.classes = tuple(name for _, name in sorted(self._instances.names.items()))

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                self._fill(record)
        return records

    def _fill(self, record: Record) -> None:
        numbers = self._numbers.get(PurePosixPath(record.file_name).name, [])
        if len(numbers) != 1:
            found = f"{len(numbers)} pictures" if numbers else "no picture"
            record.fail(self.name, f"{self._file} has {found} of this name")
            return
        given = self._instances.record(numbers[0], record.dataset, record.split)
        if not given.ok:
            record.fail(self.name, str(given.error))
        elif (given.width, given.height) not in ((record.width, record.height), (0, 0)):
            size = f"{given.width}x{given.height}"
            record.fail(self.name, f"image is {record.width}x{record.height}, {self._file} says {size}")
        else:
            record.objects = given.objects
            clip_objects(record, ProblemCounts())
