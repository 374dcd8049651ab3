"""Images and targets change together, by the given generator alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlip_model.settings import Augmentation
from rlip_model.training import annotations
from rlip_model.training.annotations import MISSING_OBJECT, SceneObject, SceneRelation, SceneTargets
from rlip_model.training.augment import augment, flipped, prepare, random_window

CHANNELS = ("red", "green", "blue")
RELATIONS = tuple(
    SceneRelation(*relation)
    for relation in (
        (0, 1, "left of"),
        (1, 2, "near"),
        (2, 0, "on"),
        (0, 1, "near"),
        (1, 3, "looking at"),
    )
)

SMALL = Augmentation(
    jitter=0,
    short_sides=(48, 56, 80),
    long_side=133,
    crop_short_sides=(40, 50, 60),
    crop_range=(38, 60),
)
Scene = tuple[Image.Image, SceneTargets]


@st.composite
def boxes(
    draw: st.DrawFn, width: int, height: int, smallest_side: int = 8
) -> tuple[int, int, int, int]:
    """x, y, width, height of a box within the image."""
    left = draw(st.integers(0, width - smallest_side))
    top = draw(st.integers(0, height - smallest_side))
    return (
        left,
        top,
        draw(st.integers(smallest_side, width - left)),
        draw(st.integers(smallest_side, height - top)),
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Image.Image, SceneTargets]:
    """An image of red, green and blue rectangles, and its targets, with a missing object last."""
    width = draw(st.integers(30, 200))
    height = draw(st.integers(30, 200))
    places = [draw(boxes(width, height)) for _ in CHANNELS]
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for channel, (x, y, wide, high) in enumerate(places):
        pixels[y : y + high, x : x + wide, channel] = 255
    names = (*CHANNELS, MISSING_OBJECT)
    objects = [
        SceneObject(*item) for item in zip(range(4), names, (*places, (0, 0, 0, 0)), strict=True)
    ]
    graph = annotations.SceneAnnotation("drawn", tuple(objects), RELATIONS)
    return Image.fromarray(pixels), annotations.label_scene(graph, width, height, 100)


def statements_of(targets: SceneTargets) -> set[tuple[str, str, str]]:
    """The relations in words."""
    names = [targets.object_texts[label] for label in targets.labels.tolist()]
    rows = targets.relations.tolist()
    return {
        (names[subject], targets.relation_texts[word], names[object_])
        for subject, object_, word in rows
    }


def seen(image: Image.Image, channel: int) -> tuple[float, ...] | None:
    """xyxy of what is bright in one colour channel, or None."""
    rows, columns = (np.array(image)[..., channel] > 127).nonzero()
    if not len(rows):
        return None
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@given(scenes(), st.integers(0, 2**32), st.booleans())
@settings(deadline=None)
def test_boxes_frame_what_is_seen_and_targets_stay_whole(
    scene: Scene, seed: int, flip: bool
) -> None:
    if flip:
        scene = flipped(*scene)
    image, targets = augment(*scene, SMALL, random.Random(seed))
    names = [targets.object_texts[label] for label in targets.labels.tolist()]
    for channel, name in enumerate(CHANNELS):
        visible = seen(image, channel)
        if name in names:
            box = targets.boxes[names.index(name)].tolist()
            if min(box[2] - box[0], box[3] - box[1]) > 2:
                assert visible == pytest.approx(box, abs=1.01)
        elif visible is not None:
            assert min(visible[2] - visible[0], visible[3] - visible[1]) <= 1
    assert statements_of(targets) == {
        row for row in statements_of(scene[1]) if {row[0], row[2]} <= {*names}
    }
    assert targets.missing.tolist() == [False] * (len(names) - 1) + [True]
    real = targets.boxes[:-1]
    assert ((real >= 0) & (real <= torch.tensor([*image.size, *image.size]))).all()
    assert (real[:, 2:] > real[:, :2]).all()
    assert (names[-1], targets.boxes[-1].tolist()) == (MISSING_OBJECT, [0, 0, 0, 0])


@given(scenes(), st.integers(0, 2**32), st.booleans())
@settings(deadline=None, max_examples=20)
def test_the_generator_decides_alone(scene: Scene, seed: int, flip: bool) -> None:
    options = replace(SMALL, jitter=0.4)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state()
    first = prepare(*scene, options, 80, 133, random.Random(seed), flip)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    torch.manual_seed(2)
    second = prepare(*scene, options, 80, 133, random.Random(seed), flip)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].boxes, second[1].boxes)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (50, 20), (3000, 3), (1, 5000)])
def test_windows_as_drawn_by_detr(size: tuple[int, int]) -> None:
    """Least and greatest size of the part, whatever the image; less only where the image is
    smaller.
    """
    rng = random.Random(0)
    options = Augmentation()
    for _ in range(100):
        (left, top, right, bottom), shape = random_window(*size, options, rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert 384 <= min(shape) <= max(shape) <= 600
