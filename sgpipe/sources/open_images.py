"""Open Images V6 scene graphs: in RLIPv2's format (HOIA with `rel_annotations`) or as vrd-train-anno.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.text_files import read_text
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import (
    AnnotationSource,
    DatasetClasses,
    FieldError,
    ProblemCounts,
    check_object_index,
    mark_failed,
    parse_numbers,
    parse_side,
    replace_objects,
    required_field,
    text_field,
    xyxy_to_xywh,
)
from sgpipe.sources.formats import OPEN_IMAGES_HOIA, OPEN_IMAGES_VRD, require_format
from sgpipe.sources.hoi import OPEN_IMAGES, read_hoia
from sgpipe.sources.hoia_classes import check_classes


@dataclass(frozen=True)
class OpenImages:
    """The relations of a split of Open Images.

    Attributes:
        categories: OI_SGG_trainval_test_categories_dict.json, `{"obj": [...], "rel": [...]}`: the classes to keep;
            None: all 601. The ids of the annotations always refer to all 601.
    """

    annotations: Path
    split: str
    categories: Path | None = None

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or of another format."""
        if require_format(self.annotations, OPEN_IMAGES_HOIA, OPEN_IMAGES_VRD) is OPEN_IMAGES_HOIA:
            check_classes(self.annotations, OPEN_IMAGES, "open_images")
        files = {"annotations": self.annotations, "categories": self.categories}
        return AnnotationSource(
            dataset="open_images",
            split=self.split,
            read=self.records,
            files={role: path for role, path in files.items() if path},
            classes=self._classes(),
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """The images in file order, with the objects of the classes to keep."""
        classes = self._classes()
        for record in self._read(problems):
            boxes = [box if box.category in classes.objects else None for box in record.objects]
            if dropped := boxes.count(None):
                problems["unknown_category"] += dropped
            replace_objects(record, boxes, problems)
            yield record

    def _read(self, problems: ProblemCounts) -> Iterator[Record]:
        if require_format(self.annotations, OPEN_IMAGES_HOIA, OPEN_IMAGES_VRD) is OPEN_IMAGES_HOIA:
            yield from read_hoia(self.annotations, OPEN_IMAGES, "open_images", self.split, problems)
            return
        for _, item in JsonStream(self.annotations):
            record = _vrd_record(item, self.split)
            if record is None:
                problems["malformed"] += 1
            else:
                yield record

    def _classes(self) -> DatasetClasses:
        everything = OPEN_IMAGES.classes
        if self.categories is None:
            return everything
        try:
            lists = json.loads(read_text(self.categories, "categories file"))
            chosen = DatasetClasses(tuple(lists["obj"]), tuple(lists["rel"]))
        except (ValueError, RecursionError, KeyError, TypeError):
            raise UserError(f'{self.categories}: expected {{"obj": [names], "rel": [names]}}') from None
        unknown = [name for name in chosen.objects if name not in everything.objects]
        if unknown or chosen.relations != everything.relations:
            what = f"its class {unknown[0]!r} is not one of the 601" if unknown else "its relations are not the 30"
            raise UserError(f"{self.categories} does not belong to Open Images V6: {what}")
        return chosen


def _vrd_record(item: Any, split: str) -> Record | None:
    """An image given as parallel lists of boxes and labels; None if it has no name."""
    try:
        name = text_field(item, "img_fn")
    except FieldError:
        return None
    record = Record(name, "open_images", split, f"{name}.jpg", 0, 0)
    try:
        width, height = parse_numbers(required_field(item, "img_size"), 2)
        record.width, record.height = parse_side(width), parse_side(height)
        pairs = zip(required_field(item, "bbox"), required_field(item, "det_labels"), strict=True)
        record.objects = [Box(OPEN_IMAGES.objects[label], int(label), xyxy_to_xywh(bbox)) for bbox, label in pairs]
        record.relations = [_vrd_relation(entry, len(record.objects)) for entry in required_field(item, "rel")]
    except FieldError as error:
        return mark_failed(record, str(error))
    except (TypeError, ValueError, KeyError):
        return mark_failed(record, "the labels are not one of the 601 classes per box")
    return record


def _vrd_relation(entry: Any, objects: int) -> Relation:
    subject, object_, label = parse_numbers(entry, 3)
    for index in (subject, object_):
        check_object_index(index, objects, f"object {index:g} of a relation")
    if label not in OPEN_IMAGES.relations:
        raise FieldError(f"label {label:g} of a relation is not a relation of the dataset")
    return Relation(int(subject), int(object_), OPEN_IMAGES.relations[int(label)])
