"""Draw relations on images: boxes, links between them, and labels that hide neither.

Link geometry, which the HTML report uses too, is in pixels with y downwards; rectangles are xyxy.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgpipe.records import Box, Record, Relation
from sgpipe.utils.console import count, single_line

Point = tuple[float, float]
Rectangle = tuple[float, float, float, float]
Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

_STEPS = 24
_LITTLE = 0.2  # weight of covering an object, relative to covering another text
_AROUND = ((0, -1.1), (0, 1.1), (1.1, 0), (-1.1, 0), (1.1, -1.1), (-1.1, 1.1), (1.1, 1.1), (-1.1, -1.1))
# Distinguishable for most colour-blind people, and readable on light and dark backgrounds.
COLOURS = ("#e6194b", "#0b84d8", "#2a9d3f", "#f58231", "#911eb4", "#00a5a5", "#d63fc0", "#8a6d00", "#5566ff", "#a04030")
_SCALE = 2  # drawn at twice the size and scaled down, which smooths lines and letters
_TEXT, _MARK = 13, 20  # heights of names and numbers
_ROWS = 8  # of names around a box
_PAPER, _INK, _QUIET = "#ffffff", "#1a1a1a", "#6b6b6b"


@dataclass
class TextPlacer:
    """Places texts in an image of `width` × `height` pixels so that they cover little of each other and of objects."""

    width: float
    height: float
    objects: list[Rectangle] = field(default_factory=list)
    taken: list[Rectangle] = field(default_factory=list)

    def place(self, size: Point, spots: Iterable[Point]) -> Rectangle:
        """Place a text at the spot (a centre) where it covers least, inside the image; ties go to the first."""
        choices = []
        for x, y in spots:
            left = min(max(x - size[0] / 2, 0), max(self.width - size[0] - 1, 0))
            top = min(max(y - size[1] / 2, 0), max(self.height - size[1] - 1, 0))
            choices.append((left, top, left + size[0], top + size[1]))
        self.taken.append(min(choices, key=self._covered))
        return self.taken[-1]

    def place_beside(self, box: Rectangle, size: Point) -> Rectangle:
        """Place a text at a corner of a box, or, if other texts are there, around it as near as there is room."""
        left, top, right, bottom = box
        wide, high = size
        ys = [top - high / 2, bottom + high / 2, top + high / 2, bottom - high / 2]
        spots = corners = [(x, y) for y in ys for x in (left + wide / 2, right - wide / 2)]
        for row in range(1, _ROWS):
            spot = self.place(size, spots)
            if not any(overlap(spot, other) for other in self.taken[:-1]):
                return spot
            self.taken.pop()
            shares, out = [step / (2 * row) for step in range(2 * row + 1)], row - 0.5
            xs = [left - out * wide + share * (right - left + 2 * out * wide) for share in shares]
            ys = [top - out * high + share * (bottom - top + 2 * out * high) for share in shares]
            spots = [(x, y) for y in (ys[0], ys[-1]) for x in xs] + [(x, y) for x in (xs[0], xs[-1]) for y in ys]
        return self.place(size, corners)

    def _covered(self, text: Rectangle) -> float:
        texts = sum(overlap(text, other) for other in self.taken)
        return texts + _LITTLE * sum(overlap(text, other) for other in self.objects)


def overlap(a: Rectangle, b: Rectangle) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def middle(box: Rectangle, height: float = 0.5) -> Point:
    """Return the horizontal middle, at a share of the height."""
    left, top, right, bottom = box
    return ((left + right) / 2, top + height * (bottom - top))


def polyline(points: Sequence[Point]) -> str:
    """Return points as SVG has them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def curve(subject: Rectangle, object_: Rectangle, short: float = 0.0, bend: float = 0.2) -> list[Point]:
    """25 points from the middle of the subject to that of the object, bent to the left, so that opposite arrows differ.

    If the middles are closer than `short`, it runs from near the top to near the bottom. `bend`: share of its length.
    """
    start, end = middle(subject), middle(object_)
    if math.dist(start, end) < short:
        start, end = middle(subject, 0.25), middle(object_, 0.75)
    across, down = end[0] - start[0], end[1] - start[1]
    control = ((start[0] + end[0]) / 2 + bend * down, (start[1] + end[1]) / 2 - bend * across)
    points: list[Point] = []
    for t in (step / _STEPS for step in range(_STEPS + 1)):
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        x, y = (sum(w * p[axis] for w, p in zip(weights, (start, control, end), strict=True)) for axis in (0, 1))
        points.append((x, y))
    return points


def arrow_head(points: Sequence[Point], length: float) -> list[Point]:
    (tip_x, tip_y), (from_x, from_y) = points[-1], points[max(-5, -len(points))]
    angle = math.atan2(tip_y - from_y, tip_x - from_x)
    turned = (angle + 0.45, angle - 0.45)
    return [(tip_x, tip_y), *((tip_x - length * math.cos(at), tip_y - length * math.sin(at)) for at in turned)]


