"""Precision over recall of groups of classes, as an SVG image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import curve, monotone
from rlip_model.evaluation.scores import ClassScores

RECALLS = np.linspace(0, 1, 101)

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_SIDE, _LEFT, _TOP = 320, 60, 40
_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def precision_at(recall: Array, precision: Array) -> Array:
    """`[101]`: the best precision at each of `RECALLS` or a larger one, 0 where it is not reached.

    Args:
        recall, precision: `[points]`, recall rising and precision monotone.
    """
    reached = np.searchsorted(recall, RECALLS - 1e-9, side="left")
    points: Array = np.append(precision, 0.0)[reached]
    return points


def mean_curve(curves: Iterable[Array]) -> Array:
    """`[101]`, of several classes, all equally important; 0 of none."""
    return np.mean(list(curves) or [np.zeros(len(RECALLS))], axis=0)


def class_curve(scores: ClassScores, classes: Array | None = None) -> Array:
    """`[101]`, the mean of all or some classes that are true somewhere."""
    return mean_curve(_class_curves(scores, classes))


def _class_curves(scores: ClassScores, classes: Array | None) -> Iterator[Array]:
    for number, truths in zip(scores.classes.tolist(), scores.targets.tolist(), strict=True):
        if classes is None or number in classes:
            _, correct = scores.of_class(number)
            recall, precision = curve(correct, truths)
            yield precision_at(recall, monotone(precision))


def precision_recall_svg(title: str, curves: Mapping[str, Array]) -> str:
    """An image of precision `[101]` at `RECALLS` by the groups' names."""
    width, height = _LEFT + _SIDE + 220, _TOP + _SIDE + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
        *_axes(),
    ]
    for number, (name, precision) in enumerate(curves.items()):
        parts += _line(number, name, precision)
    return "\n".join([*parts, "</svg>", ""])


def _axes() -> Iterator[str]:
    for tick in _TICKS:
        x, y = _place(tick, tick)
        grid = 'stroke="#ddd"'
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _SIDE}" {grid}/>'
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _SIDE}" y2="{y:.1f}" {grid}/>'
        yield f'<text x="{x:.1f}" y="{_TOP + _SIDE + 18}" text-anchor="middle">{tick:g}</text>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<text x="{_LEFT + _SIDE / 2}" y="{_TOP + _SIDE + 40}" text-anchor="middle">recall</text>'
    middle = _TOP + _SIDE / 2
    yield f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">precision</text>'


def _line(number: int, name: str, precision: Array) -> Iterator[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    points = " ".join(
        f"{x:.1f},{y:.1f}" for x, y in (_place(*pair) for pair in zip(RECALLS, precision.tolist(), strict=True))
    )
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    x, y = _LEFT + _SIDE + 16, _TOP + 12 + 20 * number
    yield f'<line x1="{x}" y1="{y - 4}" x2="{x + 20}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>'
    yield f'<text x="{x + 26}" y="{y}">{escape(name)}: {precision.mean():.3f}</text>'


def _place(recall: float, precision: float) -> tuple[float, float]:
    return _LEFT + _SIDE * recall, _TOP + _SIDE * (1 - precision)
