"""What a relation implies, and which combinations are kept for the compositional test split."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sgpipe.miniworld.relations import CONVERSE, RULES, Statement

SPLITS = ("train", "val", "test-compositional")
COMPOSITIONAL = "test-compositional"

# What is true besides. Who pushes something is beside it; animals are petted and bicycles walked from their far
# side.
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
    """What else is true if a relation is: predicates, and whether they hold from object to subject."""
    direct = [*_ALSO.get(predicate, ()), *_ALSO_OF.get((subject, predicate, object_), ())]
    converse = [CONVERSE[each] for each in (predicate, *direct) if each in CONVERSE]
    return [(each, False) for each in dict.fromkeys(direct)] + [(each, True) for each in dict.fromkeys(converse)]


def closure(statement: Statement) -> frozenset[Statement]:
    """The statement and all that it implies."""
    subject, _, object_ = statement
    more = [
        (object_, predicate, subject) if swapped else (subject, predicate, object_)
        for predicate, swapped in implied(*statement)
    ]
    return frozenset((statement, *more))


# Combinations that training never sees. Whatever implies or is implied by one of them is left out with it,
# so that the statements of the compositional split and of the others have nothing in common.
_HELD_OUT: frozenset[Statement] = frozenset(
    {
        ("dog", "riding", "skateboard"),
        ("person", "holding", "skateboard"),
        ("person", "holding", "bird"),
        ("cat", "sitting on", "bench"),
        ("dog", "standing on", "car"),
        ("bird", "standing on", "chair"),
        ("person", "standing on", "dining table"),
        ("cup", "on", "bench"),
        ("sports ball", "on", "dining table"),
        ("dog", "under", "bench"),
        ("bird", "under", "dining table"),
        ("cat", "under", "umbrella"),
        ("sports ball", "under", "chair"),
        ("cat", "chasing", "sports ball"),
        ("person", "chasing", "bird"),
        ("dog", "chasing", "horse"),
        ("person", "walking", "cat"),
        ("person", "looking at", "horse"),
        ("cat", "looking at", "bird"),
        ("dog", "looking at", "sports ball"),
        ("person", "pushing", "chair"),
        ("dog", "jumping over", "bench"),
        ("person", "jumping over", "skateboard"),
        ("horse", "jumping over", "sports ball"),
        ("cat", "jumping over", "chair"),
        ("person", "petting", "cat"),
        ("bird", "flying over", "bench"),
        ("bird", "flying over", "horse"),
        ("dog", "next to", "horse"),
        ("dog", "next to", "bicycle"),
        ("cat", "next to", "car"),
        ("umbrella", "next to", "chair"),
        ("bicycle", "next to", "bench"),
        ("sports ball", "next to", "skateboard"),
        ("bird", "next to", "dining table"),
        ("dog", "behind", "car"),
        ("person", "behind", "dining table"),
        ("horse", "behind", "bench"),
        ("bicycle", "behind", "car"),
        ("chair", "behind", "dog"),
    }
)


@cache
def statements_of(split: str) -> frozenset[Statement]:
    """The relations composed in a split's pictures.

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
