"""Scenes: inside the image, of their split, every relation looks as it says; a box has the pixels
of its thing.
"""

from collections.abc import Callable, Collection
from itertools import combinations
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from sgpipe.miniworld import relations
from sgpipe.miniworld.actors import TOPS, Actor, Extent, Fact, SceneGroup, random_actor
from sgpipe.miniworld.dataset import render
from sgpipe.miniworld.relations import (
    COMPOSITIONAL,
    RULES,
    SPLITS,
    CompositionRule,
    Statement,
    closure,
    statements_of,
)
from sgpipe.miniworld.scene import (
    APART,
    GROUP_GAP,
    Scene,
    random_group,
    random_scene,
    relate,
    stays_apart,
)
from tests.values import values_of

CASES = [(rule, statement) for rule in RULES for statement in rule.statements]
# A leash or a string leads from one to the other.
TIED = [
    (rule, (subject, predicate, object_))
    for rule, (subject, predicate, object_) in CASES
    if predicate in ("walking", "flying") and object_ != "bicycle"
]


def compose(
    rule: CompositionRule, statement: Statement, seed: int
) -> tuple[SceneGroup, Actor, Actor]:
    rng = np.random.default_rng(seed)
    subject = random_actor(statement[0], rng)
    object_ = random_actor(statement[2], rng)
    group = SceneGroup()
    group.add(object_ if rule.first == "object" else subject)
    relate(group, rule, subject, object_, rng)
    return group, subject, object_


def gap(a: Extent, b: Extent) -> float:
    """The horizontal gap between two boxes; negative if they overlap."""
    return max(a.left, b.left) - min(a.right, b.right)


def middle(box: Extent) -> float:
    return (box.left + box.right) / 2


def is_within(point: float, low: float, high: float, margin: float = 0.0) -> bool:
    return low - margin < point < high + margin


def overlap_across(subject: Actor, object_: Actor) -> bool:
    return gap(subject.extent(), object_.extent()) < 0


def is_beside(subject: Actor, object_: Actor) -> bool:
    return 0 < gap(subject.extent(), object_.extent()) < APART / 2


def is_before(subject: Actor, object_: Actor) -> bool:
    """Whether the subject rises above the top of the object, in front of it."""
    top = object_.place(TOPS[object_.kind][0]).imag
    is_nearer = subject.depth > object_.depth
    return subject.extent().top > top and is_nearer and overlap_across(subject, object_)


def rests_on(subject: Actor, object_: Actor) -> bool:
    top = object_.place(TOPS[object_.kind][0]).imag
    bottom = subject.extent().bottom
    return bool(bottom == pytest.approx(top, abs=0.12)) and is_before(subject, object_)


def sits_on(subject: Actor, object_: Actor) -> bool:
    """The legs of a person hang down."""
    if subject.kind != "person":
        return rests_on(subject, object_)
    top = object_.place(TOPS[object_.kind][0]).imag
    return subject.extent().bottom < top + 0.1 and is_before(subject, object_)


def is_under(subject: Actor, object_: Actor) -> bool:
    box = subject.extent()
    other = object_.extent()
    return box.top < other.top and is_within(middle(box), other.left, other.right)


def is_over(subject: Actor, object_: Actor) -> bool:
    return subject.extent().bottom > object_.extent().top and overlap_across(subject, object_)


def is_behind(subject: Actor, object_: Actor) -> bool:
    is_farther = subject.depth < object_.depth
    is_higher = subject.at.imag > object_.at.imag + 0.1
    return is_farther and is_higher and overlap_across(subject, object_)


def is_in_front_of(subject: Actor, object_: Actor) -> bool:
    return is_behind(object_, subject)


def chases(subject: Actor, object_: Actor) -> bool:
    distance = object_.extent().left - subject.extent().right
    return subject.facing == object_.facing == 1 and 0 < distance < 0.5


def holds(subject: Actor, object_: Actor) -> bool:
    hand = subject.hands[0]
    other = object_.extent()
    assert hand is not None
    is_near = is_within(hand.real, other.left, other.right, margin=0.1)
    return is_near and is_within(hand.imag, other.bottom, other.top, margin=0.1)


def faces(subject: Actor, object_: Actor) -> bool:
    return subject.facing == 1 and middle(object_.extent()) > middle(subject.extent())


def rides(subject: Actor, object_: Actor) -> bool:
    box = subject.extent()
    other = object_.extent()
    height = other.top - other.bottom
    return is_within(middle(box), other.left, other.right) and box.top > other.top - 0.2 * height


LOOKS: dict[str, Callable[[Actor, Actor], bool]] = {
    "next to": is_beside,
    "on": rests_on,
    "standing on": rests_on,
    "lying on": rests_on,
    "sitting on": sits_on,
    "under": is_under,
    "flying over": is_over,
    "jumping over": is_over,
    "behind": is_behind,
    "in front of": is_in_front_of,
    "chasing": chases,
    "holding": holds,
    "looking at": faces,
    "kicking": faces,
    "pushing": faces,
    "riding": rides,
}


