"""Stages that fill `objects` for images without annotations: from a detector, or from a COCO instances file."""

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
from sgpipe.sources.coco_relations import load_coco_instances
from sgpipe.sources.formats import COCO_INSTANCES, require_format
from sgpipe.stages.detect.detectors import DetectedBoxes, detector_classes, load
from sgpipe.utils.devices import pick_device


class DetectStage:
    """Fills `objects` with detected boxes, highest score first. Images are processed one at a time.

    `roots` maps a split to its image folder. `category_id` is the 1-based index of the detector's class.
    """

    name = "detect"
    fills: tuple[str, ...] = ("objects", "status", "error")

    def __init__(self, config: DetectConfig, roots: Mapping[str, Path]) -> None:
        self.config = config
        self.roots = roots
        self.resources = config.resources

    def setup(self) -> None:
        """Load the detector. Raises UserError: no detector is set, or it cannot be loaded."""
        if self.config.detector is None:
            raise UserError("detect.detector is not set: expected the folder or hub id of an object detector")
        torch.set_num_threads(max(1, int(self.resources.cpus)))
        disable_progress_bar()
        self.classes = detector_classes(self.config)
        self.detector = load(self.config, pick_device(self.config.device, self.config.resources.gpus))

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                try:
                    detected = self.detector(open_image(self.roots, record), self.config.threshold)
                except ImageError as reason:
                    record.fail(self.name, str(reason))
                    continue
                record.objects = self._boxes(detected)
                clip_objects(record, Counter())
        return records

    def _boxes(self, detected: DetectedBoxes) -> list[Box]:
        """The boxes that remain after non-maximum suppression within each class."""
        boxes, scores, labels = detected.boxes, detected.scores, detected.labels
        if not bool(scores.isfinite().all()):
            raise UserError(f"detector {self.config.detector} returns NaN scores: its weights are damaged")
        kept = batched_nms(boxes, scores, labels, self.config.overlap)[: self.config.max_boxes]
        return [
            Box(self.classes[label], label + 1, (left, top, right - left, bottom - top))
            for label, (left, top, right, bottom) in zip(
                labels[kept].tolist(), boxes[kept].double().tolist(), strict=True
            )
        ]


class GivenBoxesStage:
    """Fills `objects` and the size of each image from the entry of an instances file with the same file name.

    If several entries share the file name, the one that shares most of the parent folders is used.
    """

    name = "boxes"
    fills: tuple[str, ...] = ("width", "height", "objects", "status", "error")
    resources = Resources()

    def __init__(self, file: Path) -> None:
        """Raises UserError: not an instances file."""
        require_format(file, COCO_INSTANCES)
        self._file = file
        self._instances = load_coco_instances(file)
        self._ids_by_suffix: dict[str, list[str]] = {}
        for image_id, (name, _, _) in self._instances.images.items():
            for suffix in _path_suffixes(name):
                self._ids_by_suffix.setdefault(suffix, []).append(image_id)
        self.classes = tuple(name for _, name in sorted(self._instances.names.items()))

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                self._fill(record)
        return records

    def _fill(self, record: Record) -> None:
        known = (suffix for suffix in _path_suffixes(record.file_name) if suffix in self._ids_by_suffix)
        ids = self._ids_by_suffix.get(next(known, ""), [])
        if len(ids) != 1:
            count = f"{len(ids)} images" if ids else "no image"
            record.fail(self.name, f"{self._file} has {count} of this name")
            return
        given = self._instances.record(ids[0], record.dataset, record.split)
        if not given.ok:
            record.fail(self.name, str(given.error))
            return
        if given.width and given.height:  # compared with the actual size when the image is opened
            record.width, record.height = given.width, given.height
        record.objects = given.objects
        clip_objects(record, ProblemCounts())


def _path_suffixes(name: str) -> list[str]:
    """The path, the path without its first folder, and so on down to the bare file name."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
