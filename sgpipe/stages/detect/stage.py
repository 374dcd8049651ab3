"""Stages that fill `objects` for images without annotations: from a detector, or from a COCO instances file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import batched_nms
from transformers.utils.logging import disable_progress_bar

from sgpipe.errors import ImageError, UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.image_feed import ImageFeed
from sgpipe.recipe import DetectConfig, Resources
from sgpipe.records import BOX_SCORES, Box, Record
from sgpipe.sources.annotated import ProblemCounts, clip_objects, to_single_line
from sgpipe.sources.coco import load_coco_instances
from sgpipe.sources.formats import COCO_INSTANCES, require_format
from sgpipe.stages.base import image_threads
from sgpipe.stages.detect.detectors import DetectedBoxes, detector_classes, load
from sgpipe.utils.boxes import clip_box
from sgpipe.utils.console import count
from sgpipe.utils.devices import pick_device
from sgpipe.utils.gpu_memory import gpu_use


class DetectStage:
    """Fills `objects` with detected boxes, highest score first, and `box_scores`. Images are processed one at a time.

    `roots` says where the images of each split are. `category_id` is the 1-based index of the detector's class.
    """

    name = "detect"
    fills: tuple[str, ...] = ("objects", BOX_SCORES, "status", "error")
    threads = 0  # that open images; set up with the detector

    def __init__(self, config: DetectConfig, roots: Mapping[str, ImagePlace]) -> None:
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
        self.device = pick_device(self.config.device, self.config.resources.gpus)
        self.threads = image_threads(self.resources, elsewhere=self.device.type != "cpu")
        self.detector = load(self.config, self.device)

    def gpu_use(self) -> dict[str, Any]:
        """See `GpuStage`."""
        return gpu_use(self.device)

    def __call__(self, records: list[Record]) -> list[Record]:
        with ImageFeed(self.roots, records, lambda image, file: image, self.threads) as images:
            for record in records:
                record.box_scores = []
                if record.ok:
                    self._fill(record, images)
        return records

    def _fill(self, record: Record, images: ImageFeed[Image.Image]) -> None:
        try:
            detected = self.detector(images.open(record), self.config.threshold)
        except ImageError as reason:
            record.fail(self.name, str(reason))
            return
        record.objects, scores = self._boxes(detected)
        inside = [clip_box(box.bbox, record.width, record.height) is not None for box in record.objects]
        record.box_scores = list(compress(scores, inside))
        clip_objects(record, Counter())

    def _boxes(self, detected: DetectedBoxes) -> tuple[list[Box], list[float]]:
        """The boxes that remain after non-maximum suppression within each class, and their scores."""
        boxes, scores, labels = detected.boxes, detected.scores, detected.labels
        if not bool(scores.isfinite().all()):
            raise UserError(f"detector {self.config.detector} returns NaN scores: its weights are damaged")
        kept = batched_nms(boxes, scores, labels, self.config.overlap)[: self.config.max_boxes]
        found = [
            Box(self.classes[label], label + 1, (left, top, right - left, bottom - top))
            for label, (left, top, right, bottom) in zip(
                labels[kept].tolist(), boxes[kept].double().tolist(), strict=True
            )
        ]
        return found, scores[kept].tolist()


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


@dataclass(frozen=True)
class GivenBoxes:
    """Boxes of one image from a Python user: `corners` are x1, y1, x2, y2 in pixels, `[boxes, 4]` float64."""

    corners: NDArray[np.float64]
    classes: tuple[str, ...]
    where: str  # of messages: " of image 3"

    def objects(self, width: int, height: int) -> list[Box]:
        """The boxes, clipped to the image by at most a pixel.

        Raises UserError: a box is farther outside, or all boxes are within the first pixel.
        """
        size = f"the image, which has {width}x{height} pixels"
        if len(self.corners) and self.corners.max() <= 1 < max(width, height):
            raise UserError(f"the boxes{self.where} are within the first pixel of {size}: expected pixels, not shares")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.classes), start=1)}
        boxes = []
        for index, (name, corners) in enumerate(zip(self.classes, self.corners.tolist(), strict=True)):
            left, top, right, bottom = corners
            bbox = clip_box((left, top, right - left, bottom - top), width, height)
            if bbox is None or min(left, top) < -1 or right > width + 1 or bottom > height + 1:
                raise UserError(f"{_box(index, self.where, corners)} is not inside {size}")
            boxes.append(Box(name, numbers[name], bbox))
        return boxes


def parse_boxes(boxes: Any, classes: Any, where: str = "") -> GivenBoxes | None:
    """Boxes as x1, y1, x2, y2 in pixels, anything that NumPy makes `[boxes, 4]` of, and their class names.

    None: no boxes are given, which differs from an empty list.

    Raises UserError: boxes without classes or the reverse, another shape, another number of classes than of boxes, an
    empty class name, or a box that is not finite or has no area.
    """
    if boxes is None and classes is None:
        return None
    if boxes is None or classes is None:
        raise UserError(f"boxes= and classes={where} belong together: give a class name for each box")
    corners = _corners(boxes, where)
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UserError(f"classes={where}: expected a list of class names, got {classes!r}")
    names = tuple(classes)
    for name in names:
        if not isinstance(name, str) or not name.strip() or to_single_line(name) != name.strip():
            raise UserError(f"classes={where}: expected class names, got {name!r}")
    if len(names) != len(corners):
        found = f"{count(len(corners), 'box', 'boxes')} and {count(len(names), 'class', 'classes')}"
        raise UserError(f"{found}{where}: expected a class name for each box")
    return GivenBoxes(corners, tuple(map(str, names)), where)


def _corners(boxes: Any, where: str) -> NDArray[np.float64]:
    expected = "expected x1, y1, x2, y2 in pixels of each box"
    try:
        corners = np.asarray(boxes, dtype=np.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"boxes={where} are not numbers ({str(error).splitlines()[0]}): {expected}") from None
    if not corners.size and corners.shape[-1:] in ((0,), (4,)):
        corners = corners.reshape(0, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise UserError(f"boxes={where} have shape {'x'.join(map(str, corners.shape)) or 'no'}: {expected}, Nx4")
    for index, (left, top, right, bottom) in enumerate(corners.tolist()):
        if not all(map(math.isfinite, (left, top, right, bottom))):
            raise UserError(f"{_box(index, where, corners[index])} is not finite")
        if left >= right or top >= bottom:
            raise UserError(f"{_box(index, where, corners[index])} has no area: {expected}, with x1 < x2 and y1 < y2")
    return corners


def _box(index: int, where: str, corners: Iterable[float]) -> str:
    return f"box {index}{where} ({', '.join(f'{value:g}' for value in corners)})"


def _path_suffixes(name: str) -> list[str]:
    """The path, the path without its first folder, and so on down to the bare file name."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
