"""Images and boxes: a box contains exactly the pixels that its thing changes."""

import numpy as np
import pytest
from PIL import Image

from sgpipe.miniworld.relations import SPLITS
from sgpipe.miniworld.render import render
from sgpipe.miniworld.scene import Scene, random_scene


def changed(with_thing: Image.Image, without: Image.Image) -> np.ndarray:
    """Rows and columns [pixels, 2] in which two images differ."""
    return np.argwhere((np.asarray(with_thing) != np.asarray(without)).any(2))


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_are_tight_around_visible_pixels(split: str) -> None:
    loose = things = 0
    for number in range(8):
        scene = random_scene(11, split, number)
        rendered = render(scene)
        for index, (x, y, width, height) in enumerate(rendered.boxes.tolist()):
            pixels = changed(rendered.image, render(scene, hidden={index}).image)
            (top, left), (bottom, right) = pixels.min(0), pixels.max(0) + 1
            # A pixel belongs to the box if any part of it does.
            assert (np.array([left, top, -right, -bottom]) >= np.floor([x, y, -x - width, -y - height])).all()
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
    extents = [(*actor.extent(), placed.scale) for placed in scene.placed for actor in placed.group.actors]
    return np.array([(right - left) * (top - bottom) * scale**2 for left, bottom, right, top, scale in extents])
