"""Which data looks like what it is taken for: captions and boxes of the miniworld, of COCO and of V-COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.utils.plausibility import ClassFinder, best_form, class_matrix, match_captions

REAL = {
    "COCO": ("coco_mini/instances_val2017.json", "coco_mini/captions_val2017.json"),
    "V-COCO": ("vcoco_captions/instances.json", "vcoco_captions/captions.json"),
}


def matrices(instances: Path, captions: Path) -> tuple[np.ndarray, np.ndarray]:
    """The classes that captions name, and those with boxes, `[images, classes]`."""
    content = json.loads(instances.read_text())
    names = {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: each["id"])}
    synonyms = packaged_synonyms("coco")
    finder = ClassFinder({name: synonyms.get(name, ()) for name in names.values()})
    named = {image["id"]: set() for image in content["images"]}
    boxed = {image["id"]: set() for image in content["images"]}
    for caption in json.loads(captions.read_text())["annotations"]:
        if caption["image_id"] in named:
            named[caption["image_id"]] |= finder(caption["caption"])
    for box in content["annotations"]:
        boxed[box["image_id"]].add(names[box["category_id"]])
    return tuple(class_matrix(each.values(), list(names.values())) for each in (named, boxed))


@pytest.mark.parametrize("dataset", REAL)
def test_human_captions_agree_with_their_boxes_and_with_no_others(oracle, dataset):
    named, boxed = matrices(*(oracle / "data" / path for path in REAL[dataset]))
    right = match_captions(named, boxed)
    assert right.is_real
    assert right.gain > 0.5
    rng = np.random.default_rng(0)
    wrong = [*(np.roll(boxed, 1, axis) for axis in (0, 1)), *(rng.permutation(boxed) for _ in range(5))]
    assert all(match_captions(named, each).is_chance for each in wrong)


@pytest.mark.parametrize("dataset", REAL)
def test_a_few_right_images_are_never_called_wrong(oracle, dataset):
    named, boxed = matrices(*(oracle / "data" / path for path in REAL[dataset]))
    rng = np.random.default_rng(0)
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
    phrases = {"dog": ("puppy",), "hot dog": (), "person": ("man", "!man of war"), "knife": (), "cell phone": ()}
    finder = ClassFinder(phrases)
    assert finder("Two men eat hot dogs with knives.") == {"person", "hot dog", "knife"}
    assert finder("A man-of-war; PUPPIES by cellphones") == {"dog", "cell phone"}
    assert finder("") == set()


@given(st.sampled_from(["xyxy", "cxcywh"]), st.integers(0, 2**32 - 1))
def test_many_boxes_show_their_form(form, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 1000, (200, 2)).astype(float)
    low, high = (np.sort(rng.random((2, 200, 2)), axis=0) * sizes).reshape(2, 200, 2)
    boxes = {"xyxy": np.hstack([low, high]), "cxcywh": np.hstack([(low + high) / 2, high - low])}[form]
    assert best_form(boxes, sizes) == (form, 1.0)
    assert best_form(boxes / np.tile(sizes, 2), sizes) == (f"{form}n", 1.0)
