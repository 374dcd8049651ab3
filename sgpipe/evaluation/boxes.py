"""Boxes with their classes and scores, by image: from shards, COCO files, and predictions of relations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks.pairs import read_triplets
from sgpipe.evaluation.label_quality.arrays import ImageName, image_base_name
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.recipe import DetectConfig
from sgpipe.sources.annotated import (
    FieldError,
    integer_field,
    parse_id,
    parse_numbers,
    parse_side,
    required_field,
    text_field,
)
from sgpipe.sources.hoi import HICO, OPEN_IMAGES
from sgpipe.storage.shards import iter_records

_RESULT = {"image_id", "category_id", "bbox", "score"}
_FORMS = (
    "expected the folder of a run, a COCO results file (a list of 'image_id', 'category_id', 'bbox' and 'score'), or "
    "predictions in the formats of `sgpipe predict --form hico`, `--form openimages` or .parquet"
)


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of an image.

    size: width and height, 0 if not known. boxes: `[boxes, 4]` xywh in pixels. The others are `[boxes]`; areas are in
    pixels, by which COCO tells small from large.
    """

    size: tuple[int, int]
    boxes: Array
    classes: list[str]
    scores: Array
    crowd: Array
    areas: Array

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        boxes: Any,
        classes: list[str],
        scores: Any = None,
        crowd: Any = None,
        areas: Any = None,
    ) -> ImageBoxes:
        """Scores default to 1, crowd to False, and areas to those of the boxes."""
        xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        return cls(
            size,
            xywh,
            [" ".join(name.lower().split()) for name in classes],
            np.ones(len(xywh)) if scores is None else np.array(scores, dtype=np.float64),
            np.zeros(len(xywh), dtype=bool) if crowd is None else np.array(crowd, dtype=bool),
            xywh[:, 2] * xywh[:, 3] if areas is None else np.array(areas, dtype=np.float64),
        )

    def resized(self, size: tuple[int, int]) -> ImageBoxes:
        """Return the boxes in pixels of an image of this size, which may differ between datasets."""
        if self.size == size or not all((*self.size, *size)):
            return self
        factors = np.tile(np.array(size) / np.array(self.size), 2)
        return ImageBoxes.of(size, self.boxes * factors, self.classes, self.scores, self.crowd)


@dataclass
class BoxSet:
    """The boxes of many images.

    lists_images: whether images without boxes are in it; otherwise it is not known which images were looked at.
    scored: whether all boxes have scores. failed: images that could not be used. repeated: that had been added before.
    """

    images: dict[ImageName, ImageBoxes] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)
    lists_images: bool = True
    scored: bool = False
    failed: int = 0
    repeated: int = 0

    def add(self, name: ImageName, boxes: ImageBoxes) -> None:
        """Add an image; of an image that occurs twice, the first counts."""
        self.repeated += name in self.images
        self.images.setdefault(name, boxes)


def read_truth(path: Location) -> BoxSet:
    """Return the ground truth: shards, or a COCO instances file. Raises UserError: missing, damaged, or of another
    form.
    """
    return _checked(path, _shard_boxes(path) if is_run(path) else _coco_instances(path))


def read_detected(path: Location, truth: BoxSet) -> BoxSet:
    """Return the boxes to evaluate; COCO results have the class numbers of the ground truth.

    Predictions of relations have a box for each relation: those of one class suppress each other as a detector's do.

    Raises UserError: missing, damaged, of another form, without boxes, or with values that would falsify the result.
    """
    if is_run(path):
        return _checked(path, _shard_boxes(path))
    if not (isinstance(path, Path) and path.suffix == ".parquet"):
        first = next((item for _, item in JsonStream(path)), None)
        if isinstance(first, dict) and first.keys() >= _RESULT:
            return _checked(path, _coco_results(path, truth))
        if not (isinstance(first, dict) and "predictions" in first):
            raise UserError(f"{path} has no boxes to evaluate: {_FORMS}")
    found = _checked(path, _ends_of_relations(path))
    found.images = {name: _suppressed(image) for name, image in found.images.items()}
    return found


def _checked(path: Location, found: BoxSet) -> BoxSet:
    for name, image in found.images.items():
        place = f"{path}: image {name.image_id or name.base_name}"
        wrong = ~np.isfinite(image.boxes).all(1) | (image.boxes[:, 2:] < 0).any(1)
        if wrong.any():
            box = [round(side, 3) for side in image.boxes[wrong.argmax()].tolist()]
            raise UserError(f"{place}: box {box} (x, y, width, height) has a negative size, or is NaN or infinite")
        wrong = ~((image.scores >= 0) & (image.scores <= 1 + 1e-6))  # a softmax is rounded
        if wrong.any():
            raise UserError(f"{place}: score {image.scores[wrong.argmax()]:g}, expected 0 to 1")
    return found


def is_run(path: Location) -> bool:
    """Return whether there are shards: a store is not asked, but the names of files say what they are."""
    return path.is_dir() if isinstance(path, Path) else not path.name.endswith((".json", ".gz", ".parquet"))


