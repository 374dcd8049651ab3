"""The things of a scene (actors): how inanimate ones are drawn, and the poses and groups of all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, product
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from sgpipe.miniworld.figures import (
    Feet,
    Hands,
    Look,
    PersonLook,
    back_of,
    draw_animal,
    draw_person,
    random_person,
)
from sgpipe.miniworld.shapes import (
    RGB,
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

SADDLE = -0.26 + 1j
HANDLE = 0.5 + 1.12j
PEDALS = (0.06 + 0.24j, -0.06 + 0.5j)
CAR_HALF = 1.45
BALL_RADIUS = 0.22
_SECOND = ("yellow", "white", "blue", "red", "green", "orange")

# The top surface of a thing at size 1: its middle and half its width.
TOPS: dict[str, tuple[complex, float]] = {
    "chair": (0.04 + 0.54j, 0.3),
    "bench": (0.58j, 0.82),
    "dining table": (0.84j, 0.78),
    "car": (-0.2 + 1.28j, 0.55),
    "horse": (-0.05 + back_of("horse") * 1j, 0.3),
    "bicycle": (SADDLE, 0.1),
    "skateboard": (0.2j, 0.4),
}


def _chair(look: Look, posture: str) -> Shapes:
    wood = look.colour.rgb
    dark = shade(look.colour.rgb, 0.7)
    backs = [
        [
            rectangle(shade(wood, 0.9), -0.36, 0.52, -0.24, 1.18),
            rectangle(wood, -0.4, 0.88, -0.22, 1.22),
        ],
        [capsule(wood, -0.3 + 0.52j, -0.4 + 1.14j, 0.13)],
        [
            capsule(wood, -0.3 + 0.52j, -0.38 + 1.16j, 0.07),
            capsule(look.second, -0.29 + 0.74j, -0.34 + 1.1j, 0.13),
        ],
    ]
    return [
        capsule(dark, -0.24 + 0.52j, -0.22 + 0.03j, 0.06),
        capsule(dark, 0.24 + 0.52j, 0.22 + 0.03j, 0.06),
        *backs[look.style],
        capsule(dark, -0.34 + 0.52j, -0.34 + 0.03j, 0.065),
        capsule(dark, 0.34 + 0.52j, 0.34 + 0.03j, 0.065),
        capsule(wood, -0.34 + 0.49j, 0.34 + 0.49j, 0.11),
    ]


def _table(look: Look, posture: str) -> Shapes:
    wood = look.colour.rgb
    dark = shade(look.colour.rgb, 0.66)
    cloth = shade(look.second, 1.25)
    shapes = [
        *(rectangle(shade(dark, 0.85), x - 0.035, 0.1, x + 0.035, 0.84) for x in (-0.6, 0.6)),
        *(
            polygon(dark, x - 0.06 + 0.84j, x + 0.06 + 0.84j, x + 0.04, x - 0.04)
            for x in (-0.76, 0.76)
        ),
        rectangle(shade(wood, 0.82), -0.81, 0.68, 0.81, 0.78),
        capsule(wood, -0.84 + 0.795j, 0.84 + 0.795j, 0.09),
    ]
    if look.style == 2:
        shapes.append(rectangle(cloth, -0.473, 0.82, 0.473, 0.84))
        shapes.append(polygon(cloth, -0.473 + 0.84j, 0.473 + 0.84j, 0.43 + 0.66j, -0.43 + 0.66j))
    return shapes


def _bench(look: Look, posture: str) -> Shapes:
    wood = look.colour.rgb
    metal = (72, 74, 80) if look.style else shade(wood, 0.55)
    planks = ((0.74, 0.92), (0.88, 0.98), (1.02, 1.06))
    return [
        *(rectangle(metal, x - 0.035, 0.0, x + 0.035, 1.02) for x in (-0.81, 0.81)),
        *(
            capsule(shade(wood, tone), -0.91 + height * 1j, 0.91 + height * 1j, 0.11)
            for height, tone in planks
        ),
        polygon(metal, -0.86 + 0.58j, -0.76 + 0.58j, -0.82, -0.9),
        polygon(metal, 0.76 + 0.58j, 0.86 + 0.58j, 0.9, 0.82),
        capsule(shade(wood, 0.78), -0.92 + 0.49j, 0.92 + 0.49j, 0.08),
        capsule(wood, -0.93 + 0.54j, 0.93 + 0.54j, 0.09),
    ]


def _cup(look: Look, posture: str) -> Shapes:
    body = look.colour.rgb
    motifs = [
        [polygon(look.second, -0.14 + 0.2j, 0.14 + 0.2j, 0.132 + 0.12j, -0.132 + 0.12j)],
        [blob(look.second, 0.19j, -0.05 + 0.23j, -0.08 + 0.17j, 0.07j, 0.08 + 0.17j, 0.05 + 0.23j)],
        [],
    ]
    return [
        ring(shade(body, 0.85), 0.15 + 0.1836j, 0.1, 0.055, 18),
        polygon(body, -0.15 + 0.32j, 0.15 + 0.32j, 0.115, -0.115),
        *motifs[look.style],
        ellipse(shade(body, 1.35), 0.315j, 0.15, 0.04, corners=18),
        ellipse((92, 58, 36), 0.31j, 0.12, 0.026, corners=16),
    ]


def _bicycle(look: Look, posture: str) -> Shapes:
    paint = look.colour.rgb
    metal = (150, 152, 158)
    dark = (40, 40, 44)
    crank = -0.04 + 0.4j
    head = 0.42 + 0.9j
    seat = -0.22 + 0.86j
    rear = -0.56 + 0.4j
    front = 0.56 + 0.4j
    shapes: Shapes = []
    for hub in (rear, front):
        spokes = 0.4 * np.exp(1j * np.radians(range(0, 180, 30)))
        shapes += [capsule(shade(metal, 1.5), hub - spoke, hub + spoke, 0.012) for spoke in spokes]
        shapes += [ring((44, 44, 48), hub, 0.4, 0.33), disc(metal, hub, 0.05, 12)]
    frame = ((rear, crank), (rear, seat), (crank, seat), (crank, head), (seat, head))
    shapes += [
        *(capsule(paint, start, stop, 0.065) for start, stop in frame),
        *path(paint, [0.38 + 1.02j, head, front], 0.065),
        *path(metal, [0.36 + 1.08j, 0.4 + 1.12j, HANDLE], 0.055),
        capsule(dark, 0.45 + 1.12j, HANDLE, 0.07),
        capsule(metal, seat, -0.25 + 0.96j, 0.05),
        capsule(dark, -0.4 + 0.99j, -0.12 + 0.98j, 0.1, 0.06),
        disc(metal, crank, 0.085, 14),
    ]
    for pedal in PEDALS:
        shapes += [
            capsule((60, 60, 66), crank, pedal, 0.035),
            capsule(dark, pedal - 0.05, pedal + 0.05, 0.04),
        ]
    return shapes


def _skateboard(look: Look, posture: str) -> Shapes:
    deck = look.colour.rgb
    shapes: Shapes = []
    for x in (-0.32, 0.32):
        shapes.append(rectangle((150, 150, 156), x - 0.04, 0.07, x + 0.04, 0.16))
        shapes += [
            disc((250, 240, 210), x + 0.08j, 0.08, 16),
            disc((90, 90, 96), x + 0.08j, 0.032, 10),
        ]
    shapes += path(deck, [-0.56 + 0.25j, -0.42 + 0.165j, 0.42 + 0.165j, 0.56 + 0.25j], 0.085)
    return [*shapes, capsule(shade(deck, 0.6), -0.4 + 0.2j, 0.4 + 0.2j, 0.03)]


def _car(look: Look, posture: str) -> Shapes:
    paint = look.colour.rgb
    glass = (176, 212, 232)
    cabin = (-1.12 + 0.72j, -0.84 + 1.18j, -0.4 + 1.28j, 0.2 + 1.27j, 0.5 + 1.12j, 0.82 + 0.74j)
    back = (-1.45 + 0.3j, -1.43 + 0.66j, -1.2 + 0.8j)
    front = (0.7 + 0.82j, 1.2 + 0.76j, 1.43 + 0.6j, 1.45 + 0.3j)
    shapes: Shapes = [
        blob(shade(paint, 0.94), *cabin),
        blob(glass, -0.92 + 0.76j, -0.74 + 1.08j, -0.5 + 1.18j, -0.24 + 1.18j, -0.22 + 0.76j),
        blob(glass, -0.1 + 0.76j, -0.1 + 1.18j, 0.16 + 1.17j, 0.38 + 1.06j, 0.62 + 0.76j),
        blob(paint, *back, *front, 0.6 + 0.26j, -0.6 + 0.26j),
        capsule(shade(paint, 0.72), -1.37 + 0.32j, 1.37 + 0.32j, 0.09),
        rectangle(shade(paint, 0.7), -0.175, 0.36, -0.155, 0.76),
        capsule(shade(paint, 0.6), -0.34 + 0.64j, -0.24 + 0.64j, 0.035),
        ellipse((255, 240, 170), 1.36 + 0.58j, 0.07, 0.085, corners=14),
        ellipse((190, 40, 40), -1.38 + 0.58j, 0.055, 0.09, corners=14),
    ]
    for hub in (-0.84 + 0.27j, 0.86 + 0.27j):
        shapes += [disc((42, 42, 46), hub, 0.27, 24), disc((188, 190, 196), hub, 0.15, 18)]
        shapes.append(disc((110, 112, 118), hub, 0.05, 10))
    return shapes


def _ball(look: Look, posture: str) -> Shapes:
    """Draw a football, a basketball or a beach ball that rests on the origin; its middle is the
    origin of its parts.
    """
    main = look.colour.rgb
    r = BALL_RADIUS
    dark = (44, 44, 48)
    shapes: Shapes = [disc(shade(main, 0.82), 0, r, 26), disc(main, -0.012 + 0.014j, r * 0.93, 26)]
    if look.style == 0:
        corners = r * np.exp(1j * np.radians(90 + 72 * np.arange(5)))
        shapes += [
            Shape(corners * 0.36, dark),
            *(disc(dark, corner * 0.82, r * 0.15, 8) for corner in corners),
        ]
    elif look.style == 1:
        seam = [r * point for point in (0.72 + 0.66j, 0.42 + 0.3j, 0.42 - 0.3j, 0.72 - 0.66j)]
        right = path(dark, seam, 0.022)
        shapes += [
            capsule(dark, -r * 0.95, r * 0.95, 0.022),
            capsule(dark, -r * 0.95j, r * 0.95j, 0.022),
        ]
        shapes += [*moved(right, flip=True), *right]
    else:
        shapes += [sector(look.second, 0, r * 0.97, start, start + 60) for start in (20, 140, 260)]
        shapes.append(disc((250, 250, 250), 0, r * 0.2, 12))
    return moved(shapes, r * 1j)


def _kite(look: Look, posture: str) -> Shapes:
    """Draw a kite with its centre at the origin; a flying one leans."""
    main = look.colour.rgb
    second = look.second
    left = -0.38 + 0.1j
    right = 0.38 + 0.1j
    top = 0.52j
    bottom = -0.56j
    middle = 0.1j
    tail = [-0.54j, -0.07 - 0.66j, 0.05 - 0.78j, -0.06 - 0.9j]
    bows = [
        polygon(second, knot, knot + side + 0.06j, knot + side - 0.06j)
        for knot, side in product(tail[1:], (-0.09, 0.09))
    ]
    shapes = [
        *path(shade(main, 0.6), tail, 0.025),
        *bows,
        polygon(main, left, top, middle),
        polygon(second, top, right, middle),
        polygon(second, left, middle, bottom),
        polygon(main, middle, right, bottom),
        capsule(shade(main, 0.5), top, bottom, 0.02),
        capsule(shade(main, 0.5), left, right, 0.02),
    ]
    return moved(shapes, tilt=-14 if posture == "flying" else 0)


def _umbrella(look: Look, posture: str) -> Shapes:
    """Draw an open umbrella with the end of its stick at the origin; a standing one is larger than
    a held one.
    """
    large = posture == "standing"
    length, half, width = (2.05, 1.0, 0.06) if large else (1.0, 0.66, 0.042)
    main = look.colour.rgb
    second = look.second if look.style else shade(look.colour.rgb, 1.5)
    wood = (120, 88, 60) if large else (70, 66, 66)
    canopy = (length - 0.04) * 1j
    tip = (length + half * 0.62) * 1j
    return [
        capsule(wood, 0.02j, tip, width),
        *([] if large else path(wood, [0, -0.06j, 0.06 - 0.09j, 0.1 - 0.05j], width)),
        _canopy(main, canopy, half, -1.0, 1.0),
        _canopy(second, canopy, half, -0.62, -0.2),
        _canopy(second, canopy, half, 0.2, 0.62),
        capsule(wood, tip - 0.06j, tip + 0.05j, 0.045),
    ]


def _canopy(colour: RGB, centre: complex, half: float, start: float, stop: float) -> Shape:
    """Return the part of a dome between two points of its scalloped rim, given as fractions of its
    half width.
    """
    rim = np.linspace(start, stop, 25)
    edge = rim + 0.07j * np.abs(np.sin(rim * math.pi * 2.5))
    if (start, stop) == (-1.0, 1.0):
        across = rim[::-1]
        dome = across + 0.62j * np.sqrt(np.maximum(1 - across**2, 0.0))
    else:
        heights = np.linspace(0, math.pi / 2, 9)
        right = stop * np.cos(heights) + 0.62j * np.sin(heights)
        left = start * np.cos(heights) + 0.62j * np.sin(heights)
        dome = np.concatenate([right, left[::-1]])
    return Shape(np.concatenate([edge, dome]) * half + centre, colour)


class ThingClass(NamedTuple):
    """The slots of a class, and the colours it may have.

    Slots are positions for another thing (top, below, over in the air, fore, aft), the body and the
    hands. A relation uses up the slots it needs, so that no second relation can contradict it.
    """

    slots: str
    colours: str = ""
    draw: Callable[[Look, str], Shapes] = draw_animal


_CLASSES = {
    "person": ThingClass("body hands over fore aft"),
    "dog": ThingClass("body over fore aft", "brown brown black white gray"),
    "cat": ThingClass("body over fore aft", "orange orange black white gray"),
    "horse": ThingClass("body top over fore aft", "brown black white gray"),
    "bird": ThingClass("body fore aft", "blue red yellow green white black orange"),
    "bicycle": ThingClass("body top over fore aft", "red blue green black yellow pink", _bicycle),
    "umbrella": ThingClass(
        "below fore aft", "red blue yellow green purple pink black orange", _umbrella
    ),
    "chair": ThingClass(
        "top below over fore aft", "red blue green brown yellow white purple", _chair
    ),
    "dining table": ThingClass("top below over fore aft", "brown white gray green red", _table),
    "cup": ThingClass("fore aft", "red blue white yellow pink orange", _cup),
    "sports ball": ThingClass("body over fore aft", "red orange blue white yellow", _ball),
    "bench": ThingClass("top below over fore aft", "brown green gray red blue", _bench),
    "kite": ThingClass("", "red yellow blue green purple pink orange", _kite),
    "skateboard": ThingClass(
        "body top over fore aft", "red blue green purple orange black", _skateboard
    ),
    "car": ThingClass("top over fore aft", "red blue yellow white green gray black orange", _car),
}
KINDS = tuple(_CLASSES)


class Extent(NamedTuple):
    """A box in world units, y up."""

    left: float
    bottom: float
    right: float
    top: float


def extent_of(shapes: Shapes) -> Extent:
    points = np.concatenate([shape.points for shape in shapes])
    x = points.real
    y = points.imag
    return Extent(float(x.min()), float(y.min()), float(x.max()), float(y.max()))


@dataclass(eq=False)
class Actor:
    """A thing in a group: its look, position and pose.

    at: of its origin (the ground below it) in the group. facing: 1 for right, -1 for left. depth:
    the drawing order, larger in front. hands, feet: points in the group. free: the unused slots.
    """

    kind: str
    look: Look | PersonLook
    at: complex = 0j
    facing: int = 1
    tilt: float = 0.0
    posture: str = "standing"
    depth: float = 0.0
    hands: Hands = (None, None)
    feet: Feet = None
    airborne: bool = False
    free: set[str] = field(default_factory=set)

    def place(self, point: complex) -> complex:
        """Return the position in the group of a point of the thing, given at size 1 and facing
        right.
        """
        return self.at + complex(self.facing * point.real, point.imag) * self.look.size

    def drawn(self) -> tuple[list[Shapes], Extent]:
        """Return the shapes in the group, parts from far to near, and the box around them,
        including hidden parts.
        """
        return _drawn(
            self.look, self.posture, self.at, self.facing, self.tilt, self.hands, self.feet
        )

    def extent(self) -> Extent:
        return self.drawn()[1]


@lru_cache(64)  # it is measured several times in a pose
def _drawn(
    look: Look | PersonLook,
    posture: str,
    at: complex,
    facing: int,
    tilt: float,
    hands: Hands,
    feet: Feet,
) -> tuple[list[Shapes], Extent]:

    def inside(point: complex) -> complex:
        return complex((point - at).real * facing, (point - at).imag)

    def inside_if_set(hand: complex | None) -> complex | None:
        return None if hand is None else inside(hand)

    if isinstance(look, PersonLook):
        moved_hands = (inside_if_set(hands[0]), inside_if_set(hands[1]))
        moved_feet = (inside(feet[0]), inside(feet[1])) if feet else None
        parts = draw_person(look, posture, moved_hands, moved_feet)
    else:
        parts = [moved(_CLASSES[look.kind].draw(look, posture), scale=look.size)]
    shapes = [moved(part, at, tilt, flip=facing < 0) for part in parts]
    return shapes, extent_of([*chain.from_iterable(shapes)])


class Fact(NamedTuple):
    """A relation between two things of a group or a scene (indices); `implied` if it follows from
    another one.
    """

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
        boxes = np.array(
            [actor.extent() for actor in self.actors]
            + [extent_of(shapes) for _, shapes in self.extras]
        )
        return Extent(*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())


def random_actor(kind: str, rng: Generator) -> Actor:
    """Return a thing of a class with a random look; an animal's second colour is that of its marks,
    in style 1.
    """
    slots, colours, draw = _CLASSES[kind]
    if kind == "person":
        return Actor(kind, random_person(rng), free={*slots.split()})
    colour = pick_colour(rng, colours.split())
    if draw is draw_animal:
        second = shade(colour.rgb, 0.68 if sum(colour.rgb) > 420 else 1.7)
        look = Look(kind, colour, second, float(rng.uniform(0.92, 1.1)), int(rng.random() < 0.5))
    else:
        second = pick_colour(rng, [name for name in _SECOND if name != colour.name]).rgb
        look = Look(kind, colour, second, float(rng.uniform(0.94, 1.08)), int(rng.integers(3)))
    return Actor(kind, look, free={*slots.split()})