def looks_right(predicate: str, subject: Actor, object_: Actor) -> bool:
    """Whether two actors stand to each other as the predicate says, if it says where they are."""
    looks = LOOKS.get(predicate)
    return looks is None or looks(subject, object_)


@pytest.mark.parametrize("seed", range(5))
def test_every_relation_of_every_two_classes_looks_as_it_says(seed: int) -> None:
    for rule, statement in CASES:
        group, subject, object_ = compose(rule, statement, seed)
        assert group.bonds == [
            Fact(group.actors.index(subject), statement[1], group.actors.index(object_))
        ]
        assert group.extent().bottom > -0.25
        assert looks_right(statement[1], subject, object_), statement


def test_a_leash_and_a_string_lead_from_the_hand_to_the_other_end() -> None:
    for rule, statement in TIED:
        group, subject, object_ = compose(rule, statement, 3)
        shapes = [shape for _, shapes in group.extras for shape in shapes]
        points = np.concatenate(values_of(shapes, "points"))
        box = object_.extent()
        is_inside = (points.real > box.left) & (points.real < box.right)
        is_inside &= (points.imag > box.bottom) & (points.imag < box.top)
        assert abs(points - subject.hands[0]).min() < 0.05
        assert is_inside.any()


def pair(
    distance: float, kinds: tuple[str, str] = ("chair", "dog"), rise: float = 0.0
) -> SceneGroup:
    rng = np.random.default_rng(0)
    first, second = (random_actor(kind, rng) for kind in kinds)
    second.at = complex(first.extent().right + distance - second.extent().left, rise)
    return SceneGroup([first, second])


def test_only_related_things_may_be_near_above_or_below_each_other() -> None:
    near = pair(0.1)
    assert list(map(stays_apart, (near, pair(-0.3), pair(APART + 0.01)))) == [
        False,
        False,
        True,
    ]
    near.bonds.append(Fact(0, "next to", 1))
    assert stays_apart(near)
    bird = pair(-0.3, ("chair", "bird"), rise=2.0)
    assert stays_apart(bird)
    bird.actors[1].posture = "flying"
    assert not stays_apart(bird)
    umbrella = pair(-0.5, ("cat", "umbrella"))
    umbrella.actors[1].posture, umbrella.actors[1].at = "held", 1.5j
    assert not stays_apart(umbrella)


@pytest.mark.parametrize("split", ["train", COMPOSITIONAL])
def test_groups_are_connected_and_use_only_statements_of_their_split(split: str) -> None:
    allowed = statements_of(split)
    groups = [random_group(allowed, np.random.default_rng(seed)) for seed in range(150)]
    assert {len(group.actors) for group in groups} == {2, 3}
    for group in groups:
        check_group(group, allowed)


def check_group(group: SceneGroup, allowed: Collection[Statement]) -> None:
    kinds = values_of(group.actors, "kind")
    pairs = values_of(group.bonds, "subject", "object")
    related = set(map(frozenset, pairs))
    bonds = {(kinds[bond.subject], bond.predicate, kinds[bond.object]) for bond in group.bonds}
    assert bonds <= set(allowed)
    assert len(related) == len(group.bonds), "two relations of one pair"
    assert set().union(*related) == set(range(len(kinds)))
    every_pair = set(map(frozenset, combinations(range(len(kinds)), 2)))
    for first, second in every_pair - related:
        assert are_apart(group.actors[first].extent(), group.actors[second].extent())


def are_apart(a: Extent, b: Extent) -> bool:
    return gap(a, b) >= APART or max(a.bottom, b.bottom) >= min(a.top, b.top)


def stated(split: str) -> set[Statement]:
    return {statement for composed in statements_of(split) for statement in closure(composed)}


def test_compositional_statements_never_occur_in_train_or_val_but_their_words_do() -> None:
    every = {statement for _, statement in CASES}
    assert statements_of("train") == statements_of("val")
    assert not stated("train") & stated(COMPOSITIONAL)
    assert statements_of("train") | statements_of(COMPOSITIONAL) == every
    assert 0.1 < len(statements_of(COMPOSITIONAL)) / len(every) < 0.25
    words = {word for statement in stated("train") for word in statement}
    assert {word for statement in statements_of(COMPOSITIONAL) for word in statement} <= words


def test_a_converse_implies_the_relation_it_comes_from() -> None:
    for predicate, converse in relations.CONVERSE.items():
        assert ("dog", converse, "car") in closure(("car", predicate, "dog"))
        assert ("car", predicate, "dog") in closure(("dog", converse, "car"))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [random_scene(7, split, number) for split in SPLITS for number in range(120)]


