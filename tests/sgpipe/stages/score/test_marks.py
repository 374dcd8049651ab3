"""What a scorer sees: both boxes with their outlines, in a square or in the whole image."""

import pytest
from PIL import Image

from sgpipe.records import NO_OBJECT, Box, Relation
from sgpipe.stages.score.scorer import OBJECT_COLOUR, SUBJECT_COLOUR, marked_crop, marked_image

GREY = (100, 100, 100)
DOG, CAT = Box("dog", 0, (10, 10, 40, 40)), Box("cat", 0, (60, 20, 30, 50))
NOTHING = Box(NO_OBJECT, 0, (0, 0, 0, 0))
CHASING = Relation(0, 1, "chasing")


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (120, 90), GREY)


def colours(image: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(1 << 16)}


def test_the_subject_is_red_and_the_object_blue_where_they_are(image: Image.Image) -> None:
    marked = marked_image(image, [DOG, CAT], CHASING, 1000)
    assert marked.size == image.size
    assert marked.getpixel((10, 30)) == marked.getpixel((49, 30)) == SUBJECT_COLOUR
    assert marked.getpixel((60, 40)) == marked.getpixel((70, 69)) == OBJECT_COLOUR
    assert marked.getpixel((30, 30)) == marked.getpixel((70, 40)) == marked.getpixel((55, 30)) == GREY
    assert colours(image) == {GREY}, "the image itself is not drawn on"
    swapped = marked_image(image, [DOG, CAT], Relation(1, 0, "chasing"), 1000)
    assert (swapped.getpixel((10, 30)), swapped.getpixel((60, 40))) == (OBJECT_COLOUR, SUBJECT_COLOUR)


def test_a_crop_is_square_and_shows_both_boxes_with_a_margin(image: Image.Image) -> None:
    crop = marked_crop(image, [DOG, CAT], CHASING, 232)
    assert crop.size == (232, 232)
    scale, left, top = 232 / (80 * 1.16), 50 - 40 * 1.16, 40 - 40 * 1.16  # around (10, 10) to (90, 70)
    assert crop.getpixel((round((10.5 - left) * scale), round((30 - top) * scale))) == SUBJECT_COLOUR
    assert crop.getpixel((round((60.5 - left) * scale), round((40 - top) * scale))) == OBJECT_COLOUR
    assert crop.getpixel((round((30 - left) * scale), round((30 - top) * scale))) == GREY
    assert crop.getpixel((116, 2)) != GREY, "beyond the image"


def test_a_relation_without_an_object_has_one_outline(image: Image.Image) -> None:
    for marked in (marked_crop(image, [DOG, NOTHING], CHASING, 64), marked_image(image, [DOG, NOTHING], CHASING, 64)):
        assert SUBJECT_COLOUR in colours(marked)
        assert OBJECT_COLOUR not in colours(marked)


@pytest.mark.parametrize("box", [(10, 10, 0, 40), (10, 10, 30, 0), (200, 10, 30, 30), (-30, 10, 30, 30)])
def test_a_box_without_area_in_the_image_is_not_shown(image: Image.Image, box: tuple[float, ...]) -> None:
    for objects in ([DOG, Box("cat", 0, box)], [Box("cat", 0, box), DOG]):
        assert marked_crop(image, objects, CHASING, 64) is None
        assert marked_image(image, objects, CHASING, 64) is None


@pytest.mark.parametrize("box", [(0, 0, 0.01, 0.01), (119.9, 89.9, 5, 5), (-10, -10, 500, 500)])
def test_boxes_of_any_size_and_place_can_be_shown(image: Image.Image, box: tuple[float, ...]) -> None:
    for objects in ([DOG, Box("cat", 0, box)], [Box("cat", 0, box), Box("cat", 0, box)]):
        assert marked_crop(image, objects, CHASING, 64).size == (64, 64)
        assert marked_image(image, objects, CHASING, 64).size == (64, 48)
