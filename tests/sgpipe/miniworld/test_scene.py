"""Scenes: inside the image, of their split, every relation looks as it says; a box has the pixels
of its thing.
"""

from collections import Counter
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

CASES = [(rule, statement) for rule in RULES for statement in rule.statements]


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


def looks_right(predicate: str, subject: Actor, object_: Actor) -> bool:
    """Whether two actors stand to each other as the predicate says."""
    box = subject.extent()
    other = object_.extent()
    middle = (box.left + box.right) / 2
    if predicate == "next to":
        return 0 < gap(box, other) < APART / 2
    if predicate in ("on", "sitting on", "standing on", "lying on"):
        top = object_.place(TOPS[object_.kind][0]).imag
        legs_hang = predicate == "sitting on" and subject.kind == "person"
        resting = (
            box.bottom < top + 0.1 if legs_hang else box.bottom == pytest.approx(top, abs=0.12)
        )
        return (
            bool(resting)
            and gap(box, other) < 0
            and box.top > top
            and subject.depth > object_.depth
        )
    if predicate == "under":
        return box.top < other.top and other.left < middle < other.right
    if predicate in ("flying over", "jumping over"):
        return box.bottom > other.top and gap(box, other) < 0
    if predicate in ("behind", "in front of"):
        far, near = (subject, object_) if predicate == "behind" else (object_, subject)
        return far.depth < near.depth and far.at.imag > near.at.imag + 0.1 and gap(box, other) < 0
    if predicate == "chasing":
        return subject.facing == object_.facing == 1 and 0 < other.left - box.right < 0.5
    if predicate == "holding":
        hand = subject.hands[0] or complex(np.inf, np.inf)
        return (
            other.left - 0.1 < hand.real < other.right + 0.1
            and other.bottom - 0.1 < hand.imag < other.top + 0.1
        )
    if predicate in ("looking at", "kicking", "pushing"):
        return subject.facing == 1 and (other.left + other.right) / 2 > middle
    if predicate == "riding":
        return other.left < middle < other.right and box.top > other.top - 0.2 * (
            other.top - other.bottom
        )
    return True


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
    for rule, statement in CASES:
        if statement[1] in ("walking", "flying") and statement[2] != "bicycle":
            group, subject, object_ = compose(rule, statement, 3)
            points = np.concatenate(
                [shape.points for _, shapes in group.extras for shape in shapes]
            )
            hand = subject.hands[0]
            box = object_.extent()
            assert abs(points - hand).min() < 0.05
            inside = (points.real > box.left) & (points.real < box.right)
            assert (inside & (points.imag > box.bottom) & (points.imag < box.top)).any()


def pair(
    distance: float, kinds: tuple[str, str] = ("chair", "dog"), rise: float = 0.0
) -> SceneGroup:
    rng = np.random.default_rng(0)
    first, second = (random_actor(kind, rng) for kind in kinds)
    second.at = complex(first.extent().right + distance - second.extent().left, rise)
    return SceneGroup([first, second])


def test_only_related_things_may_be_near_above_or_below_each_other() -> None:
    near = pair(0.1)
    assert [stays_apart(placed) for placed in (near, pair(-0.3), pair(APART + 0.01))] == [
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
    sizes = set()
    for seed in range(150):
        group = random_group(allowed, np.random.default_rng(seed))
        sizes.add(len(group.actors))
        for subject, predicate, object_, _ in group.bonds:
            assert (group.actors[subject].kind, predicate, group.actors[object_].kind) in allowed
        related = {frozenset((bond.subject, bond.object)) for bond in group.bonds}
        assert len(related) == len(group.bonds), "two relations of one pair"
        assert set().union(*related) == set(range(len(group.actors)))
        for (i, one), (j, other) in combinations(enumerate(group.actors), 2):
            if frozenset((i, j)) not in related:
                a = one.extent()
                b = other.extent()
                assert gap(a, b) >= APART or max(a.bottom, b.bottom) >= min(a.top, b.top)
    assert sizes == {2, 3}


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
        allowed = stated(scene.split)
        assert scene.facts
        for fact in scene.facts:
            assert (
                0
                <= min(fact.subject, fact.object)
                < max(fact.subject, fact.object)
                < len(scene.things)
            )
            assert scene.statement(fact) in allowed
        composed = {scene.statement(fact) for fact in scene.facts if not fact.implied}
        assert composed <= statements_of(scene.split)
        assert len({fact[:3] for fact in scene.facts}) == len(scene.facts)


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
    predicates = Counter(fact.predicate for scene in train for fact in scene.facts)
    assert set(predicates) == set(relations.PREDICATES)
    assert len({(scene.width, scene.height) for scene in train}) >= 5
    assert len({thing.kind for scene in train for thing in scene.things}) == 15
    assert {scene.indoors for scene in train} == {True, False}
    assert any(len({thing.kind for thing in scene.things}) < len(scene.things) for scene in train)
    related = [
        {end for fact in scene.facts for end in (fact.subject, fact.object)} for scene in train
    ]
    assert any(len(ends) < len(scene.things) for ends, scene in zip(related, train, strict=True))
    assert {sum(not fact.implied for fact in scene.facts) for scene in train} >= {1, 2, 3}


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