def test_facts_relate_things_of_the_scene_and_belong_to_its_split(scenes: list[Scene]) -> None:
    for scene in scenes:
        ends = values_of(scene.facts, "subject", "object")
        composed = {scene.statement(fact) for fact in scene.facts if not fact.implied}
        assert all(first != second for first, second in ends)
        assert set().union(*ends) <= set(range(len(scene.things)))
        assert set(map(scene.statement, scene.facts)) <= stated(scene.split)
        assert composed <= statements_of(scene.split)
        assert len({fact[:3] for fact in scene.facts}) == len(scene.facts) > 0


def test_groups_are_inside_the_image_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        right = 0.0
        for placed in scene.placed:
            extent = placed.group.extent()
            sides = (
                (-extent.right, -extent.left) if placed.mirrored else (extent.left, extent.right)
            )
            left = placed.at[0] + sides[0] * placed.scale
            assert left >= (right + GROUP_GAP * placed.scale - 1e-6 if right else 0)
            right = placed.at[0] + sides[1] * placed.scale
            assert placed.at[1] - extent.top * placed.scale >= 0
            assert placed.at[1] - extent.bottom * placed.scale <= scene.height
            assert placed.at[1] > scene.horizon
        assert right <= scene.width


def test_scenes_are_varied(scenes: list[Scene]) -> None:
    train = [scene for scene in scenes if scene.split == "train"]
    facts = [fact for scene in train for fact in scene.facts]
    kinds = [values_of(scene.things, "kind") for scene in train]
    assert set(values_of(facts, "predicate")) == set(relations.PREDICATES)
    assert len(set(values_of(train, "width", "height"))) >= 5
    assert len(set().union(*kinds)) == 15
    assert set(values_of(train, "indoors")) == {True, False}
    assert any(len(set(names)) < len(names) for names in kinds)
    assert any(len(related_things(scene)) < len(scene.things) for scene in train)
    assert {values_of(scene.facts, "implied").count(False) for scene in train} >= {1, 2, 3}


def related_things(scene: Scene) -> set[int]:
    return set().union(*values_of(scene.facts, "subject", "object"))


def changed(with_thing: Image.Image, without: Image.Image) -> np.ndarray:
    """Rows and columns [pixels, 2] in which two images differ."""
    return np.argwhere((np.asarray(with_thing) != np.asarray(without)).any(2))


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_tight_around_visible_pixels(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = things = 0
    for number in range(8):
        scene = random_scene(11, split, number)
        rendered = render(scene)
        for index, (x, y, width, height) in enumerate(rendered.boxes.tolist()):
            with monkeypatch.context() as hidden:
                thing = scene.things[index]
                hidden.setattr(thing, "drawn", Mock(return_value=([], thing.extent())))
                pixels = changed(rendered.image, render(scene).image)
            (top, left), (bottom, right) = pixels.min(0), pixels.max(0) + 1
            # A pixel belongs to the box if any part of it does.
            assert (
                np.array([left, top, -right, -bottom]) >= np.floor([x, y, -x - width, -y - height])
            ).all()
            # Where a thing has the colour of what is behind it, no pixel changes.
            loose += max(left - x, top - y, x + width - right, y + height - bottom) > 2
            things += 1
    assert loose <= 0.05 * things


def test_boxes_are_in_the_image_and_things_mostly_visible() -> None:
    for split in SPLITS:
        for number in range(30):
            scene = random_scene(2, split, number)
            rendered = render(scene)
            assert rendered.image.size == (scene.width, scene.height)
            corners, sides = np.split(rendered.boxes, 2, axis=1)
            assert (corners >= 0).all()
            assert (corners + sides <= [scene.width, scene.height]).all()
            assert ((rendered.areas > 0) & (rendered.areas <= sides.prod(1))).all()
            assert (sides.prod(1) > 0.3 * full_areas(scene)).all()


def test_owners_are_the_things_visible_at_each_pixel() -> None:
    for number in range(8):
        scene = random_scene(4, "train", number)
        rendered = render(scene)
        assert rendered.owners.shape == (scene.height, scene.width)
        counts = np.bincount(rendered.owners.ravel(), minlength=len(scene.things) + 1)
        np.testing.assert_allclose(counts[1:], rendered.areas, rtol=0.2, atol=12)
        for index, (x, y, width, height) in enumerate(rendered.boxes):
            rows, columns = np.nonzero(rendered.owners == index + 1)
            assert ([rows.min(), columns.min()] >= np.floor([y, x])).all()
            assert ([rows.max(), columns.max()] < np.ceil([y + height, x + width])).all()


def full_areas(scene: Scene) -> np.ndarray:
    """Areas in pixels [things] of the boxes around things including hidden parts."""
    extents = [
        (*actor.extent(), placed.scale) for placed in scene.placed for actor in placed.group.actors
    ]
    return np.array(
        [(right - left) * (top - bottom) * scale**2 for left, bottom, right, top, scale in extents]
    )