def _shard_boxes(root: Location) -> BoxSet:
    found = BoxSet()
    unscored = 0
    for record in iter_records(root):
        if not record.ok:
            found.failed += 1
            continue
        objects = [box for box in record.objects if not box.is_nothing]
        scores = [box.score for box in objects if box.score is not None]
        unscored += len(objects) - len(scores)
        found.classes.update((box.category_id, box.category) for box in objects)
        boxes, names = [box.bbox for box in objects], [box.category for box in objects]
        size, crowd = (record.width, record.height), [box.iscrowd for box in objects]
        name = ImageName(record.dataset, record.image_id, image_base_name(record.file_name))
        found.add(name, ImageBoxes.of(size, boxes, names, scores if len(scores) == len(objects) else None, crowd))
    if not found.images:
        raise UserError(f"{root} contains no images with boxes; is the run finished?")
    found.scored = unscored == 0
    return found


def _coco_instances(path: Location) -> BoxSet:
    found = BoxSet()
    images: dict[str, tuple[ImageName, tuple[int, int]]] = {}
    rows: dict[str, list[Any]] = {}
    for key, item in JsonStream(path):
        try:
            if key == "images":
                number = parse_id(required_field(item, "id")) or ""
                name = ImageName("coco", number, image_base_name(text_field(item, "file_name")))
                images.setdefault(number, (name, (parse_side(item.get("width")), parse_side(item.get("height")))))
            elif key == "categories":
                found.classes[integer_field(item, "id")] = text_field(item, "name")
            elif key == "annotations":
                box = parse_numbers(required_field(item, "bbox"), 4)
                crowd, area = bool(item.get("iscrowd")), item.get("area", box[2] * box[3])
                row = (box, integer_field(item, "category_id"), crowd, float(area))
                rows.setdefault(parse_id(required_field(item, "image_id")) or "", []).append(row)
        except (FieldError, TypeError, ValueError) as error:
            raise UserError(f"{path}: an item of {key!r}: {error}") from None
    if not images or not found.classes:
        raise UserError(f"{path} has no 'images' and 'categories': expected a run, an import or a COCO instances file")
    if unknown := rows.keys() - images.keys():
        raise UserError(f"{path}: image_id {min(unknown)} of an annotation is not in its images")
    for number, (name, size) in images.items():
        own = rows.get(number, [])
        columns = [[row[place] for row in own] for place in range(4)]
        names = [_class_name(path, found.classes, each) for each in columns[1]]
        found.add(name, ImageBoxes.of(size, columns[0], names, None, columns[2], columns[3]))
    return found


def _class_name(path: Location, names: Mapping[int, str], number: int) -> str:
    if number not in names:
        raise UserError(
            f"{path}: category_id {number} is not a class of the ground truth; it has {listed(names.values())}"
        )
    return names[number]


def listed(names: Iterable[str]) -> str:
    """Return the first names, for messages."""
    first = list(names)
    return ", ".join(map(repr, first[:8])) + (" …" if len(first) > 8 else "")


def _coco_results(path: Location, truth: BoxSet) -> BoxSet:
    rows: dict[str, list[Any]] = {}
    for _, item in JsonStream(path):
        try:
            number = parse_id(required_field(item, "image_id")) or ""
            name = _class_name(path, truth.classes, integer_field(item, "category_id"))
            box = parse_numbers(required_field(item, "bbox"), 4)
            [score] = parse_numbers([required_field(item, "score")], 1)
            rows.setdefault(number, []).append((box, name, score))
        except FieldError as error:
            raise UserError(f"{path}: {error}; {_FORMS}") from None
    by_number = {name.image_id: name for name in truth.images}
    if unknown := rows.keys() - by_number.keys():
        raise UserError(
            f"{path}: image_id {min(unknown)} is not in the ground truth; pass --truth of the images of the results"
        )
    found = BoxSet(classes=truth.classes, lists_images=False, scored=True)
    for number, own in rows.items():
        boxes, names, scores = zip(*own, strict=True)
        found.add(by_number[number], ImageBoxes.of((0, 0), boxes, list(names), scores))
    return found


def _ends_of_relations(path: Location) -> BoxSet:
    """Subjects and objects of predicted relations, with their scores; equal ones are suppressed later."""
    found = BoxSet(scored=True)
    for name, triplets in read_triplets(
        path, {"hoi_prediction": HICO, "rel_prediction": OPEN_IMAGES}, [], predicates=False
    ):
        if triplets is None:
            found.failed += 1
            continue
        corners = np.concatenate((triplets.subject_box, triplets.object_box)).astype(float)
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
        names = [triplets.objects[number] for number in (*triplets.subject, *triplets.object)]
        found.add(ImageName("", "", image_base_name(name)), ImageBoxes.of((0, 0), boxes, names, [*triplets.score] * 2))
    return found


def _suppressed(ends: ImageBoxes) -> ImageBoxes:
    """Subjects and objects of relations without those that overlap a better one of their class."""
    import torch
    from torchvision.ops import batched_nms

    corners = np.concatenate((ends.boxes[:, :2], ends.boxes[:, :2] + ends.boxes[:, 2:]), axis=1)
    _, numbers = np.unique(ends.classes, return_inverse=True)
    tensors = (torch.from_numpy(each) for each in (corners, ends.scores, numbers.reshape(-1)))
    kept = batched_nms(*tensors, DetectConfig().overlap).numpy()
    return ImageBoxes.of(ends.size, ends.boxes[kept], [ends.classes[place] for place in kept], ends.scores[kept])
