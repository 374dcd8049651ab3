"""The relations of the drawn world: between which things each is composed, and where it puts them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple, TypeAlias

from numpy.random import Generator

from sgpipe.miniworld import compositions as compose
from sgpipe.miniworld.actors import KINDS, Actor, Group

Statement: TypeAlias = tuple[str, str, str]  # subject class, predicate, object class
Composition: TypeAlias = Callable[[Group, Actor, Actor, Generator], None]


class Arrangement(NamedTuple):
    """Which of the two is in place before the other, and the places (see `actors.SLOTS`) each uses up."""

    first: str
    subject_takes: frozenset[str]
    object_takes: frozenset[str]


class Rule(NamedTuple):
    """A relation that can be composed. The weight says how often it is, compared to others."""

    predicate: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    compose: Composition
    arrangement: Arrangement
    weight: float

    @property
    def statements(self) -> list[Statement]:
        found = [(subject, self.predicate, object_) for subject, object_ in product(self.subjects, self.objects)]
        return [statement for statement in found if statement not in _NO_ROOM and _in_order(statement)]


# Predicates that hold the other way round, too, if read so.
CONVERSE = {"next to": "next to", "behind": "in front of", "in front of": "behind"}

_NO_ROOM: frozenset[Statement] = frozenset(
    {
        ("dog", "under", "chair"),
        ("skateboard", "on", "chair"),
        ("skateboard", "under", "chair"),
    }
)


def _in_order(statement: Statement) -> bool:
    """Of a relation that is its own converse, only one direction is composed; the other is implied."""
    subject, predicate, object_ = statement
    return CONVERSE.get(predicate) != predicate or KINDS.index(subject) <= KINDS.index(object_)


def _arrangement(first: str, subject_takes: str = "", object_takes: str = "") -> Arrangement:
    return Arrangement(first, frozenset(subject_takes.split()), frozenset(object_takes.split()))


def _rule(
    predicate: str, subjects: str, objects: str, composition: Composition, place: Arrangement, weight: float = 1.0
) -> Rule:
    return Rule(predicate, _names(subjects), _names(objects), composition, place, weight)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


_ASTRIDE = _arrangement("object", "body fore aft", "top over body")
_ATOP = _arrangement("object", "body fore aft", "top over")
_BELOW = _arrangement("object", "fore aft", "below fore aft")
_BESIDE = _arrangement("either")
_BEHIND = _arrangement("object", "fore aft", "fore aft")
_BEFORE = _arrangement("subject", "fore aft", "fore aft")
_IN_HAND = _arrangement("subject", "hands")
_AT_FOOT = _arrangement("subject", "body fore", "body fore aft")
_FROM_HAND = _arrangement("subject", "body hands fore over", "body fore aft")
_ON_STRING = _arrangement("subject", "body hands fore over")
_ON_LEASH = _arrangement("subject", "body hands fore aft", "body fore aft top over")
_AT_HAND = _arrangement("subject", "body hands fore", "body fore aft")
_IN_SIGHT = _arrangement("subject", "body hands fore", "fore aft")
_UNDER_NOSE = _arrangement("subject", "body fore", "fore aft")
_AHEAD = _arrangement("object", "body fore aft", "body fore aft")
_PUSHED = _arrangement("object", "body hands fore aft over", "aft")
_CLEARED = _arrangement("object", "body hands fore aft over", "top over")
_OVERFLOWN = _arrangement("object", "body fore aft", "over")

_SEATS = "chair, bench, dining table"
_LARGE = "person, horse, bicycle, chair, dining table, bench, car"
_GROUNDED = f"{_LARGE}, dog, cat, umbrella, skateboard, bird, sports ball"
_SMALL = "dog, cat, bird, sports ball, cup, skateboard"
_HELD = "umbrella, cup, sports ball, kite, skateboard, cat, bird"
_CHASED = "dog, cat, bird, sports ball"

RULES: tuple[Rule, ...] = (
    _rule("riding", "person", "horse, bicycle, skateboard", compose.ride, _ASTRIDE, 1.6),
    _rule("riding", "dog, cat", "skateboard", compose.ride, _ASTRIDE, 0.5),
    _rule("holding", "person", _HELD, compose.hold, _IN_HAND, 1.6),
    _rule("sitting on", "person, cat, dog", f"{_SEATS}, car", compose.sit_on, _ATOP),
    _rule("standing on", "person, dog, cat, bird", f"{_SEATS}, car", compose.stand_on, _ATOP),
    _rule("standing on", "bird", "horse", compose.stand_on, _ASTRIDE, 0.2),
    _rule("lying on", "cat, dog, person", "bench, dining table", compose.lie_on, _ATOP),
    _rule("on", "cup, sports ball, skateboard", _SEATS, compose.put_on, _ATOP),
    _rule("under", _SMALL, _SEATS, compose.put_under, _BELOW),
    _rule("under", "person, dog, cat, bird, chair, bench, sports ball", "umbrella", compose.put_under, _BELOW, 0.6),
    _rule("next to", _GROUNDED, _GROUNDED, compose.next_to, _BESIDE, 1.3),
    _rule("behind", f"{_LARGE}, dog", f"{_LARGE}, dog, cat", compose.stand_behind, _BEHIND),
    _rule("in front of", f"{_LARGE}, dog, cat", f"{_LARGE}, dog", compose.stand_before, _BEFORE),
    _rule("kicking", "person", "sports ball", compose.kick, _AT_FOOT),
    _rule("throwing", "person", "sports ball", compose.throw, _FROM_HAND),
    _rule("chasing", "dog", f"{_CHASED}, person, horse", compose.chase, _AHEAD),
    _rule("chasing", "cat", _CHASED, compose.chase, _AHEAD, 0.6),
    _rule("chasing", "person", f"{_CHASED}, horse", compose.chase, _AHEAD, 0.6),
    _rule("walking", "person", "dog, cat, horse, bicycle", compose.walk, _ON_LEASH, 1.3),
    _rule("flying", "person", "kite", compose.fly, _ON_STRING, 1.2),
    _rule("looking at", "person", "dog, cat, horse, bird, bicycle, car", compose.look_at, _IN_SIGHT),
    _rule("looking at", "dog, cat", f"{_CHASED}, cup", compose.look_at, _UNDER_NOSE, 0.8),
    _rule("pushing", "person", f"{_SEATS}, car", compose.push, _PUSHED, 1.2),
    _rule(
        "jumping over", "dog, cat, horse, person", "bench, sports ball, skateboard, chair", compose.jump_over, _CLEARED
    ),
    _rule("petting", "person", "dog, cat, horse", compose.pet, _AT_HAND, 1.2),
    _rule("flying over", "bird", f"{_LARGE}, dog, cat", compose.fly_over, _OVERFLOWN, 0.6),
)

# All that a scene graph may state; "with" only follows from others.
PREDICATES: tuple[str, ...] = (*dict.fromkeys(rule.predicate for rule in RULES), "with")
