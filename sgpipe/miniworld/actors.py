"""The things of a scene (actors): how inanimate ones are drawn, and the poses and groups of all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from sgpipe.miniworld.figures import (
    ANIMALS,
    Feet,
    Hands,
    Look,
    PersonLook,
    back_of,
    draw_animal,
    draw_person,
    random_animal,
    random_person,
)
from sgpipe.miniworld.shapes import (
    RGB,
    Point,
    Shape,
    Shapes,
    blob,
    capsule,
    disc,
    ellipse,
    moved,
    path,
    pick_colour,
    polygon,
    rectangle,
    ring,
    sector,
    shade,
)

SEAT_HEIGHT = 0.52
CHAIR_HALF = 0.34
TABLE_HEIGHT, TABLE_HALF = 0.84, 0.86
BENCH_HEIGHT, BENCH_HALF = 0.58, 0.95
CUP_HEIGHT = 0.34


def _chair(look: Look, posture: str) -> Shapes:
    """Draw a chair from the side, with its back on the left."""
    wood = look.colour.rgb
    dark, half, seat = shade(wood, 0.7), CHAIR_HALF, SEAT_HEIGHT
    if look.style == 0:
        back = [rectangle(shade(wood, 0.9), -half - 0.02, seat, -half + 0.1, seat + 0.66)]
        back.append(rectangle(wood, -half - 0.06, seat + 0.36, -half + 0.12, seat + 0.7))
    elif look.style == 1:
        back = [capsule(wood, (-half + 0.04, seat), (-half - 0.06, seat + 0.62), 0.13)]
    else:
        back = [capsule(wood, (-half + 0.04, seat), (-half - 0.04, seat + 0.64), 0.07)]
        back.append(capsule(look.second, (-half + 0.05, seat + 0.22), (-half, seat + 0.58), 0.13))
    return [
        capsule(dark, (-half + 0.1, seat), (-half + 0.12, 0.03), 0.06),
        capsule(dark, (half - 0.1, seat), (half - 0.12, 0.03), 0.06),
        *back,
        capsule(dark, (-half, seat), (-half, 0.03), 0.065),
        capsule(dark, (half, seat), (half, 0.03), 0.065),
        capsule(wood, (-half, seat - 0.03), (half, seat - 0.03), 0.11),
    ]


def _table(look: Look, posture: str) -> Shapes:
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
        edge = (half * 0.55, top), (half * 0.5, top - 0.18), (-half * 0.5, top - 0.18)
        shapes.append(polygon(cloth, (-half * 0.55, top), *edge))
    return shapes


def _bench(look: Look, posture: str) -> Shapes:
    """Draw a bench from the front, with a seat and a back of planks."""
    wood, half, seat = look.colour.rgb, BENCH_HALF, BENCH_HEIGHT
    metal = (72, 74, 80) if look.style else shade(wood, 0.55)
    shapes = [rectangle(metal, x - 0.035, 0.0, x + 0.035, seat + 0.44) for x in (-half + 0.14, half - 0.14)]
    shapes += [
        capsule(shade(wood, tone), (-half + 0.04, seat + rise), (half - 0.04, seat + rise), 0.11)
        for rise, tone in ((0.16, 0.92), (0.3, 0.98), (0.44, 1.06))
    ]
    shapes += [
        polygon(metal, (x - 0.05, seat), (x + 0.05, seat), (x + outer, 0.0), (x + inner, 0.0))
        for x, outer, inner in ((-half + 0.14, -0.01, -0.09), (half - 0.14, 0.09, 0.01))
    ]
    shapes.append(capsule(shade(wood, 0.78), (-half + 0.03, seat - 0.09), (half - 0.03, seat - 0.09), 0.08))
    shapes.append(capsule(wood, (-half + 0.02, seat - 0.04), (half - 0.02, seat - 0.04), 0.09))
    return shapes


def _cup(look: Look, posture: str) -> Shapes:
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
    return shapes


WHEEL = 0.4
SADDLE: Point = (-0.26, 1.0)
HANDLE: Point = (0.5, 1.12)
PEDALS: tuple[Point, Point] = ((0.06, 0.24), (-0.06, 0.5))
DECK_HEIGHT = 0.2
DECK_HALF = 0.56
CAR_ROOF: Point = (-0.2, 1.28)
CAR_ROOF_HALF = 0.55
CAR_HALF = 1.45
BALL_RADIUS = 0.22
UMBRELLA_LENGTH = 1.0


def _bicycle(look: Look, posture: str) -> Shapes:
    paint, metal, tyre = look.colour.rgb, (150, 152, 158), (44, 44, 48)
    rear, front = (-0.56, WHEEL), (0.56, WHEEL)
    crank, head, seat = (-0.04, 0.4), (0.42, 0.9), (-0.22, 0.86)
    shapes: Shapes = []
    for hub in (rear, front):
        for angle in range(0, 180, 30):
            dx, dy = math.cos(math.radians(angle)) * WHEEL, math.sin(math.radians(angle)) * WHEEL
            shapes.append(capsule(shade(metal, 1.5), (hub[0] - dx, hub[1] - dy), (hub[0] + dx, hub[1] + dy), 0.012))
        shapes.append(ring(tyre, hub, WHEEL, WHEEL - 0.07))
        shapes.append(disc(metal, hub, 0.05, 12))
    for start, stop in ((rear, crank), (rear, seat), (crank, seat), (crank, head), (seat, head)):
        shapes.append(capsule(paint, start, stop, 0.065))
    shapes += path(paint, [(0.38, 1.02), head, front], 0.065)
    shapes += path(metal, [(0.36, 1.08), (0.4, 1.12), HANDLE], 0.055)
    shapes.append(capsule((40, 40, 44), (0.45, 1.12), HANDLE, 0.07))
    shapes.append(capsule(metal, seat, (-0.25, 0.96), 0.05))
    shapes.append(capsule((40, 40, 44), (-0.4, 0.99), (-0.12, 0.98), 0.1, 0.06))
    shapes.append(disc(metal, crank, 0.085, 14))
    for pedal in PEDALS:
        shapes.append(capsule((60, 60, 66), crank, pedal, 0.035))
        shapes.append(capsule((40, 40, 44), (pedal[0] - 0.05, pedal[1]), (pedal[0] + 0.05, pedal[1]), 0.04))
    return shapes


def _skateboard(look: Look, posture: str) -> Shapes:
    deck, half = look.colour.rgb, DECK_HALF
    low, high = DECK_HEIGHT - 0.035, DECK_HEIGHT + 0.05
    line = [(-half, high), (-half + 0.14, low), (half - 0.14, low), (half, high)]
    shapes: Shapes = []
    for x in (-0.32, 0.32):
        shapes.append(rectangle((150, 150, 156), x - 0.04, 0.07, x + 0.04, DECK_HEIGHT - 0.04))
        shapes.append(disc((250, 240, 210), (x, 0.08), 0.08, 16))
        shapes.append(disc((90, 90, 96), (x, 0.08), 0.032, 10))
    shapes += path(deck, line, 0.085)
    shapes.append(capsule(shade(deck, 0.6), (-half + 0.16, DECK_HEIGHT), (half - 0.16, DECK_HEIGHT), 0.03))
    return shapes


def _car(look: Look, posture: str) -> Shapes:
    paint, glass, half = look.colour.rgb, (176, 212, 232), CAR_HALF
    front = (1.2, 0.76), (half - 0.02, 0.6), (half, 0.3), (0.6, 0.26), (-0.6, 0.26)
    shapes: Shapes = [
        blob(shade(paint, 0.94), (-1.12, 0.72), (-0.84, 1.18), (-0.4, 1.28), (0.2, 1.27), (0.5, 1.12), (0.82, 0.74)),
        blob(glass, (-0.92, 0.76), (-0.74, 1.08), (-0.5, 1.18), (-0.24, 1.18), (-0.22, 0.76)),
        blob(glass, (-0.1, 0.76), (-0.1, 1.18), (0.16, 1.17), (0.38, 1.06), (0.62, 0.76)),
        blob(paint, (-half, 0.3), (-half + 0.02, 0.66), (-1.2, 0.8), (0.7, 0.82), *front),
        capsule(shade(paint, 0.72), (-half + 0.08, 0.32), (half - 0.08, 0.32), 0.09),
        rectangle(shade(paint, 0.7), -0.175, 0.36, -0.155, 0.76),
        capsule(shade(paint, 0.6), (-0.34, 0.64), (-0.24, 0.64), 0.035),
        ellipse((255, 240, 170), (half - 0.09, 0.58), 0.07, 0.085, corners=14),
        ellipse((190, 40, 40), (-half + 0.07, 0.58), 0.055, 0.09, corners=14),
    ]
    for x in (-0.84, 0.86):
        shapes.append(disc((42, 42, 46), (x, 0.27), 0.27, 24))
        shapes.append(disc((188, 190, 196), (x, 0.27), 0.15, 18))
        shapes.append(disc((110, 112, 118), (x, 0.27), 0.05, 10))
    return shapes


def _ball(look: Look, posture: str) -> Shapes:
    """Draw a football, a basketball or a beach ball that rests on the origin."""
    main, r, centre = look.colour.rgb, BALL_RADIUS, (0.0, BALL_RADIUS)
    dark = (44, 44, 48)
    shapes: Shapes = [disc(shade(main, 0.82), centre, r, 26), disc(main, (-0.012, r + 0.014), r * 0.93, 26)]
    if look.style == 0:
        angles = np.radians(90 + 72 * np.arange(5))
        corners = np.column_stack([np.cos(angles), np.sin(angles)])
        shapes.append(Shape(corners * (r * 0.36) + centre, dark))
        shapes += [disc(dark, (x * r * 0.82, r + y * r * 0.82), r * 0.15, 8) for x, y in corners.tolist()]
    elif look.style == 1:
        shapes.append(capsule(dark, (-r * 0.95, r), (r * 0.95, r), 0.022))
        shapes.append(capsule(dark, (0, r * 0.05), (0, r * 1.95), 0.022))
        for side in (-1, 1):
            seam = [(side * r * x, r + r * y) for x, y in ((0.72, 0.66), (0.42, 0.3), (0.42, -0.3), (0.72, -0.66))]
            shapes += path(dark, seam, 0.022)
    else:
        for start in (20, 140, 260):
            shapes.append(sector(look.second, centre, r * 0.97, start, start + 60))
        shapes.append(disc((250, 250, 250), centre, r * 0.2, 12))
    return shapes


def _kite(look: Look, posture: str) -> Shapes:
    """Draw a kite with its centre at the origin."""
    main, second = look.colour.rgb, look.second
    left, right, top, bottom = (-0.38, 0.1), (0.38, 0.1), (0.0, 0.52), (0.0, -0.56)
    tail = [(0.0, -0.54), (-0.07, -0.66), (0.05, -0.78), (-0.06, -0.9)]
    shapes = path(shade(main, 0.6), tail, 0.025)
    for x, y in tail[1:]:
        shapes.append(polygon(second, (x, y), (x - 0.09, y + 0.06), (x - 0.09, y - 0.06)))
        shapes.append(polygon(second, (x, y), (x + 0.09, y + 0.06), (x + 0.09, y - 0.06)))
    shapes += [
        polygon(main, left, top, (0.0, 0.1)),
        polygon(second, top, right, (0.0, 0.1)),
        polygon(second, left, (0.0, 0.1), bottom),
        polygon(main, (0.0, 0.1), right, bottom),
        capsule(shade(main, 0.5), top, bottom, 0.02),
        capsule(shade(main, 0.5), left, right, 0.02),
    ]
    return shapes


def _umbrella(look: Look, posture: str) -> Shapes:
    """Draw an open umbrella with the end of its stick at the origin; a standing one is larger than a held one."""
    large = posture == "standing"
    length, half = (2.05, 1.0) if large else (UMBRELLA_LENGTH, 0.66)
    main, second = look.colour.rgb, look.second if look.style else shade(look.colour.rgb, 1.5)
    wood = (120, 88, 60) if large else (70, 66, 66)
    canopy = (0.0, length - 0.04)
    rise = half * 0.62
    shapes: Shapes = [capsule(wood, (0.0, 0.02), (0.0, length + rise), 0.06 if large else 0.042)]
    if not large:
        shapes += path(wood, [(0.0, 0.0), (0.0, -0.06), (0.06, -0.09), (0.1, -0.05)], 0.042)
    shapes.append(_canopy(main, canopy, half, rise, -1.0, 1.0))
    shapes.append(_canopy(second, canopy, half, rise, -0.62, -0.2))
    shapes.append(_canopy(second, canopy, half, rise, 0.2, 0.62))
    shapes.append(capsule(wood, (0.0, length + rise - 0.06), (0.0, length + rise + 0.05), 0.045))
    return shapes


def _canopy(colour: RGB, centre: Point, half: float, rise: float, start: float, stop: float) -> Shape:
    """Return the part of a dome between two points of its scalloped rim, given as fractions of its half width."""
    rim = np.linspace(start, stop, 25)
    edge = np.column_stack([rim * half, 0.07 * half * np.abs(np.sin(rim * math.pi * 2.5))])
    across = np.linspace(stop, start, 25)
    dome = np.column_stack([across * half, rise * np.sqrt(np.maximum(1 - across**2, 0.0))])
    if (start, stop) != (-1.0, 1.0):
        heights = np.linspace(0, math.pi / 2, 9)
        right = np.column_stack([stop * half * np.cos(heights), rise * np.sin(heights)])
        left = np.column_stack([start * half * np.cos(heights), rise * np.sin(heights)])[::-1]
        dome = np.vstack([right, left])
    return Shape(np.vstack([edge, dome]) + centre, colour)


# How each class is drawn, and the colours that it has.
_THINGS: dict[str, tuple[Callable[[Look, str], Shapes], str]] = {
    "bicycle": (_bicycle, "red blue green black yellow pink"),
    "umbrella": (_umbrella, "red blue yellow green purple pink black orange"),
    "chair": (_chair, "red blue green brown yellow white purple"),
    "dining table": (_table, "brown white gray green red"),
    "cup": (_cup, "red blue white yellow pink orange"),
    "sports ball": (_ball, "red orange blue white yellow"),
    "bench": (_bench, "brown green gray red blue"),
    "kite": (_kite, "red yellow blue green purple pink orange"),
    "skateboard": (_skateboard, "red blue green purple orange black"),
    "car": (_car, "red blue yellow white green gray black orange"),
}
THINGS = tuple(_THINGS)
_SECOND = ("yellow", "white", "blue", "red", "green", "orange")


def random_thing(kind: str, rng: Generator) -> Look:
    """Return a random look of an inanimate class."""
    colour = pick_colour(rng, _THINGS[kind][1].split())
    second = pick_colour(rng, [name for name in _SECOND if name != colour.name]).rgb
    return Look(kind, colour, second, float(rng.uniform(0.94, 1.08)), int(rng.integers(3)))


def draw_thing(look: Look, posture: str) -> Shapes:
    """Draw a thing, which may be "standing", "held" (an umbrella) or "flying" (a kite, which then leans)."""
    tilt = -14 if posture == "flying" else 0
    return moved(_THINGS[look.kind][0](look, posture), (0, 0), tilt, look.size)


KINDS: tuple[str, ...] = ("person", *ANIMALS, *THINGS)


class Top(NamedTuple):
    """The top surface of a thing at size 1: its centre and half its width."""

    middle: Point
    half: float


TOPS: dict[str, Top] = {
    "chair": Top((0.04, SEAT_HEIGHT + 0.02), 0.3),
    "bench": Top((0.0, BENCH_HEIGHT), 0.82),
    "dining table": Top((0.0, TABLE_HEIGHT), 0.78),
    "car": Top(CAR_ROOF, CAR_ROOF_HALF),
    "horse": Top((-0.05, back_of("horse")), 0.3),
    "bicycle": Top(SADDLE, 0.1),
    "skateboard": Top((0.0, DECK_HEIGHT), 0.4),
}

# Slots of a thing: positions for another thing (top, below, over in the air, fore, aft), its body and its hands. A
# relation uses up the slots it needs, so that no second relation can contradict it.
_SLOTS = {
    **{"person": "body hands over", "dog": "body over", "cat": "body over", "horse": "body top over", "bird": "body"},
    **{"bicycle": "body top over", "skateboard": "body top over", "car": "top over", "sports ball": "body over"},
    **{"chair": "top below over", "dining table": "top below over", "bench": "top below over"},
    **{"umbrella": "below", "cup": ""},
}
SLOTS = {kind: frozenset(f"{slots} fore aft".split()) for kind, slots in _SLOTS.items()} | {"kite": frozenset[str]()}


class Extent(NamedTuple):
    """A box in world units, y up."""

    left: float
    bottom: float
    right: float
    top: float


def extent_of(shapes: Shapes) -> Extent:
    points = np.vstack([shape.points for shape in shapes])
    return Extent(*points.min(0).tolist(), *points.max(0).tolist())


@dataclass(eq=False)
class Actor:
    """A thing in a group: its look, position and pose.

    at: of its origin (the ground below it) in the group. facing: 1 for right, -1 for left. depth: the drawing order,
    larger in front. hands, feet: points in the group. free: the unused slots.
    """

    kind: str
    look: Look | PersonLook
    at: Point = (0.0, 0.0)
    facing: int = 1
    tilt: float = 0.0
    posture: str = "standing"
    depth: float = 0.0
    hands: Hands = (None, None)
    feet: Feet = None
    airborne: bool = False
    free: set[str] = field(default_factory=set)

    @property
    def size(self) -> float:
        return self.look.size

    def place(self, point: Point) -> Point:
        """Return the position in the group of a point of the thing, given at size 1 and facing right."""
        return self.at[0] + self.facing * point[0] * self.size, self.at[1] + point[1] * self.size

    def layers(self) -> list[tuple[float, Shapes]]:
        """Return the shapes in the group with their depth; a person's near arm is in front of what it holds."""
        return [(self.depth + 0.5 * number, part) for number, part in enumerate(self._draw()[0])]

    def extent(self) -> Extent:
        """Return the box around the thing, including hidden parts."""
        return self._draw()[1]

    def _draw(self) -> tuple[list[Shapes], Extent]:
        return _draw(self.look, self.posture, self.at, self.facing, self.tilt, self.hands, self.feet)


