"""Nested numbers as JSON has them, ours beside theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.parity.golden import NotGoldenError, Report, Row

TOLERANCE = 1e-6
NOT_FIGURES = {"env", "mode", "seconds_official", "cpu_seconds_official", "printed"}  # of how they were made


def compare(report: Report, section: str, ours: Any, theirs: Any, name: str = "") -> None:
    """One row per list or table of numbers, with the largest difference. What only one side has fails."""
    if is_table(theirs) and is_table(ours):
        _compare_numbers(report, section, name, ours, theirs)
    elif isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        numbers = {key: value for key, value in theirs.items() if key not in NOT_FIGURES and is_number(value)}
        if numbers:
            own = {key: value for key, value in ours.items() if is_number(value)}
            _compare_numbers(report, section, name, own, numbers)
        for key in _keys(theirs, ours):
            if key not in numbers and not (key in ours and is_number(ours[key])):
                inner = f"{name} {key}".strip()
                if key not in theirs or key not in ours:
                    only = "computed" if key in ours else "official"
                    report.require(section, f"{inner}: only {only}", False)
                else:
                    compare(report, section, ours[key], theirs[key], inner)
    else:
        report.require(section, f"{name}: of another form", False)


def is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def is_table(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [{}]
    return all(map(is_number, items))


def _keys(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterable[str]:
    return [key for key in {**theirs, **ours} if key not in NOT_FIGURES]


def _compare_numbers(report: Report, section: str, name: str, ours: Any, theirs: Any) -> None:
    own, other = dict(_numbered(ours)), dict(_numbered(theirs))
    differences = {key: _difference(own[key], other[key]) for key in own.keys() & other.keys()}
    differences.update((key, math.inf) for key in own.keys() ^ other.keys())
    worst = max(differences, key=lambda key: differences[key], default=None)
    largest = 0.0 if worst is None else differences[worst]
    place = f"{name} ({len(other)} numbers{f', {worst}' if largest > TOLERANCE else ''})"
    report.rows.append(Row(section, place.strip(), largest, TOLERANCE, largest <= TOLERANCE))


def _numbered(values: Any) -> Iterator[tuple[Any, float]]:
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return ((key, math.nan if value is None else float(value)) for key, value in items)


def _difference(ours: float, theirs: float) -> float:
    """Absolute; two NaN are equal, one is infinitely far."""
    if math.isnan(ours) or math.isnan(theirs):
        return 0.0 if math.isnan(ours) and math.isnan(theirs) else math.inf
    return 0.0 if ours == theirs else abs(ours - theirs)


def by_class(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Rows with a class each as columns: column name, class, number."""
    columns: dict[str, dict[str, Any]] = {}
    for row in rows:
        for column, value in row.items():
            if column != key:
                columns.setdefault(column, {})[str(row[key])] = value
    return columns


def stable_settings(report: Report, section: str, settings: Mapping[str, Any], stable: str) -> dict[str, Any]:
    """The settings to compare: where some sorted stably, only they."""
    chosen = {name: value for name, value in settings.items() if stable in name} or dict(settings)
    left_out = [name for name in settings if name not in chosen]
    report.skipped += [f"{section}, {name}: there numpy sorted equal scores as it liked" for name in left_out]
    return chosen


def options_of(case: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """How a micro case is to be evaluated. Raises NotGoldenError: in some other way than those known."""
    options = dict(case.get("kw", {}))
    if not options.keys() <= known:
        raise NotGoldenError(f"micro case {case['name']!r} has an unknown option")
    return options
