"""Reading the fields of annotation items, whatever exporters made of them."""

from __future__ import annotations

import math
import re
from typing import Any


class FieldError(ValueError):
    """A field is missing or not what it should be; the message says which and what was expected."""


def as_id(value: Any) -> str | None:
    """An image id as text; exporters also write 7 as 7.0. None: it is not an id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean(str(value)) if isinstance(value, int | str) else None


def integer(value: Any) -> int:
    """A category id. Raises TypeError or ValueError: it is not a whole number of 32 bits."""
    number = int(value)
    if (isinstance(value, float) and value != number) or abs(number) >= 2**31:
        raise ValueError(value)
    return number


def clean(text: str) -> str:
    """Text that UTF-8 can hold: JSON may escape halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def line(text: str) -> str:
    """Text as one line: control characters, which terminals act on, and runs of white space become one space."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", clean(text)).split())


def side(value: Any) -> int:
    """A positive image side in pixels, or 0."""
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(length) if math.isfinite(length) and 0 < length < 2**31 else 0


def required(item: Any, key: str) -> Any:
    """Raises FieldError: `item` is not an object, or lacks the key."""
    if not isinstance(item, dict) or key not in item:
        raise FieldError(f"there is no {key!r}")
    return item[key]


def listed(item: Any, key: str) -> list[Any]:
    """A list. Raises FieldError."""
    value = required(item, key)
    if not isinstance(value, list):
        raise FieldError(f"{key!r} is not a list")
    return value


def whole(item: Any, key: str) -> int:
    """A whole number. Raises FieldError."""
    value = required(item, key)
    try:
        return integer(value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{key!r} is {value!r}, expected a whole number") from None


def word(item: Any, key: str) -> str:
    """A text, as it stands there. Raises FieldError."""
    value = required(item, key)
    if not isinstance(value, str):
        raise FieldError(f"{key!r} is {value!r}, expected a text")
    return clean(value)


def numbers(value: Any, count: int) -> tuple[float, ...]:
    """`count` numbers; they may be NaN or infinite. Raises FieldError."""
    try:
        if not isinstance(value, list) or len(value) != count:
            raise TypeError
        return tuple(float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{str(value)[:80]} are not {count} numbers") from None


def xyxy_to_xywh(value: Any) -> tuple[float, float, float, float]:
    """A box given by two corners. Raises FieldError: it is not four numbers."""
    left, top, right, bottom = numbers(value, 4)
    return left, top, right - left, bottom - top
