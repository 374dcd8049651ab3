"""The relations of the miniworld: the classes each relates, how it is composed, and what it implies.

Also the combinations reserved for the compositional test split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from typing import NamedTuple, TypeAlias

from numpy.random import Generator

from sgpipe.miniworld import compositions as compose
from sgpipe.miniworld.actors import KINDS, Actor, SceneGroup

Statement: TypeAlias = tuple[str, str, str]  # subject class, predicate, object class
Composition: TypeAlias = Callable[[SceneGroup, Actor, Actor, Generator], None]


class Arrangement(NamedTuple):
    """Which of the two actors must be placed first, and the slots (see `actors.SLOTS`) that each uses up."""

    first: str
    subject_takes: frozenset[str]
    object_takes: frozenset[str]


class CompositionRule(NamedTuple):
    """A relation that can be composed. The weight is its relative frequency."""

    predicate: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    compose: Composition
    arrangement: Arrangement
    weight: float

    @property
    def statements(self) -> list[Statement]:
        pairs = product(self.subjects, self.objects)
        statements = [(subject, self.predicate, object_) for subject, object_ in pairs]
        return [statement for statement in statements if statement not in _NO_ROOM and _in_order(statement)]


# Predicates and their converse: if A is behind B, B is in front of A.
CONVERSE = {"next to": "next to", "behind": "in front of", "in front of": "behind"}

_NO_ROOM: frozenset[Statement] = frozenset(
    {("dog", "under", "chair"), ("skateboard", "on", "chair"), ("skateboard", "under", "chair")}
)


def _in_order(statement: Statement) -> bool:
    """Return whether a statement is composed: for a symmetric relation only one direction is, and the other is
    implied.
    """
    subject, predicate, object_ = statement
    return CONVERSE.get(predicate) != predicate or KINDS.index(subject) <= KINDS.index(object_)


def _arrangement(first: str, subject_takes: str = "", object_takes: str = "") -> Arrangement:
    return Arrangement(first, frozenset(subject_takes.split()), frozenset(object_takes.split()))


def _rule(
    predicate: str, subjects: str, objects: str, composition: Composition, place: Arrangement, weight: float = 1.0
) -> CompositionRule:
    return CompositionRule(predicate, _names(subjects), _names(objects), composition, place, weight)


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

RULES: tuple[CompositionRule, ...] = (
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

# All predicates of the scene graphs; "with" is only implied.
PREDICATES: tuple[str, ...] = (*dict.fromkeys(rule.predicate for rule in RULES), "with")


SPLITS = ("train", "val", "test-compositional")
COMPOSITIONAL = "test-compositional"

# Implied predicates. Someone who pushes something is next to it; animals are petted, and bicycles walked, from their
# far side.
_ALSO: dict[str, tuple[str, ...]] = {
    "riding": ("on",),
    "holding": ("with",),
    "walking": ("with",),
    "flying": ("with",),
    "sitting on": ("on",),
    "standing on": ("on",),
    "lying on": ("on",),
    "petting": ("next to", "behind"),
    "pushing": ("next to",),
}
_ALSO_OF: dict[Statement, tuple[str, ...]] = {
    ("person", "riding", "horse"): ("sitting on",),
    ("person", "riding", "bicycle"): ("sitting on",),
    ("person", "riding", "skateboard"): ("standing on",),
    ("dog", "riding", "skateboard"): ("standing on",),
    ("cat", "riding", "skateboard"): ("standing on",),
    ("person", "holding", "umbrella"): ("under",),
    ("person", "walking", "bicycle"): ("next to", "behind"),
}


def implied(subject: str, predicate: str, object_: str) -> list[tuple[str, bool]]:
    """Return the predicates that a relation implies, each with whether it holds from object to subject."""
    direct = [*_ALSO.get(predicate, ()), *_ALSO_OF.get((subject, predicate, object_), ())]
    converse = [CONVERSE[each] for each in (predicate, *direct) if each in CONVERSE]
    return [(each, False) for each in dict.fromkeys(direct)] + [(each, True) for each in dict.fromkeys(converse)]


def closure(statement: Statement) -> frozenset[Statement]:
    """Return the statement and all statements that it implies."""
    subject, _, object_ = statement
    more = [
        (object_, predicate, subject) if swapped else (subject, predicate, object_)
        for predicate, swapped in implied(*statement)
    ]
    return frozenset((statement, *more))


# Combinations that never occur in training. Statements that imply one of them, or are implied by one, are excluded as
# well, so that the compositional split has no statement in common with the others.
_HELD_OUT: frozenset[Statement] = frozenset(
    (subject, predicate, object_)
    for predicate, pairs in {
        "riding": "dog > skateboard",
        "holding": "person > skateboard, person > bird",
        "sitting on": "cat > bench",
        "standing on": "dog > car, bird > chair, person > dining table",
        "on": "cup > bench, sports ball > dining table",
        "under": "dog > bench, bird > dining table, cat > umbrella, sports ball > chair",
        "chasing": "cat > sports ball, person > bird, dog > horse",
        "walking": "person > cat",
        "looking at": "person > horse, cat > bird, dog > sports ball",
        "pushing": "person > chair",
        "jumping over": "dog > bench, person > skateboard, horse > sports ball, cat > chair",
        "petting": "person > cat",
        "flying over": "bird > bench, bird > horse",
        "next to": "dog > horse, dog > bicycle, cat > car, umbrella > chair, bicycle > bench, "
        "sports ball > skateboard, bird > dining table",
        "behind": "dog > car, person > dining table, horse > bench, bicycle > car, chair > dog",
    }.items()
    for subject, object_ in (pair.split(" > ") for pair in pairs.split(", "))
)


@cache
def statements_of(split: str) -> frozenset[Statement]:
    """Return the relations composed in the images of a split.

    Raises ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
    all_statements = {statement for rule in RULES for statement in rule.statements}
    held_out = _closures(_HELD_OUT)
    seen = {statement for statement in all_statements if closure(statement).isdisjoint(held_out)}
    if split != COMPOSITIONAL:
        return frozenset(seen)
    stated = _closures(seen)
    return frozenset(s for s in all_statements if closure(s).isdisjoint(stated))


def _closures(statements: Iterable[Statement]) -> frozenset[Statement]:
    return frozenset().union(*map(closure, statements))
