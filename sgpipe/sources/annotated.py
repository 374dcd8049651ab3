"""What every annotation reader shares: its result, an `AnnotationSource`, and edits of records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

from sgpipe.errors import ImageError, UserError
from sgpipe.files.locations import Location
from sgpipe.records import Box, Record, Relation
from sgpipe.sources import fields
from sgpipe.sources.fields import FieldError
from sgpipe.utils.boxes import clip_box
from sgpipe.utils.console import count

ProblemCounts: TypeAlias = Counter[str]

CLIP_TOLERANCE = 0.01  # pixels; smaller cuts are not counted


@dataclass(frozen=True)
class DatasetClasses:
    """The closed class lists of a dataset, in the order of its official indices."""

    objects: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class AnnotationSource:
    """An annotation file, with its companion files, ready to be read.

    Attributes:
        read: yields the records in file order and counts problems. Boxes are as annotated, not yet clipped; a
            record whose image size is not annotated has width and height 0.
        files, options: everything that affects the records, by role.
        image: returns the image file of a record that was read, if the source contains images.
        origin: identities of the runs that the rows come from, if the source records them.
        boxes: the form of boxes in the files, where other exporters may write another; None: it is fixed.
    """

    dataset: str
    split: str
    read: Callable[[ProblemCounts], Iterator[Record]]
    files: Mapping[str, Location]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: DatasetClasses | None = None
    image: Callable[[Record], bytes | None] | None = None
    origin: Sequence[Mapping[str, Any]] = ()
    boxes: Literal["xywh", "xyxy"] | None = None


def image_id_from_name(file_name: str) -> str:
    """Return the id of an image that is known by its file only: COCO's number, or the name without its suffix."""
    stem = PurePosixPath(file_name).stem
    number = re.fullmatch(r"COCO_\w+_(\d+)", stem)
    return str(int(number[1])) if number else stem


def mark_failed(record: Record, reason: str) -> None:
    """Turn a record into an error row, which has no objects and no relations."""
    record.objects = []
    record.fail("import", fields.clean(reason))


@contextmanager
def error_row(record: Record) -> Iterator[None]:
    """Make a FieldError or an ImageError in the body of the `with` statement the reason of an error row."""
    try:
        yield
    except (FieldError, ImageError) as error:
        mark_failed(record, str(error))


def replace_objects(record: Record, boxes: list[Box | None], problems: ProblemCounts) -> None:
    """Set the record's objects to `boxes`, without those that are None; drop and count the relations of the latter."""
    kept = [index for index, box in enumerate(boxes) if box is not None]
    new_index = {old: new for new, old in enumerate(kept)}
    relations = [
        Relation(new_index[item.subject], new_index[item.object], item.predicate, item.confidence)
        for item in record.relations
        if item.subject in new_index and item.object in new_index
    ]
    problems["relations_of_dropped_boxes"] += len(record.relations) - len(relations)
    record.objects, record.relations = [box for box in boxes if box is not None], relations


def clip_objects(record: Record, problems: ProblemCounts) -> None:
    """Clip the boxes to the image; drop those without area inside it, together with their relations."""
    boxes: list[Box | None] = []
    for box in record.objects:
        bbox = box.bbox if box.is_nothing else clip_box(box.bbox, record.width, record.height)
        if bbox is None:
            problems["degenerate"] += 1
            boxes.append(None)
            continue
        problems["clipped"] += any(abs(a - b) > CLIP_TOLERANCE for a, b in zip(box.bbox, bbox, strict=True))
        boxes.append(box if bbox is box.bbox else replace(box, bbox=bbox))
    replace_objects(record, boxes, problems)


def drop_nameless(record: Record, problems: ProblemCounts) -> None:
    """Drop relations with a blank predicate and objects with a blank name."""
    named = [relation for relation in record.relations if relation.predicate.strip()]
    boxes = [box if box.category.strip() else None for box in record.objects]
    problems["nameless"] += len(record.relations) - len(named) + boxes.count(None)
    record.relations = named
    replace_objects(record, boxes, problems)


def check_index(index: float, objects: int, what: str) -> None:
    """Raises FieldError, with a message that starts with `what`: the image has no object of this index."""
    if index not in range(objects):
        raise FieldError(f"{what} is out of range: the image has {count(objects, 'object')}")


def triplet_relations(triplets: Any, names: Mapping[int, str], objects: Sequence[int]) -> list[Relation]:
    """Return relations given as [subject, object, number of the predicate]; `objects`: indices by those of triplets."""
    relations = []
    for triplet in triplets if isinstance(triplets, list) else [triplets]:
        subject, object_, label = fields.numbers(triplet, 3)
        for index in (subject, object_):
            check_index(index, len(objects), f"object {index:g} of a relation")
        relations.append(Relation(objects[int(subject)], objects[int(object_)], predicate_of(names, label)))
    return relations


def predicate_of(names: Mapping[int, str], number: float) -> str:
    """Return the predicate of a number. Raises FieldError: there is none."""
    if number not in names:
        raise FieldError(f"label {number:g} of a relation is not a predicate of the dataset")
    return names[int(number)]


def add_name(names: dict[int, str], number: int, name: str) -> None:
    """Add a category. Raises UserError: its id is already that of another name, so that boxes of both would get one."""
    if names.setdefault(number, name) != name:
        raise UserError(f"category {number} is both {names[number]!r} and {name!r}; each id must have one name")
