"""What a test looks at of many rows."""

from collections.abc import Iterable, Mapping
from typing import Any


def values_of(rows: Iterable[object], *names: str) -> list[Any]:
    """Collect a field of each row, or tuples if there are several names.

    A field is an attribute, or the value of a key where rows are mappings.
    """
    values = [tuple(field_of(row, name) for name in names) for row in rows]
    return values if len(names) > 1 else [value for [value] in values]


def field_of(row: object, name: str) -> Any:
    return row[name] if isinstance(row, Mapping) else getattr(row, name)
