"""Every relation, composed for every pair of its classes, has the expected geometry."""

import numpy as np
import pytest

from sgpipe.miniworld.actors import SLOTS, TOPS, Actor, Extent, SceneGroup, random_actor
from sgpipe.miniworld.relations import RULES, CompositionRule, Statement
from sgpipe.miniworld.scene import APART, relate

CASES = [(rule, statement) for rule in RULES for statement in rule.statements]
NAMES = [" ".join(statement).replace(" ", "-") for _, statement in CASES]


def compose(rule: CompositionRule, statement: Statement, seed: int) -> tuple[SceneGroup, Actor, Actor]:
    rng = np.random.default_rng(seed)
    subject, object_ = random_actor(statement[0], rng), random_actor(statement[2], rng)
    group = SceneGroup()
    group.add(object_ if rule.arrangement.first == "object" else subject)
    relate(group, rule, subject, object_, rng)
    return group, subject, object_


def of(predicate: str) -> list[tuple[CompositionRule, Statement]]:
    return [case for case in CASES if case[1][1] == predicate]


def gap(a: Extent, b: Extent) -> float:
    """The horizontal gap between two boxes; negative if they overlap."""
    return max(a.left, b.left) - min(a.right, b.right)


@pytest.mark.parametrize(("rule", "statement"), CASES, ids=NAMES)
def test_compositions_bind_two_things_on_or_above_the_ground(rule: CompositionRule, statement: Statement) -> None:
    group, subject, object_ = compose(rule, statement, 1)
    (bond,) = group.bonds
    assert (group.actors[bond.subject], bond.predicate, group.actors[bond.object]) == (subject, statement[1], object_)
    lowest = group.extent().bottom
    assert lowest > -0.25
    assert subject.free <= SLOTS[subject.kind]


@pytest.mark.parametrize("seed", range(5))
def test_side_by_side_is_closer_than_unrelated_things(seed: int) -> None:
    for rule, statement in of("next to"):
        _, subject, object_ = compose(rule, statement, seed)
        assert 0 < gap(subject.extent(), object_.extent()) < APART / 2


@pytest.mark.parametrize("predicate", ["sitting on", "standing on", "lying on", "on"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_on_something_touches_its_top(predicate: str, seed: int) -> None:
    for rule, statement in of(predicate):
        _, subject, object_ = compose(rule, statement, seed)
        top = object_.place(TOPS[object_.kind].middle)
        box, base = subject.extent(), object_.extent()
        assert gap(box, base) < 0
        assert box.top > top[1]
        assert subject.depth > object_.depth
        if predicate == "sitting on" and subject.kind == "person":
            assert box.bottom < top[1] + 0.1  # legs hang down
        else:
            assert box.bottom == pytest.approx(top[1], abs=0.12)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_under_something_is_below_its_top_and_within_it(seed: int) -> None:
    for rule, statement in of("under"):
        _, subject, object_ = compose(rule, statement, seed)
        box, roof = subject.extent(), object_.extent()
        assert box.top < roof.top
        assert roof.left < (box.left + box.right) / 2 < roof.right


@pytest.mark.parametrize("predicate", ["flying over", "jumping over"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_over_something_does_not_touch_it(predicate: str, seed: int) -> None:
    for rule, statement in of(predicate):
        _, subject, object_ = compose(rule, statement, seed)
        box, below = subject.extent(), object_.extent()
        assert box.bottom > below.top
        assert gap(box, below) < 0


@pytest.mark.parametrize("seed", range(5))
def test_what_is_behind_is_farther_and_partly_hidden(seed: int) -> None:
    for rule, statement in (*of("behind"), *of("in front of")):
        _, subject, object_ = compose(rule, statement, seed)
        far, near = (subject, object_) if statement[1] == "behind" else (object_, subject)
        assert far.depth < near.depth
        assert far.at[1] > near.at[1] + 0.1
        assert gap(far.extent(), near.extent()) < 0


@pytest.mark.parametrize("seed", range(5))
def test_the_chaser_runs_after_the_chased_and_neither_touches(seed: int) -> None:
    for rule, statement in of("chasing"):
        _, subject, object_ = compose(rule, statement, seed)
        assert subject.posture == "running"
        assert subject.facing == object_.facing == 1
        assert 0 < object_.extent().left - subject.extent().right < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_is_at_the_hand(seed: int) -> None:
    for rule, statement in of("holding"):
        _, holder, thing = compose(rule, statement, seed)
        hand, box = holder.hands[0], thing.extent()
        assert hand is not None
        assert box.left - 0.1 < hand[0] < box.right + 0.1
        assert box.bottom - 0.1 < hand[1] < box.top + 0.1


@pytest.mark.parametrize("predicate", ["looking at", "kicking", "pushing"])
def test_actors_face_what_they_act_on(predicate: str) -> None:
    for rule, statement in of(predicate):
        _, subject, object_ = compose(rule, statement, 2)
        box, other = subject.extent(), object_.extent()
        assert subject.facing == 1
        assert (other.left + other.right) / 2 > (box.left + box.right) / 2


def test_riders_are_above_the_middle_of_what_they_ride() -> None:
    for rule, statement in of("riding"):
        for seed in range(5):
            _, rider, mount = compose(rule, statement, seed)
            box, base = rider.extent(), mount.extent()
            assert base.left < (box.left + box.right) / 2 < base.right
            assert box.top > base.top - 0.2 * (base.top - base.bottom)


def test_a_leash_and_a_string_lead_from_the_hand_to_the_other_end() -> None:
    for predicate, extra in (("walking", 1), ("flying", 1)):
        for rule, statement in of(predicate):
            group, subject, object_ = compose(rule, statement, 3)
            if object_.kind == "bicycle":
                assert subject.hands == (object_.place((-0.26, 1.0)), object_.place((0.5, 1.12)))
                continue
            assert len(group.extras) == extra
            points = np.vstack([shape.points for _, shapes in group.extras for shape in shapes])
            hand, box = subject.hands[0], object_.extent()
            assert hand is not None
            assert np.linalg.norm(points - hand, axis=1).min() < 0.05
            inside = (points[:, 0] > box.left) & (points[:, 0] < box.right)
            assert (inside & (points[:, 1] > box.bottom) & (points[:, 1] < box.top)).any()