def along(points: Sequence[Point], size: Point) -> list[Point]:
    """Spots for a text of this size: on the curve, first at its middle, then next to it."""
    half = len(points) // 2
    spots = [points[half + aside * len(points) // _STEPS] for aside in (0, -2, 2, -4, 4, -6, 6)]
    return spots + [(x + a * size[0] / 2, y + b * size[1]) for x, y in spots[:5] for a, b in _AROUND]


def shown(relations: Iterable[Relation], threshold: float, limit: int) -> list[Relation]:
    """Return the most confident relations of at least `threshold`, at most `limit`; human annotations come first."""
    least = np.float32(threshold)  # as shards store confidences, so that 0.7 is not below 0.7
    kept = [relation for relation in relations if relation.confidence is None or relation.confidence >= least]
    return sorted(kept, key=lambda r: -1.0 if r.confidence is None else -r.confidence)[:limit]


def object_names(objects: Sequence[Box]) -> list[str]:
    """Return a name for each object: its class, numbered if there are several of it."""
    total, seen = Counter(box.category for box in objects), Counter[str]()
    names = []
    for box in objects:
        seen[box.category] += 1
        names.append(f"{box.category} {seen[box.category]}" if total[box.category] > 1 else box.category)
    return names


def drawn_objects(record: Record, relations: Sequence[Relation]) -> list[int]:
    """Return the objects to draw with their names: those of the relations, or all if there are no relations."""
    ends = {end for relation in relations for end in (relation.subject, relation.object)}
    return sorted(ends) if relations else list(range(len(record.objects)))


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


@cache
def font(size: float) -> Font:
    """Pillow's default font, `size` pixels high."""
    return ImageFont.load_default(size=size)


def fit(text: str, letters: Font, width: float) -> str:
    """Return the text on one line, shortened with an ellipsis if it is wider than `width` pixels."""
    text = single_line(text)
    if letters.getlength(text) <= width:
        return text
    ends = range(1, len(text) + 1)
    longest = bisect_right(ends, width, key=lambda end: letters.getlength(text[:end].rstrip() + "…"))
    return text[:longest].rstrip() + "…"


def draw_relations(
    image: Image.Image, record: Record, relations: Sequence[Relation], width: float, text_height: int = _TEXT
) -> Image.Image:
    """Return the image with the objects and arrows of these relations, `width` pixels wide, or less if it is very tall.

    Other objects get a thin outline; without relations, all get their names. Texts overlap as little as possible.
    """
    scale = _SCALE * min(width / max(record.width, 1), 1.5 * width / max(record.height, 1))
    size = (max(_SCALE, round(record.width * scale)), max(_SCALE, round(record.height * scale)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pen, letters, room = ImageDraw.Draw(canvas, "RGBA"), font(text_height * _SCALE), TextPlacer(*size)
    boxes = [corners(box.bbox, scale, size) for box in record.objects]
    nothing = {index for index, box in enumerate(record.objects) if box.is_nothing}
    used = [index for index in drawn_objects(record, relations) if index not in nothing]
    for index in set(range(len(boxes))) - {*used, *nothing}:
        pen.rectangle(boxes[index], outline=(255, 255, 255, 130), width=_SCALE)
    for index in used:
        pen.rectangle(boxes[index], outline=colour_of(index), width=2 * _SCALE)
    room.objects = [boxes[index] for index in used]

    links: dict[tuple[int, int], tuple[list[Point], list[str]]] = {}
    for relation in relations:
        ends = boxes[relation.subject], boxes[relation.object]
        alone = relation.object in nothing or relation.subject == relation.object
        points = [middle(ends[0])] if alone else curve(*ends, 24 * _SCALE)
        certainty = "" if relation.confidence is None else f" {relation.confidence:.2f}"
        text = fit(f"{relation.predicate}{certainty}", letters, size[0] - 12 * _SCALE)
        links.setdefault((relation.subject, relation.object), (points, []))[1].append(text)
    for (subject, _), (points, _) in links.items():
        colour, dot, (x, y) = colour_of(subject), 4 * _SCALE, points[0]
        if len(points) > 1:
            pen.line(points, fill="#ffffffd0", width=5 * _SCALE, joint="curve")
            pen.line(points, fill=colour, width=3 * _SCALE, joint="curve")
            pen.polygon(arrow_head(points, 13 * _SCALE), fill=colour, outline="white", width=_SCALE // 2)
        pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=colour, outline="white", width=_SCALE)

    def write(x: float, y: float, height: float, text: str, colour: str) -> None:
        pen.text((x, y + height / 2), text, fill=colour, font=letters, anchor="lm")

    names = object_names(record.objects)
    texts = {index: fit(names[index], letters, size[0] - 12 * _SCALE) for index in used}
    high = (text_height + 5) * _SCALE
    spots = {i: room.place_beside(boxes[i], (letters.getlength(texts[i]) + 8 * _SCALE, high)) for i in used}
    for index, spot in spots.items():  # a line to its box, which is hidden if the name stands at it
        left, top, right, bottom = boxes[index]
        x, y = middle(spot)
        nearest = (min(max(x, left), right), min(max(y, top), bottom))
        pen.line(((x, y), nearest), fill=colour_of(index), width=_SCALE)
    for index, spot in spots.items():  # its name on its colour
        pen.rounded_rectangle(spot, 3 * _SCALE, fill=colour_of(index))
        write(spot[0] + 4 * _SCALE, spot[1], high, texts[index], "white")
    for (subject, _), (points, lines) in links.items():  # the relations of a pair, on white, along their arrow
        step = (text_height + 4) * _SCALE
        block = (max(map(letters.getlength, lines)) + 8 * _SCALE, step * len(lines) + 2 * _SCALE)
        spot = room.place(block, along(points, block))
        pen.rounded_rectangle(spot, 4 * _SCALE, fill="#fffffff0", outline=colour_of(subject), width=_SCALE)
        for number, line in enumerate(lines):
            write(spot[0] + 4 * _SCALE, spot[1] + _SCALE + number * step, step, line, _INK)
    return canvas.resize((size[0] // _SCALE, size[1] // _SCALE), Image.Resampling.LANCZOS)


def draw_marks(image: Image.Image, boxes: Sequence[Rectangle], side: int) -> Image.Image:
    """Return the image, its longer side resized to `side` pixels, with numbered outlines around the boxes (xywh)."""
    record = Record("", "", "", "", *image.size, [Box(str(number), 0, bbox) for number, bbox in enumerate(boxes, 1)])
    width = max(image.width, image.height / 1.5) * side / max(image.size)  # where `draw_relations` gives this size
    return draw_relations(image, record, [], width, _MARK)


def corners(bbox: Rectangle, scale: float, size: Point) -> Rectangle:
    """Return the xyxy corners of an xywh box in an image that is scaled to this size, without what is outside."""
    left, top, width, height = (value * scale for value in bbox)
    right, bottom = min(left + width, size[0] - 1), min(top + height, size[1] - 1)
    left, top = (min(max(value, 0), end - 1) for value, end in zip((left, top), size, strict=True))
    return (left, top, max(right, left), max(bottom, top))


def draw_card(image: Image.Image | None, record: Record, relations: Sequence[Relation], width: int) -> Image.Image:
    """Draw on the image, or on grey, `width` pixels wide, and list the relations below, with dots in their colours."""
    top = draw_relations(image or Image.new("RGB", (1, 1), "#c9ccd1"), record, relations, width)
    step, margin, dot = (_TEXT + 6) * _SCALE, 8 * _SCALE, 4 * _SCALE
    canvas = Image.new("RGB", (width * _SCALE, step * (len(relations) + 1) + 2 * margin), _PAPER)
    pen, letters, right = ImageDraw.Draw(canvas), font(_TEXT * _SCALE), canvas.width - margin
    total = f" · {len(relations)} of {count(len(record.relations), 'relation')}"
    title = f"{record.image_id}{'' if len(relations) == len(record.relations) else total}"
    title = fit(title, letters, right - margin)
    pen.text((margin, margin + step / 2), title, fill=_QUIET, font=letters, anchor="lm")
    names = object_names(record.objects)
    for number, relation in enumerate(relations, 1):
        x, y = float(margin), margin + (number + 0.5) * step
        confidence = "" if relation.confidence is None else f"{relation.confidence:.2f}"
        pen.text((right, y), confidence, fill=_QUIET, font=letters, anchor="rm")
        end = right - letters.getlength(confidence) - 2 * margin
        for index, text in ((relation.subject, ""), (None, relation.predicate), (relation.object, "")):
            if index is not None:
                pen.ellipse((x, y - dot, x + 2 * dot, y + dot), fill=colour_of(index))
                x, text = x + 3 * dot, names[index]
            if end - x < 2 * _TEXT * _SCALE:
                break
            text = fit(text, letters, end - x)
            pen.text((x, y), text, fill=_INK, font=letters, anchor="lm")
            x += letters.getlength(text) + 6 * _SCALE
    bottom = canvas.resize((width, canvas.height // _SCALE), Image.Resampling.LANCZOS)
    card = Image.new("RGB", (width, top.height + bottom.height), _PAPER)
    card.paste(top, ((width - top.width) // 2, 0))
    card.paste(bottom, (0, top.height))
    return card
