"""Coloured polygons, the only drawing primitive, the curves they are made of, and named colours.

Coordinates are relative to the thing being drawn: x to the right, y up, in world units (a man is about 1.75 tall). Each
named colour has several tones, so that a caption can say "a red car".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator

RGB: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]


class Shape(NamedTuple):
    """A filled polygon; `points` is [corners, 2]."""

    points: np.ndarray
    colour: RGB


Shapes: TypeAlias = list[Shape]


def shade(colour: RGB, factor: float) -> RGB:
    """Return a darker colour (factor below 1) or a lighter one (above 1)."""
    if factor <= 1:
        red, green, blue = (round(channel * factor) for channel in colour)
    else:
        red, green, blue = (round(255 - (255 - channel) / factor) for channel in colour)
    return red, green, blue


def polygon(colour: RGB, *corners: Point) -> Shape:
    return Shape(np.array(corners, float), colour)


def rectangle(colour: RGB, left: float, bottom: float, right: float, top: float) -> Shape:
    return polygon(colour, (left, bottom), (right, bottom), (right, top), (left, top))


def ellipse(colour: RGB, centre: Point, rx: float, ry: float, tilt: float = 0.0, corners: int = 24) -> Shape:
    """Return an ellipse turned counter-clockwise by `tilt` degrees."""
    points = _circle(corners) * (rx, ry)
    if tilt:
        points = points @ rotation(tilt).T
    return Shape(points + centre, colour)


def disc(colour: RGB, centre: Point, radius: float, corners: int = 20) -> Shape:
    return Shape(_circle(corners) * radius + centre, colour)


def ring(colour: RGB, centre: Point, outer: float, inner: float, corners: int = 28) -> Shape:
    """Return a disc with a transparent hole."""
    circle = np.vstack([_circle(corners), _circle(corners)[:1]])
    return Shape(np.vstack([circle * outer, circle[::-1] * inner]) + centre, colour)


def sector(colour: RGB, centre: Point, radius: float, start: float, stop: float) -> Shape:
    """Return a sector of a disc between two angles in degrees."""
    angles = np.radians(np.linspace(start, stop, 14))
    arc = np.column_stack([np.cos(angles), np.sin(angles)]) * radius
    return Shape(np.vstack([[0.0, 0.0], arc]) + centre, colour)


def capsule(colour: RGB, start: Point, stop: Point, width: float, stop_width: float | None = None) -> Shape:
    """Return a line with round ends that may taper; widths are full widths."""
    first, second = width / 2, (width if stop_width is None else stop_width) / 2
    angle = math.atan2(stop[1] - start[1], stop[0] - start[0])
    half = _half_circle() @ rotation(math.degrees(angle)).T
    return Shape(np.vstack([np.array(start) - half * first, np.array(stop) + half * second]), colour)


def path(colour: RGB, points: Sequence[Point], width: float, stop_width: float | None = None) -> Shapes:
    """Return a line through several points, tapering from `width` to `stop_width`."""
    widths = np.linspace(width, width if stop_width is None else stop_width, len(points))
    return [capsule(colour, points[i], points[i + 1], widths[i], widths[i + 1]) for i in range(len(points) - 1)]


def limb(
    colour: RGB, start: Point, target: Point, length: float, widths: tuple[float, float, float], side: int
) -> tuple[Shapes, Point, Point]:
    """Return the shapes of two bones from `start` to `target` (or as close as they reach), their joint and their end.

    length: of each bone. widths: at the start, the joint and the end. side: 1 bends to the left as seen from the
    start, -1 to the right.
    """
    dx, dy = target[0] - start[0], target[1] - start[1]
    distance = math.hypot(dx, dy)
    far = min(max(distance, 1e-3), length + length - 1e-3)
    dx, dy = (dx / distance, dy / distance) if distance else (1.0, 0.0)
    along = far**2 / (2 * far)
    across = side * math.sqrt(max(length**2 - along**2, 0.0))
    joint = (start[0] + dx * along - dy * across, start[1] + dy * along + dx * across)
    end = (start[0] + dx * far, start[1] + dy * far)
    shapes = [capsule(colour, start, joint, widths[0], widths[1]), capsule(colour, joint, end, widths[1], widths[2])]
    return shapes, joint, end


def blob(colour: RGB, *corners: Point, steps: int = 4) -> Shape:
    """Return a closed smooth curve through the corners (Catmull-Rom)."""
    knots = np.array(corners, float)
    before, after, beyond = np.roll(knots, 1, 0), np.roll(knots, -1, 0), np.roll(knots, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p, a, b, c = (array[:, None] for array in (before, knots, after, beyond))
    curve = 0.5 * (2 * a + (b - p) * t + (2 * p - 5 * a + 4 * b - c) * t**2 + (3 * a - p - 3 * b + c) * t**3)
    return Shape(curve.reshape(-1, 2), colour)


def moved(shapes: Shapes, offset: Point, tilt: float = 0.0, scale: float = 1.0, flip: bool = False) -> Shapes:
    """Return the shapes, scaled, optionally mirrored left to right, turned by `tilt` degrees, then moved."""
    matrix = rotation(tilt) * scale
    if flip:
        matrix = matrix * (-1.0, 1.0)
    return [Shape(shape.points @ matrix.T + offset, shape.colour) for shape in shapes]


def rotation(degrees: float) -> np.ndarray:
    """Return the matrix [2, 2] that turns column vectors counter-clockwise."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def turn(point: Point, degrees: float, about: Point = (0.0, 0.0)) -> Point:
    """Return one point turned counter-clockwise about another."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dx, dy = point[0] - about[0], point[1] - about[1]
    return about[0] + dx * cosine - dy * sine, about[1] + dx * sine + dy * cosine


@lru_cache(8)
def _circle(corners: int) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    return np.column_stack([np.cos(angles), np.sin(angles)])


@lru_cache(1)
def _half_circle() -> np.ndarray:
    """Return a half circle from straight down over the right to straight up."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 9)
    return np.column_stack([np.cos(angles), np.sin(angles)])


