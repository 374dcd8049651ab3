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
    """Fills `objects` and the size of each picture from the entry of an instances file that is called as it is.

    The entry of its file name, that is; where there are several, of those with the most of its folders.
    """

    name = "boxes"
    fills: tuple[str, ...] = ("width", "height", "objects", "status", "error")
    resources = Resources()

    def __init__(self, file: Path) -> None:
        """Raises UserError: it is no instances file."""
        require(file, COCO_INSTANCES)
        self._file = file
        self._instances = load_instances(file)
        self._numbers: dict[str, list[str]] = {}  # by every end of their paths
        for number, (name, _, _) in self._instances.images.items():
            for end in _ends(name):
                self._numbers.setdefault(end, []).append(number)
        self.classes = tuple(name for _, name in sorted(self._instances.names.items()))

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                self._fill(record)
        return records

    def _fill(self, record: Record) -> None:
        numbers = next((self._numbers[end] for end in _ends(record.file_name) if end in self._numbers), [])
        if len(numbers) != 1:
            found = f"{len(numbers)} pictures" if numbers else "no picture"
            record.fail(self.name, f"{self._file} has {found} of this name")
            return
        given = self._instances.record(numbers[0], record.dataset, record.split)
        if not given.ok:
            record.fail(self.name, str(given.error))
            return
        if given.width and given.height:  # whether the picture has this size is seen when it is opened
            record.width, record.height = given.width, given.height
        record.objects = given.objects
        clip_objects(record, ProblemCounts())


def _ends(name: str) -> list[str]:
    """A path, without its first folder, and so on down to the file's name."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
