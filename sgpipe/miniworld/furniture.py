"""Chairs, dining tables, benches and cups, and where their tops and seats are."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from sgpipe.miniworld.palette import Colour, pick_colour
from sgpipe.miniworld.shapes import (
    RGB,
    Shapes,
    blob,
    capsule,
    ellipse,
    moved,
    polygon,
    rectangle,
    ring,
    shade,
)

SEAT_HEIGHT = 0.52
CHAIR_HALF = 0.34
TABLE_HEIGHT, TABLE_HALF = 0.84, 0.86
BENCH_HEIGHT, BENCH_HALF = 0.58, 0.95
CUP_HEIGHT = 0.34


@dataclass(frozen=True)
class ThingLook:
    """Colours, size and make of a lifeless thing; `style` chooses between its variants."""

    kind: str
    colour: Colour
    second: RGB
    size: float
    style: int


_COLOURS = {
    "chair": ("red", "blue", "green", "brown", "yellow", "white", "purple"),
    "dining table": ("brown", "white", "gray", "green", "red"),
    "bench": ("brown", "green", "gray", "red", "blue"),
    "cup": ("red", "blue", "white", "yellow", "pink", "orange"),
    "bicycle": ("red", "blue", "green", "black", "yellow", "pink"),
    "umbrella": ("red", "blue", "yellow", "green", "purple", "pink", "black", "orange"),
    "sports ball": ("red", "orange", "blue", "white", "yellow"),
    "kite": ("red", "yellow", "blue", "green", "purple", "pink", "orange"),
    "skateboard": ("red", "blue", "green", "purple", "orange", "black"),
    "car": ("red", "blue", "yellow", "white", "green", "gray", "black", "orange"),
}
_SECOND = ("yellow", "white", "blue", "red", "green", "orange")


def random_thing(kind: str, rng: Generator) -> ThingLook:
    """A lifeless thing of one of the kinds, with its colours."""
    colour = pick_colour(rng, _COLOURS[kind])
    second = pick_colour(rng, [name for name in _SECOND if name != colour.name]).rgb
    return ThingLook(kind, colour, second, float(rng.uniform(0.94, 1.08)), int(rng.integers(3)))


def draw_chair(look: ThingLook, posture: str = "standing") -> Shapes:
    """From the side, its back on the left."""
    wood = look.colour.rgb
    dark, half, seat = shade(wood, 0.7), CHAIR_HALF, SEAT_HEIGHT
    shapes = [
        capsule(dark, (-half + 0.1, seat), (-half + 0.12, 0.03), 0.06),
        capsule(dark, (half - 0.1, seat), (half - 0.12, 0.03), 0.06),
    ]
    if look.style == 0:
        back = [rectangle(shade(wood, 0.9), -half - 0.02, seat, -half + 0.1, seat + 0.66)]
        back.append(rectangle(wood, -half - 0.06, seat + 0.36, -half + 0.12, seat + 0.7))
    elif look.style == 1:
        back = [capsule(wood, (-half + 0.04, seat), (-half - 0.06, seat + 0.62), 0.13)]
    else:
        back = [capsule(wood, (-half + 0.04, seat), (-half - 0.04, seat + 0.64), 0.07)]
        back.append(capsule(look.second, (-half + 0.05, seat + 0.22), (-half, seat + 0.58), 0.13))
    shapes += back
    shapes.append(capsule(dark, (-half, seat), (-half, 0.03), 0.065))
    shapes.append(capsule(dark, (half, seat), (half, 0.03), 0.065))
    shapes.append(capsule(wood, (-half, seat - 0.03), (half, seat - 0.03), 0.11))
    return moved(shapes, (0, 0), scale=look.size)


def draw_table(look: ThingLook, posture: str = "standing") -> Shapes:
    wood, half, top = look.colour.rgb, TABLE_HALF, TABLE_HEIGHT
    dark = shade(wood, 0.66)
    shapes = [rectangle(shade(dark, 0.85), x - 0.035, 0.1, x + 0.035, top) for x in (-half + 0.26, half - 0.26)]
    shapes += [
        polygon(dark, (x - 0.06, top), (x + 0.06, top), (x + 0.04, 0.0), (x - 0.04, 0.0))
        for x in (-half + 0.1, half - 0.1)
    ]
    shapes.append(rectangle(shade(wood, 0.82), -half + 0.05, top - 0.16, half - 0.05, top - 0.06))
    shapes.append(capsule(wood, (-half + 0.02, top - 0.045), (half - 0.02, top - 0.045), 0.09))
    if look.style == 2:
        cloth = shade(look.second, 1.25)
        shapes.append(rectangle(cloth, -half * 0.55, top - 0.02, half * 0.55, top))
        shapes.append(
            polygon(
                cloth,
                (-half * 0.55, top),
                (half * 0.55, top),
                (half * 0.5, top - 0.18),
                (-half * 0.5, top - 0.18),
            )
        )
    return moved(shapes, (0, 0), scale=look.size)


def draw_bench(look: ThingLook, posture: str = "standing") -> Shapes:
    """From the front: a seat and a back of planks."""
    wood, half, seat = look.colour.rgb, BENCH_HALF, BENCH_HEIGHT
    metal = (72, 74, 80) if look.style else shade(wood, 0.55)
    shapes = [rectangle(metal, x - 0.035, 0.0, x + 0.035, seat + 0.44) for x in (-half + 0.14, half - 0.14)]
    shapes += [
        capsule(shade(wood, tone), (-half + 0.04, seat + rise), (half - 0.04, seat + rise), 0.11)
        for rise, tone in ((0.16, 0.92), (0.3, 0.98), (0.44, 1.06))
    ]
    shapes += [
        polygon(metal, (x - 0.05, seat), (x + 0.05, seat), (x + 0.09, 0.0), (x + 0.01, 0.0))
        if x > 0
        else polygon(metal, (x - 0.05, seat), (x + 0.05, seat), (x - 0.01, 0.0), (x - 0.09, 0.0))
        for x in (-half + 0.14, half - 0.14)
    ]
    shapes.append(capsule(shade(wood, 0.78), (-half + 0.03, seat - 0.09), (half - 0.03, seat - 0.09), 0.08))
    shapes.append(capsule(wood, (-half + 0.02, seat - 0.04), (half - 0.02, seat - 0.04), 0.09))
    return moved(shapes, (0, 0), scale=look.size)


def draw_cup(look: ThingLook, posture: str = "standing") -> Shapes:
    body, height = look.colour.rgb, CUP_HEIGHT
    shapes = [
        ring(shade(body, 0.85), (0.15, height * 0.54), 0.1, 0.055, 18),
        polygon(body, (-0.15, height - 0.02), (0.15, height - 0.02), (0.115, 0.0), (-0.115, 0.0)),
        ellipse(shade(body, 1.35), (0.0, height - 0.025), 0.15, 0.04, corners=18),
        ellipse((92, 58, 36), (0.0, height - 0.03), 0.12, 0.026, corners=16),
    ]
    if look.style == 0:
        shapes.insert(2, polygon(look.second, (-0.14, 0.2), (0.14, 0.2), (0.132, 0.12), (-0.132, 0.12)))
    elif look.style == 1:
        heart = blob(look.second, (0.0, 0.19), (-0.05, 0.23), (-0.08, 0.17), (0.0, 0.07), (0.08, 0.17), (0.05, 0.23))
        shapes.insert(2, heart)
    return moved(shapes, (0, 0), scale=look.size)