_TONES: dict[str, tuple[RGB, ...]] = {
    "red": ((206, 48, 45), (225, 70, 60), (184, 34, 48)),
    "orange": ((236, 131, 42), (242, 148, 66), (222, 112, 30)),
    "yellow": ((246, 205, 62), (250, 216, 94), (236, 190, 40)),
    "green": ((58, 142, 82), (84, 164, 78), (32, 122, 92)),
    "blue": ((52, 102, 186), (72, 132, 212), (40, 78, 156)),
    "purple": ((124, 78, 168), (146, 96, 186), (104, 62, 142)),
    "pink": ((238, 132, 166), (244, 152, 184), (226, 106, 148)),
    "brown": ((134, 86, 52), (152, 102, 64), (112, 70, 44)),
    "black": ((48, 48, 54), (60, 58, 64), (38, 40, 48)),
    "white": ((240, 238, 232), (246, 246, 246), (232, 230, 222)),
    "gray": ((138, 142, 148), (156, 158, 162), (118, 122, 130)),
}

SKIN: tuple[RGB, ...] = ((248, 212, 180), (232, 184, 146), (198, 144, 104), (146, 98, 68), (104, 68, 48))
HAIR: tuple[RGB, ...] = ((44, 34, 32), (92, 60, 38), (164, 108, 56), (222, 182, 98), (176, 76, 40), (120, 120, 124))
CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TROUSERS: tuple[RGB, ...] = ((52, 62, 92), (74, 96, 140), (58, 56, 60), (104, 92, 76), (70, 84, 70), (120, 62, 58))


class Colour(NamedTuple):
    """A tone and its common colour name."""

    name: str
    rgb: RGB


def pick_colour(rng: Generator, names: Sequence[str]) -> Colour:
    """Return a named colour in a random tone, slightly varied."""
    name = names[int(rng.integers(len(names)))]
    return Colour(name, vary(rng, pick(rng, _TONES[name]), 8))


def pick(rng: Generator, colours: Sequence[RGB]) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def vary(rng: Generator, colour: RGB, amount: int) -> RGB:
    """Return the colour with each channel moved by at most `amount`."""
    red, green, blue = (
        int(min(max(channel + move, 0), 255))
        for channel, move in zip(colour, rng.integers(-amount, amount + 1, 3), strict=True)
    )
    return red, green, blue
