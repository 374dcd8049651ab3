"""The detect stage: boxes for images that nobody has annotated.

Boxes of a COCO file for images that are known by their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from torchvision.ops import batched_nms
from transformers.utils.logging import disable_progress_bar

from sgpipe.errors import UserError
from sgpipe.images import ImageError, open_image
from sgpipe.recipe import DetectConfig, Resources
from sgpipe.records import Box, Record
from sgpipe.sources.annotated import ProblemCounts, clip_objects
from sgpipe.sources.coco_relations import load_instances
from sgpipe.sources.formats import COCO_INSTANCES, require
from sgpipe.stages.detect.detectors import Found, detector_classes, load
from sgpipe.utils.devices import pick_device


class DetectStage:
    """Fills `objects` with what a detector finds, every image by itself; the surest first.

    `roots` maps a split to its image folder. `category_id` counts the detector's classes from 1.
    """

    name = "detect"
    fills: tuple[str, ...] = ("objects", "status", "error")

    def __init__(self, config: DetectConfig, roots: Mapping[str, Path]) -> None:
        self.config = config
        self.roots = roots
        self.resources = config.resources

    def setup(self) -> None:
        """Load the detector. Raises UserError: none is named, or it is none."""
        if self.config.detector is None:
            raise UserError("detect.detector must name an object detector: a folder or hub id")
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        disable_progress_bar()
        self.classes = detector_classes(self.config)
        self.detector = load(self.config, pick_device(self.config.device))

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                try:
                    found = self.detector(open_image(self.roots, record), self.config.threshold)
                except ImageError as reason:
                    record.fail(self.name, str(reason))
                    continue
                record.objects = self._boxes(found)
                clip_objects(record, Counter())
        return records

    def _boxes(self, found: Found) -> list[Box]:
        """Without boxes of a class that overlap a surer one of it."""
        if not bool(found.scores.isfinite().all()):
            raise UserError(f"detector {self.config.detector} finds NaN: its weights are damaged")
        kept = batched_nms(found.boxes, found.scores, found.labels, self.config.overlap)[: self.config.max_boxes]
        corners = found.boxes[kept].double().tolist()
        return [
            Box(self.classes[label], label + 1, (left, top, right - left, bottom - top))
            for label, (left, top, right, bottom) in zip(found.labels[kept].tolist(), corners, strict=True)
        ]


class GivenBoxesStage:
    """Fills `objects` and the size of each image from the entry of an instances file that is called as it is.

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
            found = f"{len(numbers)} images" if numbers else "no image"
            record.fail(self.name, f"{self._file} has {found} of this name")
            return
        given = self._instances.record(numbers[0], record.dataset, record.split)
        if not given.ok:
            record.fail(self.name, str(given.error))
            return
        if given.width and given.height:  # whether the image has this size is seen when it is opened
            record.width, record.height = given.width, given.height
        record.objects = given.objects
        clip_objects(record, ProblemCounts())


def _ends(name: str) -> list[str]:
    """A path, without its first folder, and so on down to the file's name."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
