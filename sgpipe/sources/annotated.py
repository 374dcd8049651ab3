"""What every annotation reader shares: its result (`AnnotationSource`), edits of records, and checked access to fields.

Annotation files come from many exporters. The `parse_*` functions accept the ways they write a value, and the `*_field`
functions name the key that is missing or wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.records import Box, Record, Relation
from sgpipe.utils.boxes import clip_box
from sgpipe.utils.console import count

ProblemCounts = Counter[str]
Reader = Callable[[ProblemCounts], Iterator[Record]]

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
        files: every file that affects the records, by role.
        options: every option that affects the records.
        read: yields the records in file order and counts problems. Boxes are as annotated, not yet clipped; a
            record whose image size is not annotated has width and height 0.
        image: returns the image file of a record that was read, if the source contains images.
        origin: identities of the runs that the rows come from, if the source records them.
        boxes: the form of boxes in the files, where other exporters may write another; None: it is fixed.
    """

    dataset: str
    split: str
    read: Reader
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


def mark_failed(record: Record, reason: str) -> Record:
    """Turn a record into an error row, which has no objects and no relations."""
    record.objects, record.relations = [], []
    record.fail("import", replace_surrogates(reason))
    return record


def replace_objects(record: Record, boxes: list[Box | None], problems: ProblemCounts) -> None:
    """Set the record's objects to `boxes`, without those that are None; drop and count the relations of the latter."""
    kept = [index for index, box in enumerate(boxes) if box is not None]
    new_index = {old: new for new, old in enumerate(kept)}
    relations = [
        Relation(new_index[item.subject], new_index[item.object], item.predicate, item.confidence)
        for item in record.relations
        if item.subject in new_index and item.object in new_index
    ]
    if dropped := len(record.relations) - len(relations):
        problems["relations_of_dropped_boxes"] += dropped
    record.objects = [box for box in boxes if box is not None]
    record.relations = relations


def clip_objects(record: Record, problems: ProblemCounts) -> None:
    """Clip the boxes to the image; drop those without area inside it, together with their relations."""
    boxes: list[Box | None] = []
    for box in record.objects:
        bbox = box.bbox if box.is_nothing else clip_box(box.bbox, record.width, record.height)
        if bbox is None:
            problems["degenerate"] += 1
            boxes.append(None)
            continue
        if any(abs(a - b) > CLIP_TOLERANCE for a, b in zip(box.bbox, bbox, strict=True)):
            problems["clipped"] += 1
        boxes.append(box if bbox is box.bbox else replace(box, bbox=bbox))
    replace_objects(record, boxes, problems)


def replace_surrogates(text: str) -> str:
    """Text that UTF-8 can encode: JSON can escape halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_single_line(text: str) -> str:
    """Text on one line: control characters, which terminals interpret, and runs of white space become one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", replace_surrogates(text)).split())


