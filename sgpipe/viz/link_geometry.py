"""Geometry of the arrows between boxes and of their text. All in pixels, y downwards; rectangles are xyxy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Rectangle = tuple[float, float, float, float]

_STEPS = 24
_LITTLE = 0.2  # weight of covering an object, relative to covering another text
_AROUND = ((0, -1.1), (0, 1.1), (1.1, 0), (-1.1, 0), (1.1, -1.1), (-1.1, 1.1), (1.1, 1.1), (-1.1, -1.1))


@dataclass
class TextPlacer:
    """Places texts in an image of `width` × `height` pixels so that they cover little of each other and of objects."""

    width: float
    height: float
    objects: list[Rectangle] = field(default_factory=list)
    taken: list[Rectangle] = field(default_factory=list)

    def place(self, size: Point, spots: Iterable[Point]) -> Rectangle:
        """Place a text at the spot (a centre) where it covers least, inside the image; ties go to the first."""
        choices = [self._inside(size, spot) for spot in spots]
        best = min(choices, key=self._covered)
        self.taken.append(best)
        return best

    def _inside(self, size: Point, centre: Point) -> Rectangle:
        left = min(max(centre[0] - size[0] / 2, 0), max(self.width - size[0] - 1, 0))
        top = min(max(centre[1] - size[1] / 2, 0), max(self.height - size[1] - 1, 0))
        return (left, top, left + size[0], top + size[1])

    def _covered(self, text: Rectangle) -> float:
        texts = sum(overlap(text, other) for other in self.taken)
        return texts + _LITTLE * sum(overlap(text, other) for other in self.objects)


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Area of the intersection of two rectangles."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def middle(box: Rectangle, height: float = 0.5) -> Point:
    """The horizontal middle, at a share of the height."""
    left, top, right, bottom = box
    return ((left + right) / 2, top + height * (bottom - top))


def curve(subject: Rectangle, object_: Rectangle, short: float = 0.0, bend: float = 0.2) -> list[Point]:
    """25 points from the middle of the subject to that of the object, bent to the left, so that opposite arrows differ.

    Args:
        short: if the middles are closer than this, the curve runs from near the top to near the bottom.
        bend: distance from the straight line, as a share of its length.
    """
    start, end = middle(subject), middle(object_)
    if math.dist(start, end) < short:
        start, end = middle(subject, 0.25), middle(object_, 0.75)
    across, down = end[0] - start[0], end[1] - start[1]
    control = ((start[0] + end[0]) / 2 + bend * down, (start[1] + end[1]) / 2 - bend * across)
    return [_bezier(start, control, end, step / _STEPS) for step in range(_STEPS + 1)]


def arrow_head(points: Sequence[Point], length: float) -> list[Point]:
    """The triangle at the end of a curve."""
    (tip_x, tip_y), (from_x, from_y) = points[-1], points[max(-5, -len(points))]
    angle = math.atan2(tip_y - from_y, tip_x - from_x)
    wings = [
        (tip_x - length * math.cos(angle + turn), tip_y - length * math.sin(angle + turn)) for turn in (0.45, -0.45)
    ]
    return [(tip_x, tip_y), *wings]


def along(points: Sequence[Point], size: Point) -> list[Point]:
    """Spots for a text of this size: on the curve, first at its middle, then next to it."""
    half = len(points) // 2
    steps = [half + aside * len(points) // _STEPS for aside in (0, -2, 2, -4, 4, -6, 6)]
    spots = [points[step] for step in steps]
    return spots + [(x + a * size[0] / 2, y + b * size[1]) for x, y in spots[:5] for a, b in _AROUND]


def _bezier(start: Point, control: Point, end: Point, t: float) -> Point:
    weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
    x, y = (sum(w * p[axis] for w, p in zip(weights, (start, control, end), strict=True)) for axis in (0, 1))
    return (x, y)
