"""What a judge sees of a pair of boxes: the subject in a red and the object in a blue outline."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from sgpipe.records import Box, Relation

SUBJECT_COLOUR, OBJECT_COLOUR = (230, 30, 30), (30, 80, 255)
_SURROUNDING = (124, 116, 104)  # the mean colour of ImageNet, where a square reaches beyond the image
_MARGIN = 0.08  # around both boxes, as a share of the longer side

Corners = tuple[float, float, float, float]  # pixel xyxy


def marked_crop(image: Image.Image, objects: Sequence[Box], relation: Relation, side: int) -> Image.Image | None:
    """A square of `side` pixels around both boxes, with their outlines; None if a box has no area in the image."""
    boxes = visible_boxes(image, objects, relation)
    if boxes is None:
        return None
    left, top, right, bottom = _around(boxes)
    length = max(right - left, bottom - top, 1.0) * (1 + 2 * _MARGIN)
    x, y, scale = (left + right - length) / 2, (top + bottom - length) / 2, side / length
    square = Image.new("RGB", (side, side), _SURROUNDING)
    shown = (max(x, 0.0), max(y, 0.0), min(x + length, image.width), min(y + length, image.height))
    place = [round((value - start) * scale) for value, start in zip(shown, (x, y, x, y), strict=True)]
    size = (max(place[2] - place[0], 1), max(place[3] - place[1], 1))
    square.paste(image.resize(size, Image.Resampling.BICUBIC, shown, reducing_gap=3), (place[0], place[1]))
    _outline(square, [_moved(box, x, y, scale) for box in boxes], max(side // 48, 1))
    return square


def marked_image(image: Image.Image, objects: Sequence[Box], relation: Relation, longest: int) -> Image.Image | None:
    """The whole image, reduced to at most `longest` pixels, with both outlines; None as `marked_crop`."""
    boxes = visible_boxes(image, objects, relation)
    if boxes is None:
        return None
    scale = min(longest / max(image.size), 1.0)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    copy = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3) if scale < 1 else image.copy()
    _outline(copy, [_moved(box, 0, 0, scale) for box in boxes], max(max(size) // 200, 2))
    return copy


def visible_boxes(image: Image.Image, objects: Sequence[Box], relation: Relation) -> list[Corners] | None:
    """The subject's box and the object's, if there is one, within the image; None if one has no area there."""
    ends = [objects[index] for index in (relation.subject, relation.object)]
    boxes = [_clipped(box, image.size) for box in ends if not box.is_nothing]
    have_area = all(right > left and bottom > top for left, top, right, bottom in boxes)
    return boxes if boxes and have_area else None


def _clipped(box: Box, size: tuple[int, int]) -> Corners:
    x, y, width, height = box.bbox
    return max(x, 0.0), max(y, 0.0), min(x + width, float(size[0])), min(y + height, float(size[1]))


def _around(boxes: Sequence[Corners]) -> Corners:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _moved(box: Corners, x: float, y: float, scale: float) -> Corners:
    left, top, right, bottom = box
    return (left - x) * scale, (top - y) * scale, (right - x) * scale, (bottom - y) * scale


def _outline(image: Image.Image, boxes: Sequence[Corners], width: int) -> None:
    """The object's outline first: where they meet, the subject's is seen."""
    pen = ImageDraw.Draw(image)
    for box, colour in reversed(list(zip(boxes, (SUBJECT_COLOUR, OBJECT_COLOUR), strict=False))):
        left, top, right, bottom = box
        pen.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=width)