def parse_id(value: Any) -> str | None:
    """Return an image id as text, or None if it is not an id. Some exporters write 7 as 7.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return replace_surrogates(str(value)) if isinstance(value, int | str) else None


def parse_integer(value: Any) -> int:
    """Return a category id. Raises TypeError, ValueError or OverflowError: it is not a 32-bit integer."""
    number = int(value)
    if (isinstance(value, float) and value != number) or abs(number) >= 2**31:
        raise ValueError(value)
    return number


def parse_side(value: Any) -> int:
    """Return the width or height of an image in pixels, or 0 if it is not a positive number."""
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(length) if math.isfinite(length) and 0 < length < 2**31 else 0


class FieldError(ValueError):
    """A field is missing or has the wrong type; the message names the field and what was expected."""


def parse_numbers(value: Any, length: int) -> tuple[float, ...]:
    """`length` numbers, possibly NaN or infinite. Raises FieldError."""
    try:
        if not isinstance(value, list) or len(value) != length:
            raise TypeError
        return tuple(float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"expected {length} numbers, found {str(value)[:80]}") from None


def parse_confidence(value: Any) -> float | None:
    """Return the confidence of a relation; None: it has none. Raises FieldError: it is not a number from 0 to 1."""
    if value is None:
        return None
    (confidence,) = parse_numbers([value], 1)
    if not 0 <= confidence <= 1:
        raise FieldError(f"'confidence' is {value!r}, expected 0 to 1")
    return confidence


def xyxy_to_xywh(value: Any) -> tuple[float, float, float, float]:
    """Return a box given as two corners, as x, y, width, height. Raises FieldError: it is not four numbers."""
    left, top, right, bottom = parse_numbers(value, 4)
    return left, top, right - left, bottom - top


def parse_segmentation(value: Any, width: int, height: int, problems: ProblemCounts) -> str | None:
    """Return the JSON of an object's polygons or run lengths, or None; what is neither, or of another size, is counted.

    A `width` and `height` of 0 are unknown.
    """
    if not value:
        return None
    try:
        if isinstance(value, dict):
            runs, sides = _run_lengths(value["counts"]), value["size"]
            good = sides == [height, width] or not width
            good &= min(runs) >= 0 and sum(runs) == sides[0] * sides[1]
        else:
            good = all(len(ring) > 5 and len(ring) % 2 == 0 and all(map(math.isfinite, ring)) for ring in value)
    except (AttributeError, TypeError, ValueError, LookupError, OverflowError):
        good = False
    problems["segmentations"] += not good
    return json.dumps(value) if good else None


def drop_unfit_masks(record: Record, problems: ProblemCounts) -> None:
    """Drop and count run lengths of another size than that of the image, which was unknown when they were read."""
    for box in record.objects:
        value = json.loads(box.segmentation or "[]")
        if isinstance(value, dict) and value["size"] != [record.height, record.width]:
            box.segmentation = None
            problems["segmentations"] += 1


def _run_lengths(counts: str | list[int]) -> list[int]:
    """Return the run lengths of a mask, also compressed: 5 bits in a character, as differences (COCO's maskApi.c)."""
    if isinstance(counts, list):
        return [int(length) for length in counts]
    lengths: list[int] = []
    bits = shift = 0
    for code in counts.encode("ascii"):
        code -= ord("0")
        bits |= (code & 31) << shift
        shift += 5
        if not code & 32:
            bits -= (code & 16) << (shift - 4)
            lengths.append(bits + (lengths[-2] if len(lengths) > 2 else 0))
            bits = shift = 0
    return lengths


def check_object_index(index: float, objects: int, what: str) -> None:
    """Raises FieldError, with a message that starts with `what`: the image has no object of this index."""
    if index not in range(objects):
        raise FieldError(f"{what} is out of range: the image has {count(objects, 'object')}")


def triplet_relations(triplets: Any, names: Mapping[int, str], objects: Sequence[int]) -> list[Relation]:
    """Return relations given as [subject, object, number of the predicate]; `objects`: indices by those of triplets.

    Raises FieldError: a triplet refers to no object or no predicate.
    """
    relations = []
    for triplet in triplets if isinstance(triplets, list) else [triplets]:
        subject, object_, label = parse_numbers(triplet, 3)
        for index in (subject, object_):
            check_object_index(index, len(objects), f"object {index:g} of a relation")
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


def required_field(item: Any, key: str) -> Any:
    """Return the value of a key. Raises FieldError: `item` is not an object, or lacks the key."""
    if not isinstance(item, dict) or key not in item:
        raise FieldError(f"{key!r} is missing")
    return item[key]


def list_field(item: Any, key: str) -> list[Any]:
    """Return a field that is a list. Raises FieldError."""
    value = required_field(item, key)
    if not isinstance(value, list):
        raise FieldError(f"{key!r} is not a list")
    return value


def integer_field(item: Any, key: str) -> int:
    """Return a field that is an integer. Raises FieldError."""
    value = required_field(item, key)
    try:
        return parse_integer(value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{key!r} is {value!r}, expected an integer") from None


def text_field(item: Any, key: str) -> str:
    """Return a field that is text, otherwise unchanged. Raises FieldError."""
    value = required_field(item, key)
    if not isinstance(value, str):
        raise FieldError(f"{key!r} is {value!r}, expected text")
    return replace_surrogates(value)
