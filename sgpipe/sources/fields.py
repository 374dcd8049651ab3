"""Checked access to the values of annotation files, however their many exporters write them.

Functions of an item and a key raise a FieldError that names the key.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, object]


class FieldError(ValueError):
    """A field is missing or has the wrong type; the message names the field and what was
    expected.
    """


def mapping(value: object) -> JsonObject:
    """Return a JSON object as it is; anything else has no fields."""
    return value if isinstance(value, dict) else {}


def required(item: object, key: str) -> object:
    fields = mapping(item)
    if key not in fields:
        raise FieldError(f"{key!r} is missing")
    return fields[key]


def members(item: object, key: str) -> JsonObject:
    value = required(item, key)
    if not isinstance(value, dict):
        raise FieldError(f"{key!r} is not an object")
    return value


def array(item: object, key: str, default: list[object] | None = None) -> list[object]:
    """Return a list, or the default of one that is missing."""
    value = required(item, key) if default is None else mapping(item).get(key, default)
    if not isinstance(value, list):
        raise FieldError(f"{key!r} is not a list")
    return value


def integer(item: object, key: str) -> int:
    value = required(item, key)
    try:
        return whole(value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{key!r} is {value!r}, expected an integer") from None


def text(item: object, key: str) -> str:
    value = required(item, key)
    if not isinstance(value, str):
        raise FieldError(f"{key!r} is {value!r}, expected text")
    return clean(value)


def size(item: object) -> tuple[int, int]:
    """Return the width and height of an image in pixels; one that is not a positive number is 0."""
    sides = mapping(item)
    return side(sides.get("width")), side(sides.get("height"))


def side(value: Any) -> int:
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(length) if math.isfinite(length) and 0 < length < 2**31 else 0


def whole(value: Any) -> int:
    """Return a 32-bit integer.

    Raises:
        TypeError, ValueError, OverflowError: it is something else.
    """
    number = int(value)
    if (isinstance(value, float) and value != number) or abs(number) >= 2**31:
        raise ValueError(value)
    return number


def identifier(value: object) -> str | None:
    """Return an image id as text, or None if it is not an id. Some exporters write 7 as 7.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean(str(value)) if isinstance(value, int | str) else None


def required_id(item: object, key: str = "image_id") -> str:
    """Return an id as text.

    Raises:
        FieldError: it is not an id.
    """
    stated_id = identifier(mapping(item).get(key))
    if stated_id is None:
        raise FieldError(f"{key!r} is not a number or text")
    return stated_id


def numbers(value: object, length: int) -> tuple[float, ...]:
    """Return a list of `length` numbers, possibly NaN or infinite. Raises FieldError."""
    try:
        if not isinstance(value, list) or len(value) != length:
            raise TypeError
        return tuple(float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"expected {length} numbers, found {str(value)[:80]}") from None


def as_list(value: object) -> list[object]:
    """Return a list as it is, anything else as its only item; of None, none."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def confidence(value: object) -> float | None:
    """Return the confidence of a relation, if it has one.

    Raises:
        FieldError: it is not a number from 0 to 1.
    """
    if value is None:
        return None
    (number,) = numbers([value], 1)
    if not 0 <= number <= 1:
        raise FieldError(f"'confidence' is {value!r}, expected 0 to 1")
    return number


def corners(value: object) -> tuple[float, float, float, float]:
    """Return an xyxy box as xywh. Raises FieldError."""
    left, top, right, bottom = numbers(value, 4)
    return left, top, right - left, bottom - top


def clean(value: str) -> str:
    """Return text that UTF-8 can encode: JSON can escape halves of surrogate pairs."""
    return value.encode("utf-8", "replace").decode("utf-8")


def escape_name(name: str) -> str:
    """Return a file name as UTF-8: bytes that are not are shown as \\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def why_not_stored(name: str) -> str:
    """Return why rows, which are UTF-8, cannot name a file; "": they can."""
    escaped = escape_name(name)
    return "" if escaped == name else f"the file name is not UTF-8: {escaped}; rename the file"


def single_line(value: str) -> str:
    """Replace control characters, which terminals interpret, and runs of white space by one
    space.
    """
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", clean(value)).split())


def segmentation(value: object, width: int, height: int, problems: Counter[str]) -> str | None:
    """Return the JSON of an object's polygons or run lengths; what is neither, or of another size,
    is counted.

    A `width` and `height` of 0 are unknown.
    """
    if not value:
        return None
    try:
        is_valid = _is_segmentation(value, [height, width])
    except (AttributeError, TypeError, ValueError, LookupError, OverflowError):
        is_valid = False
    problems["segmentations"] += not is_valid
    return json.dumps(value) if is_valid else None


def _is_segmentation(value: Any, size: list[int]) -> bool:
    """Return whether polygons have points, or run lengths fill an image of `[height, width]`."""
    if not isinstance(value, dict):
        return all(_is_polygon(ring) for ring in value)
    runs = _run_lengths(value["counts"])
    height, width = value["size"]
    fits = [height, width] == size or not size[1]
    return fits and min(runs) >= 0 and sum(runs) == height * width


def _is_polygon(ring: list[float]) -> bool:
    return len(ring) > 5 and len(ring) % 2 == 0 and all(map(math.isfinite, ring))


def _run_lengths(counts: str | list[int]) -> list[int]:
    """Return the run lengths of a mask, also compressed: 5 bits in a character, as differences
    (COCO's maskApi.c).
    """
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
