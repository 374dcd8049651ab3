import math
from collections import Counter

import pytest

from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import clip_objects


def record(*boxes, relations=()) -> Record:
    objects = [Box("dog", 1, box) for box in boxes]
    return Record("1", "d", "val", "1.jpg", 100, 50, objects=objects, relations=[Relation(*r) for r in relations])


@pytest.mark.parametrize(
    ("box", "clipped", "problem"),
    [
        ((10.1, 10.3, 20.7, 20.2), (10.1, 10.3, 20.7, 20.2), None),
        ((-5, 10, 20, 20), (0, 10, 15, 20), "clipped"),
        ((90, 40, 20, 20), (90, 40, 10, 10), "clipped"),
        ((90, 40, 10.001, 10), (90, 40, 10, 10), None),
        ((10, 10, 0, 20), None, "degenerate"),
        ((10, 10, 5, -1), None, "degenerate"),
        ((100, 0, 5, 5), None, "degenerate"),
        ((math.nan, 0, 5, 5), None, "degenerate"),
        ((0, 0, math.inf, 5), None, "degenerate"),
    ],
)
def test_boxes_end_where_the_image_does(box, clipped, problem):
    image, problems = record(box), Counter()
    clip_objects(image, problems)
    assert [found.bbox for found in image.objects] == ([clipped] if clipped else [])
    assert +problems == ({problem: 1} if problem else {})


def test_relations_follow_their_boxes():
    image = record(
        (0, 0, 5, 5), (200, 0, 5, 5), (1, 1, 5, 5), relations=[(0, 1, "a"), (0, 2, "b"), (1, 2, "c"), (2, 2, "d")]
    )
    problems: Counter[str] = Counter()
    clip_objects(image, problems)
    assert image.relations == [Relation(0, 1, "b"), Relation(1, 1, "d")]
    assert problems == {"degenerate": 1, "relations_of_dropped_boxes": 2}


def test_the_object_that_is_not_there_stays():
    image = record((0, 0, 5, 5), relations=[(0, 1, "smile")])
    image.objects.append(Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0)))
    clip_objects(image, Counter())
    assert image.objects[1].is_nothing
    assert image.relations == [Relation(0, 1, "smile")]
    assert not image.objects[0].is_nothing
