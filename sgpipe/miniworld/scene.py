"""A random scene: groups of related things and things by themselves, side by side before a background.

Every scene has its own random generator, seeded by the run's seed, the split and the scene's number, so that
it is the same whatever else is drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence

from sgpipe.miniworld.actors import KINDS, Actor, Extent, Group, random_actor
from sgpipe.miniworld.groups import random_group
from sgpipe.miniworld.relations import Statement
from sgpipe.miniworld.splits import implied, statements_of

SIZES = ((320, 240), (320, 240), (288, 224), (352, 240), (300, 260), (256, 256), (340, 220))
# World units between groups: several times what lies between neighbours, so that nothing is near by accident.
GROUP_GAP = 0.7
_MARGIN = 0.14
_SMALLEST, _LARGEST = 50.0, 86.0  # pixels per world unit


class Fact(NamedTuple):
    """A relation between two things of a scene (indices); `implied` if it follows from another one."""

    subject: int
    predicate: str
    object: int
    implied: bool


@dataclass(frozen=True)
class Placed:
    """A group in the picture: a world unit is `scale` pixels, and the group's origin is at `at` (pixels)."""

    group: Group
    at: tuple[float, float]
    scale: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """Everything about a picture but its pixels; things and facts are numbered over all groups."""

    split: str
    number: int
    width: int
    height: int
    horizon: float
    indoors: bool
    background_seed: int
    placed: tuple[Placed, ...]
    things: tuple[Actor, ...]
    facts: tuple[Fact, ...]

    def statement(self, fact: Fact) -> Statement:
        """A fact in class names."""
        return self.things[fact.subject].kind, fact.predicate, self.things[fact.object].kind


def scene_generator(seed: int, split: str, number: int, purpose: int = 0) -> Generator:
    """The random generator of one scene; `purpose` sets several of its uses apart.

    Raises ValueError: a number is negative.
    """
    entropy = (seed, zlib.crc32(split.encode()), number, purpose)
    return np.random.default_rng(SeedSequence(entropy))


def random_scene(seed: int, split: str, number: int) -> Scene:
    """The scene of a number. All relations composed in it are of its split.

    Raises ValueError: there is no such split, or a number is negative.
    """
    allowed = statements_of(split)
    rng = scene_generator(seed, split, number)
    width, height = SIZES[rng.integers(len(SIZES))]
    groups = _random_groups(allowed, rng)
    while True:
        layout = _lay_out(groups, width, height, rng)
        if layout is not None:
            break
        groups.pop()
    horizon, placed = layout
    things = tuple(actor for each in placed for actor in each.group.actors)
    return Scene(
        split=split,
        number=number,
        width=width,
        height=height,
        horizon=horizon,
        indoors=_can_be_indoors(things) and bool(rng.random() < 0.45),
        background_seed=int(rng.integers(2**31)),
        placed=placed,
        things=things,
        facts=tuple(_facts(placed)),
    )


def _random_groups(allowed: frozenset[Statement], rng: Generator) -> list[Group]:
    """One to three groups, then up to two things by themselves that are related to nothing."""
    groups = [random_group(allowed, rng) for _ in range(1 + rng.choice(3, p=[0.4, 0.45, 0.15]))]
    for _ in range(rng.choice(3, p=[0.45, 0.4, 0.15])):
        single = Group()
        # Often of a class that is there already: the caption must then be true of the right one.
        present = [actor.kind for group in groups for actor in group.actors if actor.kind != "kite"]
        others = [kind for kind in KINDS if kind != "kite"]
        kinds = present if present and rng.random() < 0.4 else others
        actor = random_actor(kinds[rng.integers(len(kinds))], rng)
        if actor.kind in ("dog", "cat"):
            actor.posture = str(rng.choice(["standing", "sitting", "lying"]))
        elif actor.kind in ("person", "horse") and rng.random() < 0.3:
            actor.posture = "walking"
        single.add(actor)
        groups.append(single)
    return groups


def _facts(placed: tuple[Placed, ...]) -> Iterator[Fact]:
    """What was composed and what follows from it, each once."""
    start, found = 0, dict[tuple[int, str, int], bool]()
    for each in placed:
        group = each.group
        for subject, predicate, object_ in group.bonds:
            found.setdefault((start + subject, predicate, start + object_), False)
        for subject, predicate, object_ in group.bonds:
            names = group.actors[subject].kind, predicate, group.actors[object_].kind
            for also, swapped in implied(*names):
                ends = (object_, subject) if swapped else (subject, object_)
                found.setdefault((start + ends[0], also, start + ends[1]), True)
        start += len(group.actors)
    for (subject, predicate, object_), follows in found.items():
        yield Fact(subject, predicate, object_, follows)


def _lay_out(groups: list[Group], width: int, height: int, rng: Generator) -> tuple[float, tuple[Placed, ...]] | None:
    """Horizon (pixels from the top) and the groups from left to right; None if they do not fit."""
    extents = [group.extent() for group in groups]
    wide = sum(extent.right - extent.left for extent in extents) + GROUP_GAP * (len(groups) - 1) + 2 * _MARGIN
    high = max(extent.top for extent in extents) + 2 * _MARGIN
    largest = min(width / wide, height * 0.93 / high, _LARGEST)
    if largest < _SMALLEST and len(groups) > 1:
        return None
    scale = largest * float(rng.uniform(0.86, 1.0)) if largest > _SMALLEST else largest
    horizon = height * float(rng.uniform(0.42, 0.62))
    order = rng.permutation(len(groups))
    spare = width / scale - wide
    gaps = rng.dirichlet(np.ones(len(groups) + 1)) * max(spare, 0.0)
    placed, x = [], _MARGIN
    for gap, index in zip(gaps, order, strict=False):
        extent = extents[index]
        ground = _ground(extent, scale, horizon, height, rng)
        mirrored = bool(rng.random() < 0.5)
        left = -extent.right if mirrored else extent.left
        x += float(gap)
        placed.append(Placed(groups[index], ((x - left) * scale, ground), scale, mirrored))
        x += extent.right - extent.left + GROUP_GAP
    return horizon, tuple(placed)


def _ground(extent: Extent, scale: float, horizon: float, height: int, rng: Generator) -> float:
    """Where in the picture a group stands, in pixels from the top: below the horizon, and all of it inside."""
    lowest = height - 4 + min(extent.bottom, 0.0) * scale
    highest = max(horizon + 0.09 * height, extent.top * scale + 4)
    return float(rng.uniform(min(highest, lowest), lowest))


def _can_be_indoors(things: tuple[Actor, ...]) -> bool:
    outdoors = {"car", "kite", "horse"}
    return not any(
        thing.kind in outdoors or (thing.kind == "umbrella" and thing.posture == "standing") for thing in things
    )