@lru_cache(64)  # it is measured several times in a pose
def _draw(
    look: Look | PersonLook, posture: str, at: Point, facing: int, tilt: float, hands: Hands, feet: Feet
) -> tuple[list[Shapes], Extent]:
    """Return the shapes of a thing in its group, parts from far to near, and the box around them; see `Actor`."""

    def inside(point: Point) -> Point:
        return (point[0] - at[0]) * facing, point[1] - at[1]

    if isinstance(look, PersonLook):
        near, far = (inside(hand) if hand else None for hand in hands)
        parts = draw_person(look, posture, (near, far), (inside(feet[0]), inside(feet[1])) if feet else None)
    else:
        parts = [draw_animal(look, posture) if look.kind in ANIMALS else draw_thing(look, posture)]
    shapes = [moved(part, at, tilt, flip=facing < 0) for part in parts]
    return shapes, extent_of([shape for part in shapes for shape in part])


class Fact(NamedTuple):
    """A relation between two things of a group or a scene (indices); `implied` if it follows from another one."""

    subject: int
    predicate: str
    object: int
    implied: bool = False


@dataclass
class SceneGroup:
    """Related things, and the shapes drawn between them (a leash, a string)."""

    actors: list[Actor] = field(default_factory=list)
    bonds: list[Fact] = field(default_factory=list)
    extras: list[tuple[float, Shapes]] = field(default_factory=list)

    def add(self, actor: Actor) -> int:
        """Return the index of the actor in the group; adds it if necessary."""
        if actor not in self.actors:
            self.actors.append(actor)
        return self.actors.index(actor)

    def extent(self) -> Extent:
        boxes = np.array([actor.extent() for actor in self.actors] + [extent_of(shapes) for _, shapes in self.extras])
        return Extent(*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())


def random_actor(kind: str, rng: Generator) -> Actor:
    """Return a thing of a class with a random look, all slots free, facing right."""
    if kind == "person":
        look: Look | PersonLook = random_person(rng)
    else:
        look = random_animal(kind, rng) if kind in ANIMALS else random_thing(kind, rng)
    return Actor(kind, look, free=set(SLOTS[kind]))
