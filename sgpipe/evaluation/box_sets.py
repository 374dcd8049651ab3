"""Boxes to compare: those of a run or an import, of a COCO instances file, or of a COCO results
file.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sgpipe.errors import UserError
from sgpipe.evaluation.graphs import ImageName, image_base_name
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.sources import fields
from sgpipe.sources.fields import FieldError
from sgpipe.storage.run_records import iter_records

UNKNOWN_SIZE = (0, 0)
_RESULT_FORMS = (
    "expected the folder of a run, or a COCO results file: a list of 'image_id', 'category_id',"
    " 'bbox' and 'score'"
)
_LARGEST_SCORE = 1 + 1e-6  # a softmax is rounded
_CLASSES_NAMED = 8

ImageSize = tuple[int, int]
_Images = dict[str, tuple[ImageName, ImageSize]]  # by image id


class ScoredBox(NamedTuple):
    """A box of an image.

    Attributes:
        xywh: corner, width and height in pixels.
        name: its class.
        score: the detector's, from 0 to 1; None: it is certain.
        crowd: whether it surrounds a crowd.
        area: by which COCO tells small from large boxes, in pixels; None: that of the box.
    """

    xywh: Sequence[float]
    name: str
    score: float | None = None
    crowd: bool = False
    area: float | None = None


class SizedBoxes(NamedTuple):
    """The boxes of an image, and its (width, height) in pixels or `UNKNOWN_SIZE`."""

    size: ImageSize
    boxes: list[ScoredBox]

    def resized(self, size: ImageSize) -> list[ScoredBox]:
        """Return the boxes in pixels of the image at another size, as datasets may store it
        smaller.
        """
        if self.size == size or UNKNOWN_SIZE[0] in (*self.size, *size):
            return self.boxes
        factors = np.divide(size, self.size).tolist() * 2
        boxes = []
        for box in self.boxes:
            xywh = np.multiply(box.xywh, factors).tolist()
            boxes.append(box._replace(xywh=xywh, area=None))
        return boxes


@dataclass
class BoxSet:
    """The boxes of a dataset, or what a detector found in its images.

    Attributes:
        path: where they were read.
        classes: names by the numbers that COCO files use.
        images: boxes by the name of the image.
        lists_images: whether images without boxes are listed; otherwise nobody knows which images
            were looked at.
        failed: number of error rows.
        repeated: number of images that occurred before; the first occurrence counts.
    """

    path: Location
    classes: dict[int, str] = field(default_factory=dict)
    images: dict[ImageName, SizedBoxes] = field(default_factory=dict)
    lists_images: bool = True
    failed: int = 0
    repeated: int = 0

    def add(self, image: ImageName, size: ImageSize, boxes: Iterable[ScoredBox]) -> None:
        """Add an image, unless it is there already.

        Raises:
            UserError: a box or score would falsify the figures.
        """
        named = []
        for box in boxes:
            self._check(image, box)
            named.append(box._replace(name=" ".join(box.name.lower().split())))
        if image in self.images:
            self.repeated += 1
        else:
            self.images[image] = SizedBoxes(size, named)

    def _check(self, image: ImageName, box: ScoredBox) -> None:
        is_box = all(map(math.isfinite, box.xywh)) and min(box.xywh[2:]) >= 0
        is_scored = box.score is None or 0 <= box.score <= _LARGEST_SCORE
        if is_box and is_scored:
            return
        sides = [round(side, 3) for side in box.xywh]
        raise UserError(
            f"{self.path}: image {image.image_id}: box {sides} with score {box.score}; "
            "expected x, y, width and height in pixels, and a score from 0 to 1"
        )


def read_truth(path: Location) -> BoxSet:
    """Return the boxes of a run, an import or a COCO instances file.

    Raises:
        UserError: it is none, or is damaged.
    """
    return _read_shards(path) if is_run(path) else _read_instances(path)


def read_detections(path: Location, truth: BoxSet) -> BoxSet:
    """Return the boxes of a run or of a COCO results file, which has the class and image ids of the
    ground truth.

    Raises:
        UserError: it is none of these or damaged, or has other ids.
    """
    return _read_shards(path) if is_run(path) else _read_results(path, truth)


def is_run(path: Location) -> bool:
    """Return whether there are shards: a store is not asked, but the names of files say what they
    are.
    """
    return path.is_dir() if isinstance(path, Path) else not path.name.endswith((".json", ".gz"))


def list_classes(names: Iterable[str]) -> str:
    """Return the first names, quoted, and whether there are more."""
    quoted = [repr(name) for name in names]
    more = " …" if len(quoted) > _CLASSES_NAMED else ""
    return ", ".join(quoted[:_CLASSES_NAMED]) + more


def _read_shards(root: Location) -> BoxSet:
    box_set = BoxSet(root)
    for record in iter_records(root, "objects"):
        if not record.ok:
            box_set.failed += 1
            continue
        boxes = []
        for box in record.objects:
            if not box.is_nothing:
                box_set.classes[box.category_id] = box.category
                boxes.append(ScoredBox(box.bbox, box.category, box.score, box.iscrowd))
        image = ImageName(record.dataset, record.image_id, image_base_name(record.file_name))
        box_set.add(image, (record.width, record.height), boxes)
    if not box_set.images:
        raise UserError(f"{root} contains no images with boxes; is the run finished?")
    return box_set


class _CocoBox(NamedTuple):
    """A box of a COCO file, whose class is a number."""

    category_id: int
    xywh: Sequence[float]
    score: float | None = None
    crowd: bool = False
    area: float | None = None

    def with_class(self, name: str) -> ScoredBox:
        return ScoredBox(self.xywh, name, self.score, self.crowd, self.area)


_BoxesById = defaultdict[str, list[_CocoBox]]


def _read_instances(path: Location) -> BoxSet:
    box_set = BoxSet(path)
    images: _Images = {}
    boxes = _BoxesById(list)
    for section, item in JsonStream(path):
        try:
            if section == "images":
                name = ImageName(
                    "coco", _id(item, "id"), image_base_name(fields.text(item, "file_name"))
                )
                images.setdefault(name.image_id, (name, fields.size(item)))
            elif section == "categories":
                box_set.classes[fields.integer(item, "id")] = fields.text(item, "name")
            elif section == "annotations":
                boxes[_id(item, "image_id")].append(_annotation(item))
        except (FieldError, TypeError, ValueError) as error:
            raise UserError(f"{path}: an item of {section!r}: {error}") from None
    if not images or not box_set.classes:
        raise UserError(
            f"{path} has no 'images' and 'categories': expected a run, an import or a COCO"
            " instances file"
        )
    _check_ids(box_set, images, boxes, "of an annotation is not in its images")
    _add_images(box_set, images, boxes)
    return box_set


def _annotation(item: dict[str, Any]) -> _CocoBox:
    category = fields.integer(item, "category_id")
    xywh = fields.numbers(fields.required(item, "bbox"), 4)
    area = float(item.get("area", xywh[2] * xywh[3]))
    return _CocoBox(category, xywh, None, bool(item.get("iscrowd")), area)


def _read_results(path: Location, truth: BoxSet) -> BoxSet:
    box_set = BoxSet(path, truth.classes, lists_images=False)
    boxes = _BoxesById(list)
    for _, item in JsonStream(path):
        try:
            category = fields.integer(item, "category_id")
            xywh = fields.numbers(fields.required(item, "bbox"), 4)
            (score,) = fields.numbers([item.get("score")], 1)
            boxes[_id(item, "image_id")].append(_CocoBox(category, xywh, score))
        except FieldError as error:
            raise UserError(f"{path}: {error}; {_RESULT_FORMS}") from None
    images = {}
    for name in truth.images:
        if name.image_id in boxes:
            images[name.image_id] = (name, UNKNOWN_SIZE)
    unknown_image = "is not in the ground truth; pass --truth of the images of the results"
    _check_ids(box_set, images, boxes, unknown_image)
    _add_images(box_set, images, boxes)
    return box_set


def _check_ids(box_set: BoxSet, images: _Images, boxes: _BoxesById, unknown_image: str) -> None:
    """Raise UserError if a box is of an image or a class that is not known; `unknown_image`: what
    the message says.
    """
    other_images = boxes.keys() - images.keys()
    if other_images:
        raise UserError(f"{box_set.path}: image_id {min(other_images)} {unknown_image}")
    used = {box.category_id for box in chain.from_iterable(boxes.values())}
    other_classes = used - box_set.classes.keys()
    if other_classes:
        known = list_classes(box_set.classes.values())
        wrong = f"category_id {min(other_classes)} is not a class of the ground truth"
        raise UserError(f"{box_set.path}: {wrong}; it has {known}")


def _add_images(
    box_set: BoxSet, images: Mapping[str, tuple[ImageName, ImageSize]], boxes: _BoxesById
) -> None:
    for image_id, (name, size) in images.items():
        named = []
        for box in boxes[image_id]:
            named.append(box.with_class(box_set.classes[box.category_id]))
        box_set.add(name, size, named)


def _id(item: object, key: str) -> str:
    return fields.identifier(fields.required(item, key)) or ""
