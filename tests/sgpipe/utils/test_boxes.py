"""Boxes, and which data looks like what it is taken for: captions and boxes of COCO and of
V-COCO.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou as torch_iou

from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.utils.boxes import ClassFinder, class_matrix, clip_box, clip_xywh, iou, match_captions

REAL = {
    "COCO": ("coco_mini/instances_val2017.json", "coco_mini/captions_val2017.json"),
    "V-COCO": ("vcoco_captions/instances.json", "vcoco_captions/captions.json"),
}


def matrices(instances: Path, captions: Path) -> tuple[np.ndarray, np.ndarray]:
    """The classes that captions name, and those with boxes, `[images, classes]`."""
    content = json.loads(instances.read_text())
    names = {
        entry["id"]: entry["name"]
        for entry in sorted(content["categories"], key=lambda entry: entry["id"])
    }
    synonyms = packaged_synonyms("coco")
    finder = ClassFinder({name: synonyms.get(name, ()) for name in names.values()})
    named = {image["id"]: set() for image in content["images"]}
    boxed = {image["id"]: set() for image in content["images"]}
    for caption in json.loads(captions.read_text())["annotations"]:
        if caption["image_id"] in named:
            named[caption["image_id"]] |= finder(caption["caption"])
    for box in content["annotations"]:
        boxed[box["image_id"]].add(names[box["category_id"]])
    return tuple(class_matrix(entry.values(), list(names.values())) for entry in (named, boxed))


@pytest.mark.parametrize("dataset", REAL)
def test_human_captions_agree_with_their_boxes_and_with_no_others_and_a_few_are_never_called_wrong(
    oracle, dataset
):
    named, boxed = matrices(*(oracle / "data" / path for path in REAL[dataset]))
    right = match_captions(named, boxed)
    assert right.is_real
    assert right.gain > 0.5
    rng = np.random.default_rng(0)
    wrong = [
        *(np.roll(boxed, 1, axis) for axis in (0, 1)),
        *(rng.permutation(boxed) for _ in range(5)),
    ]
    assert all(match_captions(named, shuffled).is_chance for shuffled in wrong)
    for images in (1, 2, 3, 5, 8, 12):
        for _ in range(100):
            chosen = rng.choice(len(named), images, replace=False)
            assert not match_captions(named[chosen], boxed[chosen]).is_chance


@given(st.integers(0, 2**32 - 1))
def test_unrelated_captions_match_by_chance_on_average(seed):
    rng = np.random.default_rng(seed)
    match = match_captions(rng.random((200, 10)) < 0.2, rng.random((200, 10)) < 0.4)
    assert abs(match.gain) < 6 * match.error
    assert abs(match.same - match.other) < 0.2


def test_the_longest_phrase_names_the_class():
    phrases = {
        "dog": ("puppy",),
        "hot dog": (),
        "person": ("man", "!man of war"),
        "knife": (),
        "cell phone": (),
    }
    finder = ClassFinder(phrases)
    assert finder("Two men eat hot dogs with knives.") == {"person", "hot dog", "knife"}
    assert finder("A man-of-war; PUPPIES by cellphones") == {"dog", "cell phone"}
    assert finder("") == set()


def test_iou_equals_torchvisions() -> None:
    corners = np.random.default_rng(0).random((2, 200, 2, 2))
    first, second = np.concatenate((corners.min(2), corners.max(2)), axis=2)
    expected = torch_iou(torch.from_numpy(first), torch.from_numpy(second)).diagonal()
    assert np.allclose(iou(first, second), expected.numpy())


def test_boxes_are_clipped_to_their_own_images() -> None:
    boxes = np.array(
        [[-3.0, 0, 10, 10], [0, 0, 20, 10], [30, 0, 5, 5], [1, 1, 0, 5], [np.nan, 0, 1, 1]]
    )
    sizes = np.array([[20.0, 10], [15, 10], [20, 10], [20, 10], [20, 10]])
    clipped, inside, overhang = clip_xywh(boxes, sizes)
    assert inside.tolist() == [True, True, False, False, False]
    assert clipped[:2].tolist() == [[0, 0, 7, 10], [0, 0, 15, 10]]
    assert overhang[:2].tolist() == [3, 5]


def test_a_single_box_is_clipped_as_many_are() -> None:
    rng = random.Random(0)
    odd = (0.0, -0.0, 640.0, math.nan, math.inf, -math.inf, 1e308, -1e308)

    def number() -> float:
        return rng.choice(odd) if rng.random() < 0.1 else rng.uniform(-100, 700)

    boxes = [(number(), number(), number(), number()) for _ in range(3000)]
    # thinner than the rounding at its position: 1 + 6e-230 is 1
    boxes.append((0.0, 1.0, 1.0, 6e-230))
    boxes = [
        box for box in boxes if not any(math.isinf(box[axis] + box[axis + 2]) for axis in (0, 1))
    ]
    clipped, are_inside, _ = clip_xywh(np.array(boxes), np.array([[640.0, 480.0]]))
    for box, expected, inside in zip(boxes, clipped.tolist(), are_inside, strict=True):
        assert clip_box(box, 640, 480) == (tuple(expected) if inside else None)
    assert 300 < are_inside.sum() < len(boxes) - 300
    # 0.1 + 0.3 - 0.1 is not 0.3
    assert clip_box((0.1, 0.2, 0.3, 0.4), 640, 480) == (
        0.1,
        0.2,
        0.3,
        0.4,
    )
