"""Scene graphs to targets; left and right in texts of flipped images."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.training import annotations
from rlip_model.training.annotations import (
    MISSING_OBJECT,
    SceneAnnotation,
    SceneObject,
    SceneTargets,
    label_scene,
)
from rlip_model.training.flip_text import flip_text
from tests.parity.misc import scene_annotation
from tests.values import values_of

WIDTH = 100
HEIGHT = 50

CHANGES: dict[str, Callable[[SceneTargets], SceneTargets]] = {
    "label_scene": lambda scene: scene, "flipped": lambda scene: scene.flipped(WIDTH),
    "shifted": lambda scene: scene.shifted(-5, 3), "resized": lambda scene: scene.resized(2, 0.5),
    "clamped": lambda scene: scene.clamped(50, 40),
    "keep": lambda scene: scene.keep(torch.tensor([True, False, True, True])),
}  # fmt: skip

SWAPPED = """
left = right; left of = right of; to the left of = to the right of; left to = right to; on left = on right;
on left side of = on right side of; on far left has = on far right has; left hand = right hand;
on the left in front of = on the right in front of; on left wearing = on right wearing; is left of = is right of;
upper left corner of = upper right corner of; turning left at = turning right at; facing left in = facing right in;
has left hand on = has right hand on; right front wheel = left front wheel; man's left shoe = man's right shoe;
Left-hand glove = Right-hand glove; LEFT_OF = RIGHT_OF; leftmost  zebra = rightmost  zebra;
between left and right = between right and left
"""
UNCHANGED = """
right next to; standing right next to; right behind; right above; right in front of; right on edge of; ends right by;
left behind; left out on; left on; left a; left by; has left; has left the; has just left; brightly lit; copyright;
missing objects
"""

WORDS = sorted({*f"{SWAPPED} {UNCHANGED}".replace(";", "").replace("=", "").split()})


def annotation(**changes: object) -> dict[str, Any]:
    objects = [
        {"object_id": 7, "names": "man", "x": 10, "y": 10, "w": 20, "h": 30},
        {"object_id": 8, "names": "horse", "x": 40, "y": 20, "w": 80, "h": 20},
        {"object_id": 9, "names": "man", "x": 0, "y": 0, "w": 10, "h": 10},
    ]
    relations = [
        {"subject_id": 7, "object_id": 8, "predicate": "riding"},
        {"subject_id": 9, "object_id": 8, "predicate": "near", "confidence": 0.4},
        {"subject_id": 7, "object_id": 8, "predicate": "on", "confidence": 0.2},
        {"subject_id": 7, "object_id": 7, "predicate": "near", "confidence": 0.19},
    ]
    return {"image_id": 5, "objects": objects, "relationships": relations, **changes}


def graph(**changes: object) -> SceneAnnotation:
    return scene_annotation(annotation(**changes))


def test_objects_outside_the_image_are_dropped() -> None:
    """Cut off they would have no area, and one of zeros would look like a missing object."""
    moved = annotation()
    moved["objects"][2].update(x=-50, y=-50)
    scene = label_scene(scene_annotation(moved), WIDTH, HEIGHT, 100)
    assert scene.boxes.shape == (2, 4)
    assert scene.relations[:, :2].max() == 1


def test_wrong_annotations_are_named() -> None:
    lost = [{"subject_id": 7, "object_id": 99, "predicate": "on"}]
    with pytest.raises(
        annotations.AnnotationError, match="image 5: a relation refers to unknown object 99"
    ):
        label_scene(graph(relationships=lost), WIDTH, HEIGHT, 100)


def test_flipped_images_speak_of_other_sides() -> None:
    objects = (SceneObject(0, "left hand", (0, 0, 9, 9)), SceneObject(1, "cup", (9, 0, 9, 9)))
    relations = (
        annotations.SceneRelation(1, 0, "to the right of", 0.5),
        annotations.SceneRelation(0, 1, "right next to"),
    )
    before = SceneAnnotation(3, objects, relations)
    flipped = before.with_flipped_texts()
    assert values_of(flipped.objects, "name") == ["right hand", "cup"]
    assert values_of(flipped.relations, "predicate") == ["to the left of", "right next to"]
    assert values_of(flipped.objects, "box") == values_of(objects, "box")
    assert flipped.relations[0].confidence == 0.5
    assert flipped.with_flipped_texts() == before


def with_missing_object() -> SceneTargets:
    image = annotation()
    image["objects"].append(
        {"object_id": 1, "names": MISSING_OBJECT, "x": 0, "y": 0, "w": 0, "h": 0}
    )
    image["relationships"].append({"subject_id": 9, "object_id": 1, "predicate": "walk"})
    return label_scene(scene_annotation(image), WIDTH, HEIGHT, 100)


@pytest.mark.parametrize("change", CHANGES)
def test_missing_objects_stay_missing(change: str) -> None:
    scene = CHANGES[change](with_missing_object())
    assert scene.missing.tolist() == [False] * (len(scene.boxes) - 1) + [True]
    labelled = scene.labelled_triplets(WIDTH, HEIGHT)
    walking = labelled.triplets.relation_labels[:, labelled.relation_texts.index("walk")] == 1
    assert labelled.triplets.object_boxes[walking].tolist() == [[0, 0, 0, 0]]
    assert (labelled.triplets.object_boxes[~walking, 2:] > 0).all()
    assert (labelled.triplets.subject_boxes[:, 2:] > 0).all()
    assert [labelled.object_texts[label] for label in labelled.triplets.object_labels[walking]] == [
        MISSING_OBJECT
    ]


def test_sides_are_swapped_both_ways_and_others_stay() -> None:
    pairs = [pair.strip().split(" = ") for pair in SWAPPED.split(";")]
    assert [[flip_text(right), flip_text(left)] for left, right in pairs] == pairs
    unchanged = [text.strip() for text in UNCHANGED.split(";")]
    assert list(map(flip_text, unchanged)) == unchanged


@given(st.lists(st.sampled_from([*WORDS, "right", "Left"])).map(" ".join) | st.text())
def test_the_mirror_of_the_mirror_is_the_text(text: str) -> None:
    assert flip_text(flip_text(text)) == text
