"""What every reader of human annotations makes: records with relations, one after the other, and class lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sgpipe.records import Box, Record, Relation
from sgpipe.sources.fields import clean

ProblemCounts = Counter[str]
Reader = Callable[[ProblemCounts], Iterator[Record]]


@dataclass(frozen=True)
class ClassLists:
    """All classes of a dataset that has a closed set of them, in the order of its official indices."""

    objects: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class AnnotationSource:
    """One annotation file (and what belongs to it), ready to be read.

    Attributes:
        files: every file that decides the records, by role.
        options: every option that does.
        read: yields the records in file order and counts what it sets aside. Boxes are as annotated, not yet
            clipped; a record whose size is not annotated has width and height 0.
        picture: the picture file of a record that was read, where the source holds pictures.
    """

    dataset: str
    split: str
    read: Reader
    files: Mapping[str, Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: ClassLists | None = None
    picture: Callable[[Record], bytes | None] | None = None


def picture_id(file_name: str) -> str:
    """The id of an image that is known by its file: COCO's number, or the file's name without its ending."""
    stem = PurePosixPath(file_name).stem
    number = re.fullmatch(r"COCO_\w+_(\d+)", stem)
    return str(int(number[1])) if number else stem


def fail(record: Record, reason: str) -> Record:
    """Turn a record into an error row, which holds no objects or relations."""
    record.objects, record.relations = [], []
    record.fail("import", clean(reason))
    return record


def keep_objects(record: Record, boxes: list[Box | None], problems: ProblemCounts) -> None:
    """Give the record the boxes that are not None; relations of the others are dropped and counted."""
    kept = [index for index, box in enumerate(boxes) if box is not None]
    place = {index: number for number, index in enumerate(kept)}
    relations = [
        Relation(place[item.subject], place[item.object], item.predicate, item.confidence)
        for item in record.relations
        if item.subject in place and item.object in place
    ]
    if lost := len(record.relations) - len(relations):
        problems["relations_of_dropped_boxes"] += lost
    record.objects = [box for box in boxes if box is not None]
    record.relations = relations
