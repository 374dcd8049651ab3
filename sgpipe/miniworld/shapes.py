"""Coloured polygons, of which all figures and things are made."""

import cmath
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator

RGB: TypeAlias = tuple[int, int, int]
Shapes: TypeAlias = "list[Shape]"
# From straight down over the right to straight up.
_HALF_CIRCLE = np.exp(1j * np.linspace(-math.pi / 2, math.pi / 2, 9))
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


class Shape(NamedTuple):
    """A filled polygon; `points` is complex [corners]."""

    points: np.ndarray
    colour: RGB


def shade(colour: RGB, factor: float) -> RGB:
    """Return a darker colour (factor below 1) or a lighter one (above 1)."""
    red, green, blue = colour
    return _shaded(red, factor), _shaded(green, factor), _shaded(blue, factor)


def _shaded(channel: int, factor: float) -> int:
    return round(channel * factor if factor <= 1 else 255 - (255 - channel) / factor)


def polygon(colour: RGB, *corners: complex) -> Shape:
    return Shape(np.array(corners, complex), colour)


def rectangle(colour: RGB, left: float, bottom: float, right: float, top: float) -> Shape:
    return polygon(
        colour,
        *(complex(x, y) for x, y in ((left, bottom), (right, bottom), (right, top), (left, top))),
    )


def ellipse(
    colour: RGB, centre: complex, rx: float, ry: float, tilt: float = 0.0, corners: int = 24
) -> Shape:
    """Return an ellipse turned counter-clockwise by `tilt` degrees."""
    circle = _circle(corners)
    return Shape((circle.real * rx + circle.imag * ry * 1j) * turned(1, tilt) + centre, colour)


def disc(colour: RGB, centre: complex, radius: float, corners: int = 20) -> Shape:
    return ellipse(colour, centre, radius, radius, corners=corners)


def ring(colour: RGB, centre: complex, outer: float, inner: float, corners: int = 28) -> Shape:
    """Return a disc with a transparent hole."""
    circle = np.append(_circle(corners), 1)
    return Shape(np.concatenate([circle * outer, circle[::-1] * inner]) + centre, colour)


def sector(colour: RGB, centre: complex, radius: float, start: float, stop: float) -> Shape:
    """Return a sector of a disc between two angles in degrees."""
    return Shape(
        np.append(0, np.exp(1j * np.radians(np.linspace(start, stop, 14))) * radius) + centre,
        colour,
    )


def capsule(
    colour: RGB, start: complex, stop: complex, width: float, stop_width: float | None = None
) -> Shape:
    """Return a line with round ends that may taper; widths are full widths."""
    half = _HALF_CIRCLE * cmath.rect(0.5, cmath.phase(stop - start))
    stop_width = width if stop_width is None else stop_width
    return Shape(np.concatenate([start - half * width, stop + half * stop_width]), colour)


def path(
    colour: RGB, points: Sequence[complex], width: float, stop_width: float | None = None
) -> Shapes:
    """Return a line through several points, tapering from `width` to `stop_width`."""
    widths = np.linspace(width, width if stop_width is None else stop_width, len(points))
    return [
        capsule(colour, points[i], points[i + 1], widths[i], widths[i + 1])
        for i in range(len(points) - 1)
    ]


def limb(
    colour: RGB,
    start: complex,
    target: complex,
    length: float,
    widths: tuple[float, float, float],
    side: int,
) -> tuple[Shapes, complex, complex]:
    """Return the shapes of two bones from `start` to `target` (or as close as they reach), their
    joint and their end.

    Args:
        length: of each bone.
        widths: at the start, the joint and the end.
        side: 1 bends to the left as seen from the start, -1 to the right.
    """
    distance = abs(target - start)
    direction = (target - start) / distance if distance else 1
    far = min(max(distance, 1e-3), 2 * length - 1e-3)
    joint = start + direction * complex(far / 2, side * math.sqrt(max(length**2 - far**2 / 4, 0.0)))
    end = start + direction * far
    return (
        [capsule(colour, start, joint, *widths[:2]), capsule(colour, joint, end, *widths[1:])],
        joint,
        end,
    )


def blob(colour: RGB, *corners: complex) -> Shape:
    """Return a closed smooth curve through the corners (Catmull-Rom)."""
    a = np.array(corners)[:, None]
    p = np.roll(a, 1)
    b = np.roll(a, -1)
    c = np.roll(a, -2)
    t = np.arange(4) / 4
    curve = 0.5 * (
        2 * a + (b - p) * t + (2 * p - 5 * a + 4 * b - c) * t**2 + (3 * a - p - 3 * b + c) * t**3
    )
    return Shape(curve.ravel(), colour)


def moved(
    shapes: Shapes, offset: complex = 0, tilt: float = 0.0, scale: float = 1.0, flip: bool = False
) -> Shapes:
    """Return the shapes, scaled, optionally mirrored left to right, turned by `tilt` degrees, then
    moved.
    """
    factor = turned(scale, tilt)
    return [
        Shape((-points.conj() if flip else points) * factor + offset, colour)
        for points, colour in shapes
    ]


def turned(point: complex, degrees: float) -> complex:
    """Return a point turned counter-clockwise about the origin."""
    return point * cmath.rect(1, math.radians(degrees))


@lru_cache(8)
def _circle(corners: int) -> np.ndarray:
    return np.exp(2j * math.pi * np.arange(corners) / corners)


class Colour(NamedTuple):
    name: str
    rgb: RGB


def pick_colour(rng: Generator, names: Sequence[str]) -> Colour:
    name = names[int(rng.integers(len(names)))]
    return Colour(name, vary(rng, pick(rng, _TONES[name]), 8))


def pick(rng: Generator, colours: Sequence[RGB]) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def vary(rng: Generator, colour: RGB, amount: int) -> RGB:
    """Return the colour with each channel moved by at most `amount`."""
    red, green, blue = np.clip(colour + rng.integers(-amount, amount + 1, 3), 0, 255).tolist()
    return red, green, blue
