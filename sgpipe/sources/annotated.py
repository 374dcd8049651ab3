"""What every reader of human annotations makes: records with relations, one after the other, and class lists.

Reading the fields of annotation items, whatever exporters made of them.

Fitting annotated boxes into their image.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sgpipe.records import Box, Record, Relation
from sgpipe.utils.boxes import clip_box

ProblemCounts = Counter[str]
Reader = Callable[[ProblemCounts], Iterator[Record]]


@dataclass(frozen=True)
class DatasetClasses:
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
        image: the image file of a record that was read, where the source holds images.
    """

    dataset: str
    split: str
    read: Reader
    files: Mapping[str, Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: DatasetClasses | None = None
    image: Callable[[Record], bytes | None] | None = None


def image_id_from_name(file_name: str) -> str:
    """The id of an image that is known by its file: COCO's number, or the file's name without its ending."""
    stem = PurePosixPath(file_name).stem
    number = re.fullmatch(r"COCO_\w+_(\d+)", stem)
    return str(int(number[1])) if number else stem


def mark_failed(record: Record, reason: str) -> Record:
    """Turn a record into an error row, which holds no objects or relations."""
    record.objects, record.relations = [], []
    record.fail("import", replace_surrogates(reason))
    return record


def replace_objects(record: Record, boxes: list[Box | None], problems: ProblemCounts) -> None:
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


class FieldError(ValueError):
    """A field is missing or not what it should be; the message says which and what was expected."""


def parse_id(value: Any) -> str | None:
    """An image id as text; exporters also write 7 as 7.0. None: it is not an id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return replace_surrogates(str(value)) if isinstance(value, int | str) else None


def parse_integer(value: Any) -> int:
    """A category id. Raises TypeError or ValueError: it is not a whole number of 32 bits."""
    number = int(value)
    if (isinstance(value, float) and value != number) or abs(number) >= 2**31:
        raise ValueError(value)
    return number


def replace_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: JSON may escape halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_single_line(text: str) -> str:
    """Text as one line: control characters, which terminals act on, and runs of white space become one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", replace_surrogates(text)).split())


def parse_side(value: Any) -> int:
    """A positive image side in pixels, or 0."""
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(length) if math.isfinite(length) and 0 < length < 2**31 else 0


def required_field(item: Any, key: str) -> Any:
    """Raises FieldError: `item` is not an object, or lacks the key."""
    if not isinstance(item, dict) or key not in item:
        raise FieldError(f"there is no {key!r}")
    return item[key]


def list_field(item: Any, key: str) -> list[Any]:
    """A list. Raises FieldError."""
    value = required_field(item, key)
    if not isinstance(value, list):
        raise FieldError(f"{key!r} is not a list")
    return value


def integer_field(item: Any, key: str) -> int:
    """A whole number. Raises FieldError."""
    value = required_field(item, key)
    try:
        return parse_integer(value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{key!r} is {value!r}, expected a whole number") from None


def text_field(item: Any, key: str) -> str:
    """A text, as it stands there. Raises FieldError."""
    value = required_field(item, key)
    if not isinstance(value, str):
        raise FieldError(f"{key!r} is {value!r}, expected a text")
    return replace_surrogates(value)


def parse_numbers(value: Any, count: int) -> tuple[float, ...]:
    """`count` numbers; they may be NaN or infinite. Raises FieldError."""
    try:
        if not isinstance(value, list) or len(value) != count:
            raise TypeError
        return tuple(float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{str(value)[:80]} are not {count} numbers") from None


def xyxy_to_xywh(value: Any) -> tuple[float, float, float, float]:
    """A box given by two corners. Raises FieldError: it is not four numbers."""
    left, top, right, bottom = parse_numbers(value, 4)
    return left, top, right - left, bottom - top


CLIP_TOLERANCE = 0.01  # pixels; cutting off less is not counted


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
        boxes.append(box if bbox is box.bbox else Box(box.category, box.category_id, bbox, box.iscrowd))
    replace_objects(record, boxes, problems)
