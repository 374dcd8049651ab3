from dataclasses import dataclass

import numpy as np
import pytest

from sgpipe.records import Box, Record
from sgpipe.stages.caption.stage import noise_key, regions


def record(*boxes, crowd=(), size=(100, 80)):
    objects = [Box("thing", 1, box, index in crowd) for index, box in enumerate(boxes)]
    return Record("1", "coco", "val", "1.jpg", *size, objects=objects)


def pairs(found):
    return [region.boxes for region in found if region.scope == "pair"]


def test_regions_are_ordered_by_scope_and_box():
    found, _ = regions(record((0, 0, 10, 10), (20, 20, 30, 30), (5, 5, 9, 9)), ("image", "box", "pair"), 100)
    assert [(region.scope, region.boxes) for region in found] == [
        ("image", ()),
        ("box", (0,)),
        ("box", (1,)),
        ("box", (2,)),
        ("pair", (0, 1)),
        ("pair", (0, 2)),
        ("pair", (1, 2)),
    ]
    assert found[0].window is None


def test_windows_cover_the_boxes_and_stay_in_the_image():
    found, _ = regions(record((0.4, 1.2, 10.5, 10.3), (88.5, 70.1, 20, 20)), ("box", "pair"), 100)
    assert [region.window for region in found] == [(0, 1, 11, 12), (88, 70, 100, 80), (0, 1, 100, 80)]


@pytest.mark.parametrize("box", [(3, 4, 0, 0), (99.9, 79.9, 0.05, 0.05), (100, 80, 5, 5), (-9, -9, 4, 4)])
def test_degenerate_boxes_still_have_a_pixel(box):
    left, top, right, bottom = regions(record(box), ("box",), 100)[0][0].window
    assert 0 <= left < right <= 100
    assert 0 <= top < bottom <= 80


def test_pairs_agree_with_a_plain_count_on_random_boxes():
    rng = np.random.default_rng(0)
    boxes = [(*rng.uniform(0, 60, 2), *rng.uniform(1, 30, 2)) for _ in range(12)]

    @dataclass(order=True)
    class Rank:
        gap: float
        overlap: float
        boxes: tuple

    ranks = []
    for i, (x, y, w, h) in enumerate(boxes):
        for j in range(i + 1, len(boxes)):
            u, v, a, b = boxes[j]
            wide, high = min(x + w, u + a) - max(x, u), min(y + h, v + b) - max(y, v)
            gap = (max(-wide, 0) ** 2 + max(-high, 0) ** 2) ** 0.5
            ranks.append(Rank(gap, -max(wide, 0) * max(high, 0), (i, j)))
    for most in (1, 7, 30, 66, 500):
        expected = sorted(rank.boxes for rank in sorted(ranks)[:most])
        found, beyond = regions(record(*boxes), ("pair",), most)
        assert (pairs(found), beyond) == (expected, 66 - len(expected))


def test_which_regions_are_captioned_and_how_does_not_depend_on_the_order_of_boxes():
    boxes = [(10.0 * (n % 4), 20.0 * (n // 4), 8.0, 8.0) for n in range(8)]  # of equal size, at equal distances

    def noise(boxes):
        made = record(*boxes)
        found, beyond = regions(made, ("box", "pair"), 5)
        return sorted((region.window, noise_key(3, made, region.scope, region.boxes)) for region in found), beyond

    first, beyond = noise(boxes)
    assert (len(first), beyond) == (10, 3 + 23)
    assert noise(boxes[::-1]) == noise(boxes[3:] + boxes[:3]) == (first, beyond)
