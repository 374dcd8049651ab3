"""The things of a scene (actors): their classes, their poses, and the groups they form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator

from sgpipe.miniworld import things
from sgpipe.miniworld.figures import (
    ANIMALS,
    AnimalLook,
    PersonLook,
    back_of,
    draw_animal,
    draw_person,
    random_animal,
    random_person,
)
from sgpipe.miniworld.shapes import Point, Shapes, moved
from sgpipe.miniworld.things import ThingLook, draw_thing, random_thing

Look: TypeAlias = PersonLook | AnimalLook | ThingLook

KINDS: tuple[str, ...] = ("person", *ANIMALS, *things.THINGS)


class Top(NamedTuple):
    """The top surface of a thing at size 1: its centre and half its width."""

    middle: Point
    half: float


TOPS: dict[str, Top] = {
    "chair": Top((0.04, things.SEAT_HEIGHT + 0.02), 0.3),
    "bench": Top((0.0, things.BENCH_HEIGHT), 0.82),
    "dining table": Top((0.0, things.TABLE_HEIGHT), 0.78),
    "car": Top(things.CAR_ROOF, things.CAR_ROOF_HALF),
    "horse": Top((-0.05, back_of("horse")), 0.3),
    "bicycle": Top(things.SADDLE, 0.1),
    "skateboard": Top((0.0, things.DECK_HEIGHT), 0.4),
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


class _Drawn(NamedTuple):
    """The shapes of an actor in a pose: parts from far to near, and the box around them."""

    pose: tuple[Any, ...]
    shapes: list[Shapes]
    extent: Extent


@dataclass(eq=False)
class Actor:
    """A thing in a group: its look, position and pose.

    at: of its origin (the ground below it) in the group. facing: 1 for right, -1 for left. depth: the drawing order,
    larger in front. hands, feet: points in the group. free: the unused slots.
    """

    kind: str
    look: Look
    at: Point = (0.0, 0.0)
    facing: int = 1
    tilt: float = 0.0
    posture: str = "standing"
    depth: float = 0.0
    hands: tuple[Point | None, Point | None] = (None, None)
    feet: tuple[Point, Point] | None = None
    airborne: bool = False
    free: set[str] = field(default_factory=set)
    _drawn: _Drawn | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": None}  # a copy is about to move, so the cached shapes are useless

    @property
    def size(self) -> float:
        return self.look.size

    def place(self, point: Point) -> Point:
        """Return the position in the group of a point of the thing, given at size 1 and facing right."""
        return self.at[0] + self.facing * point[0] * self.size, self.at[1] + point[1] * self.size

    def layers(self) -> list[tuple[float, Shapes]]:
        """Return the shapes in the group with their depth; a person's near arm is in front of what it holds."""
        shapes = self._draw().shapes
        return [(self.depth + 0.5 * number, part) for number, part in enumerate(shapes)]

    def extent(self) -> Extent:
        """Return the box around the thing, including hidden parts."""
        return self._draw().extent

    def _draw(self) -> _Drawn:
        """Return the shapes of the current pose, cached until the pose changes."""
        pose = (self.look, self.posture, self.at, self.facing, self.tilt, self.hands, self.feet)
        if self._drawn is None or self._drawn.pose != pose:
            shapes = [moved(part, self.at, self.tilt, flip=self.facing < 0) for part in self._parts()]
            self._drawn = _Drawn(pose, shapes, extent_of([shape for part in shapes for shape in part]))
        return self._drawn

    def _parts(self) -> list[Shapes]:
        """Return the parts in the thing's own coordinates, from far to near."""
        if isinstance(self.look, AnimalLook):
            return [draw_animal(self.look, self.posture)]
        if isinstance(self.look, ThingLook):
            return [draw_thing(self.look, self.posture)]
        near, far = (self._inside(hand) if hand else None for hand in self.hands)
        feet = (self._inside(self.feet[0]), self._inside(self.feet[1])) if self.feet else None
        return draw_person(self.look, self.posture, (near, far), feet)

    def _inside(self, point: Point) -> Point:
        """Return a point of the group in the thing's own coordinates."""
        return (point[0] - self.at[0]) * self.facing, point[1] - self.at[1]


class Bond(NamedTuple):
    """A composed relation; subject and object are indices of actors in their group."""

    subject: int
    predicate: str
    object: int


@dataclass
class SceneGroup:
    """Related things, and the shapes drawn between them (a leash, a string)."""

    actors: list[Actor] = field(default_factory=list)
    bonds: list[Bond] = field(default_factory=list)
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
    look: Look
    if kind == "person":
        look = random_person(rng)
    else:
        look = random_animal(kind, rng) if kind in ANIMALS else random_thing(kind, rng)
    return Actor(kind, look, free=set(SLOTS[kind]))
