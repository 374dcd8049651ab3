import random

import numpy as np
import pytest
from PIL import Image, ImageChops

from sgpipe import viz as drawing
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.viz import TextPlacer, curve, draw_card, draw_relations, fit, font, overlap, shown
from tests.values import values_of


def record(*relations: Relation, size=(320, 240)) -> Record:
    boxes = [
        Box("person", 1, (20, 60, 60, 120)), Box("dog", 2, (180, 100, 80, 60)), Box("person", 1, (0, 0, 320, 240)),
        Box(NO_OBJECT, 0, (0, 0, 0, 0)), Box("cup", 3, (319, 239, 1, 1)),
    ]  # fmt: skip
    return Record("7", "drawn", "val", "7.png", *size, objects=boxes, relations=list(relations))


def changed(record: Record, *relations: Relation) -> tuple[int, int, int, int] | None:
    """Where these relations make the drawing differ from one without any."""
    before, after = (
        draw_relations(Image.new("RGB", (320, 240)), record, part, 480) for part in ([], relations)
    )
    assert after.size == before.size == (480, 360)
    return ImageChops.difference(before, after).getbbox()


def test_people_come_first_then_the_most_confident_and_only_so_many():
    relations = [
        Relation(0, 1, name, c)
        for name, c in (("a", 0.2), ("b", 0.9), ("c", None), ("d", 0.1), ("e", 0.5))
    ]
    assert values_of(shown(relations, 0.2, 10), "predicate") == ["c", "b", "e", "a"]
    assert values_of(shown(relations, 0.2, 2), "predicate") == ["c", "b"]
    stored = [Relation(0, 1, "a", float(np.float32(0.7)))]
    assert shown(stored, 0.7, 10) == stored


def test_a_link_joins_the_centres_in_the_colour_of_its_subject():
    scene = record(Relation(0, 1, "walking", 0.5))
    drawn = draw_relations(Image.new("RGB", (320, 240), "#808080"), scene, scene.relations, 640)
    wanted = tuple(int(drawing.colour_of(0)[at : at + 2], 16) for at in (1, 3, 5))
    assert drawn.getpixel((100, 240)) == pytest.approx(wanted, abs=12)


def test_odd_relations_are_drawn():
    for odd in (
        (0, 3, "smiling", 0.9),
        (1, 1, "looking at", None),
        (2, 0, "around", 0.3),
        (4, 1, "a long name " * 12),
    ):
        assert changed(record(), Relation(*odd)), odd  # the first has no object


def test_a_box_beyond_the_image_is_drawn_at_its_edge():
    for at, edge in ((900, 99), (-900, 0)):
        assert drawing.corners((at, at, 20, 20), 1, (100, 100)) == (edge,) * 4


def test_labels_stay_in_the_image_and_apart_while_there_is_room():
    rng = random.Random(3)
    room = TextPlacer(400, 300)
    spots = [[(rng.uniform(-50, 450), rng.uniform(-50, 350)) for _ in range(60)] for _ in range(12)]
    placed = [room.place((80, 20), choice) for choice in spots]
    assert all(
        left >= 0 and top >= 0 and right <= 400 and bottom <= 300
        for left, top, right, bottom in placed
    )
    pairs = [(a, b) for number, a in enumerate(placed) for b in placed[:number]]
    assert sum(overlap(a, b) for a, b in pairs) == 0


def test_long_names_are_cut_to_the_width():
    letters = font(13)
    assert fit("person", letters, 200) == "person"
    short = fit("an extraordinarily long category name", letters, 80)
    assert short.endswith("…")
    assert 40 < letters.getlength(short) <= 80
    assert fit("two\nlines", letters, 200) == "two lines"
    # what turns text round is not drawn
    assert fit("on \u202edeppils\x1b[0m", letters, 400) == "on deppils [0m"


def test_a_card_lists_every_relation_and_says_if_the_image_is_missing():
    scene = record(Relation(0, 1, "walking", 0.5), Relation(1, 0, "next to", None))
    one, two = (draw_card(None, scene, scene.relations[:count], 320) for count in (1, 2))
    assert two.height > one.height
    assert one.getpixel((5, 5)) == (201, 204, 209)
    # something is written on the grey
    assert len(one.crop((0, 0, 320, 240)).getcolors(1 << 17)) > 2
    for odd in ((0, 0), (2, 4000)):
        scene.width, scene.height = odd
        assert draw_card(None, scene, [], 320).height < 1200


def test_there_and_back_are_apart_and_heads_point_forward():
    left = (0.0, 0.0, 20.0, 20.0)
    right = (100.0, 0.0, 120.0, 20.0)
    forward = curve(left, right)
    back = curve(right, left)
    assert (forward[0], forward[-1]) == ((10, 10), (110, 10))
    assert forward[12][1] < 10 < back[12][1]
    tip, *wings = drawing.arrow_head(forward, 5)
    assert tip == forward[-1]
    assert all(x < tip[0] for x, _ in wings)
    assert curve(left, left, short=24)[0] == (10, 5)
