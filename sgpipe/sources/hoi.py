"""HICO-DET and V-COCO in HOIA form, as QPIC, RLIP and others use them: boxes, and relations between their indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource, ClassLists, ProblemCounts, fail, picture_id
from sgpipe.sources.fields import FieldError, as_id, listed, required, side, whole, word, xyxy_to_xywh
from sgpipe.sources.forms import HICO_HOIA, HICO_PAIRS, HOIA, VCOCO_HOIA, VCOCO_PAIRS, require
from sgpipe.sources.hoi_pairs import read_hico_pairs, read_vcoco_pairs
from sgpipe.sources.json_stream import JsonStream
from sgpipe.vocabulary import category_names, relation_names

_NOTHING = -1  # the index of the object that a relation does not have, and the category_id of such an object


@dataclass(frozen=True)
class Numbering:
    """What the numbers of a HOIA file mean.

    Attributes:
        key: what the list of relations is called.
        objects, relations: names by category_id.
        objectless: whether a relation may have no object.
    """

    key: str
    objects: Mapping[int, str]
    relations: Mapping[int, str]
    objectless: bool = False

    @property
    def classes(self) -> ClassLists:
        """All names, in order, and with them that of the missing object."""
        nothing = (NO_OBJECT,) if self.objectless else ()
        return ClassLists((*self.objects.values(), *nothing), tuple(self.relations.values()))


HICO = Numbering("hoi_annotation", category_names("coco"), relation_names("hico"))
VCOCO = Numbering("hoi_annotation", category_names("coco"), relation_names("vcoco"), objectless=True)


def hico_source(annotations: Path, split: str) -> AnnotationSource:
    """HICO-DET, in HOIA form or in that of instances_train2015.json. Raises UserError: the file is another."""
    form = require(annotations, HICO_HOIA, HICO_PAIRS, HOIA)
    if form is HICO_PAIRS:
        read = partial(read_hico_pairs, annotations, split)
    else:
        read = partial(read_hoia, annotations, HICO, "hico", split)
    return AnnotationSource("hico", split, read, {"annotations": annotations}, classes=HICO.classes)


def vcoco_source(annotations: Path, split: str) -> AnnotationSource:
    """V-COCO, in HOIA form or in that of instances_vcoco_train.json. Raises UserError: the file is another."""
    form = require(annotations, VCOCO_HOIA, VCOCO_PAIRS, HOIA)
    if form is VCOCO_PAIRS:
        read = partial(read_vcoco_pairs, annotations, split)
    else:
        read = partial(read_hoia, annotations, VCOCO, "vcoco", split)
    return AnnotationSource("vcoco", split, read, {"annotations": annotations}, classes=VCOCO.classes)


def read_hoia(
    annotations: Path, numbering: Numbering, dataset: str, split: str, problems: ProblemCounts
) -> Iterator[Record]:
    """The images of a HOIA file. One whose indices or boxes are out of order is an error row, as none can be trusted.

    Raises UserError: the file is missing, cut short or not JSON.
    """
    for _, item in JsonStream(annotations):
        try:
            name = word(item, "file_name")
        except FieldError:
            problems["malformed"] += 1
            continue
        number = as_id(item.get("image_id")) or picture_id(name)
        record = Record(number, dataset, split, name, side(item.get("width")), side(item.get("height")))
        try:
            record.objects = [_box(entry, numbering.objects) for entry in listed(item, "annotations")]
            record.relations = _relations(listed(item, numbering.key), record, numbering)
        except FieldError as error:
            fail(record, str(error))
        yield record


def _box(entry: Any, names: Mapping[int, str]) -> Box:
    category = whole(entry, "category_id")
    if category not in names:
        raise FieldError(f"category_id {category} of an object is none of the dataset's")
    return Box(names[category], category, xyxy_to_xywh(required(entry, "bbox")))


def _relations(entries: list[Any], record: Record, numbering: Numbering) -> list[Relation]:
    """The relations; what they do not have is added to the record's objects."""
    annotated = len(record.objects)
    relations = []
    for entry in entries:
        subject, object_, verb = (whole(entry, key) for key in ("subject_id", "object_id", "category_id"))
        if verb not in numbering.relations:
            raise FieldError(f"category_id {verb} of a relation is none of the dataset's")
        if object_ == _NOTHING and numbering.objectless:
            if len(record.objects) == annotated:
                record.objects.append(Box(NO_OBJECT, _NOTHING, (0.0, 0.0, 0.0, 0.0)))
            object_ = annotated
        elif not 0 <= object_ < annotated:
            raise FieldError(f"object_id {object_} of a relation points to none of {annotated} objects")
        if not 0 <= subject < annotated:
            raise FieldError(f"subject_id {subject} of a relation points to none of {annotated} objects")
        relations.append(Relation(subject, object_, numbering.relations[verb]))
    return relations
