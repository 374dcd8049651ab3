"""Scenes are deterministic and inside the image, with groups apart."""

from collections import Counter

import pytest

from sgpipe.miniworld.relations import PREDICATES, SPLITS, closure, statements_of
from sgpipe.miniworld.scene import GROUP_GAP, Scene, random_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [random_scene(7, split, number) for split in SPLITS for number in range(120)]


def signature(scene: Scene) -> tuple[object, ...]:
    return (
        scene.facts,
        tuple((thing.kind, thing.look, thing.at, thing.posture) for thing in scene.things),
        tuple((placed.at, placed.scale, placed.mirrored) for placed in scene.placed),
        (scene.width, scene.height, scene.horizon, scene.indoors, scene.background_seed),
    )


def test_a_scene_depends_on_seed_split_and_number_only() -> None:
    backwards = [signature(random_scene(3, "train", number)) for number in (4, 3, 2)]
    forwards = [signature(random_scene(3, "train", number)) for number in (2, 3, 4)]
    assert backwards[::-1] == forwards
    others = [random_scene(4, "train", 2), random_scene(3, "val", 2), random_scene(3, "train", 5)]
    assert all(signature(other) != forwards[0] for other in others)


def test_facts_relate_things_of_the_scene_and_belong_to_its_split(scenes: list[Scene]) -> None:
    for scene in scenes:
        allowed = {statement for composed in statements_of(scene.split) for statement in closure(composed)}
        assert scene.facts
        for fact in scene.facts:
            assert fact.subject != fact.object
            assert 0 <= min(fact.subject, fact.object) <= max(fact.subject, fact.object) < len(scene.things)
            assert scene.statement(fact) in allowed
        composed = {scene.statement(fact) for fact in scene.facts if not fact.implied}
        assert composed <= statements_of(scene.split)
        triples = [(fact.subject, fact.predicate, fact.object) for fact in scene.facts]
        assert len(set(triples)) == len(triples)


def test_groups_are_inside_the_image_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        right = 0.0
        for placed in scene.placed:
            extent = placed.group.extent()
            sides = (-extent.right, -extent.left) if placed.mirrored else (extent.left, extent.right)
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
    assert set(predicates) == set(PREDICATES)
    assert len({(scene.width, scene.height) for scene in train}) >= 5
    assert len({thing.kind for scene in train for thing in scene.things}) == 15
    assert {scene.indoors for scene in train} == {True, False}
    assert any(len({thing.kind for thing in scene.things}) < len(scene.things) for scene in train)
    related = [{end for fact in scene.facts for end in (fact.subject, fact.object)} for scene in train]
    assert any(len(ends) < len(scene.things) for ends, scene in zip(related, train, strict=True))
    assert {sum(not fact.implied for fact in scene.facts) for scene in train} >= {1, 2, 3}
