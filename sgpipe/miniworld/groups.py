"""Groups of two or three related things, of which nothing is true but what was meant."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator

from sgpipe.miniworld.actors import Actor, Bond, Group, random_actor
from sgpipe.miniworld.relations import RULES, Rule, Statement

# World units between things of a group that are not related; neighbours have at most 0.12 between them.
APART = 0.3
_THIRD = 0.5
_ATTEMPTS = 4


class Option(NamedTuple):
    """A statement that may be composed, by which rule, and its share among those of the predicate."""

    share: float
    rule: Rule
    statement: Statement


Options: TypeAlias = dict[str, list[Option]]


def random_group(allowed: frozenset[Statement], rng: Generator) -> Group:
    """Two things in a relation, and often a third in a relation to one of them."""
    group = Group()
    rule, (subject_kind, _, object_kind) = _choose(_options(allowed), rng)
    subject, object_ = random_actor(subject_kind, rng), random_actor(object_kind, rng)
    first = rule.arrangement.first
    if first == "either":
        first = str(rng.choice(["subject", "object"]))
    group.add(subject if first == "subject" else object_)
    relate(group, rule, subject, object_, rng)
    if rng.random() < _THIRD:
        for _ in range(_ATTEMPTS):
            larger = _with_third(group, allowed, rng)
            if larger and stays_apart(larger):
                return larger
    return group


def relate(group: Group, rule: Rule, subject: Actor, object_: Actor, rng: Generator) -> None:
    """Compose a relation of two actors, of which one is in the group, and take the places it needs."""
    for actor, takes in ((subject, rule.arrangement.subject_takes), (object_, rule.arrangement.object_takes)):
        actor.free -= takes
        if takes >= {"fore", "aft"}:  # it leaves the ground, or is enclosed
            actor.free -= {"below"}
    rule.compose(group, subject, object_, rng)
    group.bonds.append(Bond(group.add(subject), rule.predicate, group.add(object_)))


def stays_apart(group: Group) -> bool:
    """Whether no two things of a group are near, before or above each other without being related."""
    related = {frozenset((bond.subject, bond.object)) for bond in group.bonds}
    for (i, one), (j, other) in combinations(enumerate(group.actors), 2):
        if frozenset((i, j)) in related:
            continue
        a, b = one.extent(), other.extent()
        across = max(a.left, b.left) - min(a.right, b.right)
        upright = max(a.bottom, b.bottom) - min(a.top, b.top)
        upper = one if a.bottom > b.bottom else other
        overhead = upper.posture in ("flying", "jumping") or upper.kind == "umbrella"
        if across < (0 if upright >= 0 and overhead else APART if upright < 0 else -np.inf):
            return False
    return True


def _with_third(group: Group, allowed: frozenset[Statement], rng: Generator) -> Group | None:
    """A copy of the group with a new thing related to one that is in place; None where there is no room."""
    fitting: Options = {}
    for predicate, options in _options(allowed).items():
        if kept := [option for option in options if any(_anchors(group, option))]:
            fitting[predicate] = kept
    if not fitting:
        return None
    rule, statement = _choose(fitting, rng)
    larger = copy.deepcopy(group)
    anchors = list(_anchors(larger, Option(1.0, rule, statement)))
    anchor, is_subject = anchors[rng.integers(len(anchors))]
    new = random_actor(statement[2 if is_subject else 0], rng)
    relate(larger, rule, *((anchor, new) if is_subject else (new, anchor)), rng)
    return larger


def _anchors(group: Group, option: Option) -> Iterator[tuple[Actor, bool]]:
    """The actors in place to which a new one can be related, each with whether it is the subject."""
    (subject, _, object_), (first, subject_takes, object_takes) = option.statement, option.rule.arrangement
    for is_subject in (True, False):
        if first not in ("either", "subject" if is_subject else "object"):
            continue
        kind, takes = (subject, subject_takes) if is_subject else (object_, object_takes)
        for actor in group.actors:
            beside = first != "either" or not actor.free.isdisjoint(("fore", "aft"))
            if actor.kind == kind and takes <= actor.free and beside:
                yield actor, is_subject


@cache
def _options(allowed: frozenset[Statement]) -> Options:
    """What may be composed, by predicate."""
    options: Options = {}
    for rule in RULES:
        statements = [statement for statement in rule.statements if statement in allowed]
        for statement in statements:
            option = Option(rule.weight / len(statements), rule, statement)
            options.setdefault(rule.predicate, []).append(option)
    return options


def _choose(options: Options, rng: Generator) -> tuple[Rule, Statement]:
    """A predicate by its greatest weight, then one of its statements."""
    predicates = list(options)
    weights = np.array([max(option.rule.weight for option in options[each]) for each in predicates])
    choices = options[predicates[rng.choice(len(predicates), p=weights / weights.sum())]]
    shares = np.array([option.share for option in choices])
    _, rule, statement = choices[rng.choice(len(choices), p=shares / shares.sum())]
    return rule, statement
