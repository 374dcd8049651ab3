"""Drawing: relations on images (boxes, links, and labels that hide neither), and plots as SVG.

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
_AROUND = (
    (0, -1.1),
    (0, 1.1),
    (1.1, 0),
    (-1.1, 0),
    (1.1, -1.1),
    (-1.1, 1.1),
    (1.1, 1.1),
    (-1.1, -1.1),
)
# Distinguishable for most colour-blind people, and readable on light and dark backgrounds.
COLOURS = (
    "#e6194b",
    "#0b84d8",
    "#2a9d3f",
    "#f58231",
    "#911eb4",
    "#00a5a5",
    "#d63fc0",
    "#8a6d00",
    "#5566ff",
    "#a04030",
)
_SCALE = 2  # drawn at twice the size and scaled down, which smooths lines and letters
# heights of names and numbers
_TEXT = 13
_MARK = 20
_RINGS = 8  # of names around a box
_PAPER = "#ffffff"
_INK = "#1a1a1a"
_QUIET = "#6b6b6b"


@dataclass
class TextPlacer:
    """Places texts in an image so that they cover little of each other and of objects.

    Attributes:
        width, height: size of the image in pixels
        objects: boxes of objects
        taken: boxes of the texts placed so far
    """

    width: float
    height: float
    objects: list[Rectangle] = field(default_factory=list)
    taken: list[Rectangle] = field(default_factory=list)

    def place(self, size: Point, spots: Iterable[Point]) -> Rectangle:
        """Place a text at the first of the spots (centres) where it covers least."""
        choices = []
        for x, y in spots:
            left = min(max(x - size[0] / 2, 0), max(self.width - size[0] - 1, 0))
            top = min(max(y - size[1] / 2, 0), max(self.height - size[1] - 1, 0))
            choices.append((left, top, left + size[0], top + size[1]))
        self.taken.append(min(choices, key=self._covered))
        return self.taken[-1]

    def place_beside(self, box: Rectangle, size: Point) -> Rectangle:
        """Place a text at a corner of a box, or around it, as near as there is room."""
        left, top, right, bottom = box
        width, height = size
        at_corners = []
        for y in (top - height / 2, bottom + height / 2, top + height / 2, bottom - height / 2):
            at_corners += [(left + width / 2, y), (right - width / 2, y)]
        spots = at_corners
        for ring in range(1, _RINGS):
            place = self.place(size, spots)
            if not any(overlap(place, other) for other in self.taken[:-1]):
                return place
            self.taken.pop()
            spots = _ring_around(box, size, ring)
        return self.place(size, at_corners)

    def _covered(self, text: Rectangle) -> float:
        texts = sum(overlap(text, other) for other in self.taken)
        return texts + _LITTLE * sum(overlap(text, other) for other in self.objects)


def _ring_around(box: Rectangle, size: Point, ring: int) -> list[Point]:
    """Return the centres of texts of this size in the `ring`-th ring around a box."""
    left, top, right, bottom = box
    distance_x = (ring - 0.5) * size[0]
    distance_y = (ring - 0.5) * size[1]
    shares = [step / (2 * ring) for step in range(2 * ring + 1)]
    xs = [left - distance_x + share * (right - left + 2 * distance_x) for share in shares]
    ys = [top - distance_y + share * (bottom - top + 2 * distance_y) for share in shares]
    spots = [(x, ys[0]) for x in xs] + [(x, ys[-1]) for x in xs]
    return spots + [(xs[0], y) for y in ys] + [(xs[-1], y) for y in ys]


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Return the area of the intersection of two rectangles."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def middle(box: Rectangle, height: float = 0.5) -> Point:
    """Return the horizontal middle, at a share of the height."""
    left, top, right, bottom = box
    return ((left + right) / 2, top + height * (bottom - top))


def polyline(points: Sequence[Point]) -> str:
    """Return points as SVG has them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def curve(
    subject: Rectangle, object_: Rectangle, short: float = 0.0, bend: float = 0.2
) -> list[Point]:
    """Return 25 points from the middle of the subject to that of the object.

    The curve bends to the left, so that opposite arrows differ.

    Args:
        subject, object_: boxes
        short: distance of the middles below which the curve runs from near the top of the subject
            to near the bottom of the object
        bend: height of the bend, as a share of the length
    """
    start = middle(subject)
    end = middle(object_)
    if math.dist(start, end) < short:
        start = middle(subject, 0.25)
        end = middle(object_, 0.75)
    across = end[0] - start[0]
    down = end[1] - start[1]
    control = ((start[0] + end[0]) / 2 + bend * down, (start[1] + end[1]) / 2 - bend * across)
    points: list[Point] = []
    for step in range(_STEPS + 1):
        t = step / _STEPS
        points.append(_bezier(start, control, end, t))
    return points


def _bezier(start: Point, control: Point, end: Point, t: float) -> Point:
    """Return the point of a quadratic Bézier curve at `t`."""
    from_start = (1 - t) ** 2
    from_control = 2 * t * (1 - t)
    from_end = t**2
    # `sum` adds with compensation: a plain + would change the last bit.
    x = sum((from_start * start[0], from_control * control[0], from_end * end[0]))
    y = sum((from_start * start[1], from_control * control[1], from_end * end[1]))
    return x, y


def arrow_head(points: Sequence[Point], length: float) -> list[Point]:
    """Return the triangle at the end of a curve."""
    tip_x, tip_y = points[-1]
    from_x, from_y = points[max(-5, -len(points))]
    angle = math.atan2(tip_y - from_y, tip_x - from_x)
    triangle = [(tip_x, tip_y)]
    for side in (angle + 0.45, angle - 0.45):
        triangle.append((tip_x - length * math.cos(side), tip_y - length * math.sin(side)))
    return triangle


def along(points: Sequence[Point], size: Point) -> list[Point]:
    """Return spots for a text of this size: on the curve, first at its middle, then next to it."""
    half = len(points) // 2
    spots = [points[half + aside * len(points) // _STEPS] for aside in (0, -2, 2, -4, 4, -6, 6)]
    for x, y in spots[:5]:
        spots += [(x + across * size[0] / 2, y + down * size[1]) for across, down in _AROUND]
    return spots


def shown(relations: Iterable[Relation], threshold: float, limit: int) -> list[Relation]:
    """Return at most `limit` relations of at least `threshold`.

    Human annotations come first, then the most confident relations.
    """
    min_confidence = np.float32(threshold)  # as shards store confidences: 0.7 is not below 0.7
    confident = [relation for relation in relations if _rank(relation) >= min_confidence]
    return sorted(confident, key=_rank, reverse=True)[:limit]


def _rank(relation: Relation) -> float:
    """Return the confidence, by which relations are sorted; that of a human annotation is 2."""
    return 2.0 if relation.confidence is None else relation.confidence


def object_names(objects: Sequence[Box]) -> list[str]:
    """Return a name for each object: its class, numbered if there are several of it."""
    totals = Counter(box.category for box in objects)
    seen = Counter[str]()
    names = []
    for box in objects:
        name = box.category
        seen[name] += 1
        names.append(f"{name} {seen[name]}" if totals[name] > 1 else name)
    return names


def drawn_objects(record: Record, relations: Sequence[Relation]) -> list[int]:
    """Return the objects to draw with names: those of the relations, or all without relations."""
    if not relations:
        return list(range(len(record.objects)))
    subjects = {relation.subject for relation in relations}
    objects = {relation.object for relation in relations}
    return sorted(subjects | objects)


def colour_of(index: int) -> str:
    """Return the colour of an object."""
    return COLOURS[index % len(COLOURS)]


@cache
def font(size: float) -> Font:
    """Pillow's default font, `size` pixels high."""
    return ImageFont.load_default(size=size)


def fit(text: str, letters: Font, width: float) -> str:
    """Return the text on one line, shortened with an ellipsis to at most `width` pixels."""
    text = single_line(text)
    if letters.getlength(text) <= width:
        return text

    def shortened_width(end: int) -> float:
        return letters.getlength(text[:end].rstrip() + "…")

    longest = bisect_right(range(1, len(text) + 1), width, key=shortened_width)
    return text[:longest].rstrip() + "…"


def draw_relations(
    image: Image.Image,
    record: Record,
    relations: Sequence[Relation],
    width: float,
    text_height: int = _TEXT,
) -> Image.Image:
    """Return the image with the objects and arrows of these relations.

    Other objects get a thin outline; without relations, all objects get their names. Texts overlap
    as little as possible.

    Args:
        image: of any size
        record: the objects of the image
        relations: to draw
        width: of the result in pixels; a very tall image becomes narrower
        text_height: in pixels
    """
    drawing = _Drawing(image, record, relations, width, text_height)
    drawing.outline_objects()
    links = drawing.links(relations)
    for link in links:
        drawing.draw_arrow(link)
    drawing.draw_names(object_names(record.objects))
    for link in links:
        drawing.draw_predicates(link)
    return drawing.reduced()


@dataclass(frozen=True)
class _Link:
    """The relations of a pair: a curve, or a point if the subject acts alone, and their texts."""

    subject: int
    points: list[Point]
    texts: list[str] = field(default_factory=list)


class _Drawing:
    """An image with its objects and relations, at `_SCALE` times the size of the result."""

    def __init__(
        self,
        image: Image.Image,
        record: Record,
        relations: Sequence[Relation],
        width: float,
        text_height: int,
    ) -> None:
        scale = _SCALE * min(width / max(record.width, 1), 1.5 * width / max(record.height, 1))
        self._size = (
            max(_SCALE, round(record.width * scale)),
            max(_SCALE, round(record.height * scale)),
        )
        self._canvas = image.convert("RGB").resize(self._size, Image.Resampling.LANCZOS)
        self._pen = ImageDraw.Draw(self._canvas, "RGBA")
        self._text_height = text_height
        self._letters = font(text_height * _SCALE)
        self._boxes = [corners(box.bbox, scale, self._size) for box in record.objects]
        nothing = {index for index, box in enumerate(record.objects) if box.is_nothing}
        self._visible = set(range(len(self._boxes))) - nothing
        self._named = [
            index for index in drawn_objects(record, relations) if index in self._visible
        ]
        self._placer = TextPlacer(*self._size, [self._boxes[index] for index in self._named])

    def outline_objects(self) -> None:
        for index in self._visible.difference(self._named):
            self._pen.rectangle(self._boxes[index], outline=(255, 255, 255, 130), width=_SCALE)
        for index in self._named:
            self._pen.rectangle(self._boxes[index], outline=colour_of(index), width=2 * _SCALE)

    def links(self, relations: Iterable[Relation]) -> list[_Link]:
        """Return one link for each pair of related objects."""
        links: dict[tuple[int, int], _Link] = {}
        for relation in relations:
            pair = (relation.subject, relation.object)
            if pair not in links:
                links[pair] = _Link(relation.subject, self._points(*pair))
            certainty = "" if relation.confidence is None else f" {relation.confidence:.2f}"
            links[pair].texts.append(self._fit(f"{relation.predicate}{certainty}"))
        return list(links.values())

    def _points(self, subject: int, object_: int) -> list[Point]:
        if object_ == subject or object_ not in self._visible:
            return [middle(self._boxes[subject])]
        return curve(self._boxes[subject], self._boxes[object_], 24 * _SCALE)

    def draw_arrow(self, link: _Link) -> None:
        """Draw a dot at the subject, and an arrow from it to the object."""
        colour = colour_of(link.subject)
        if len(link.points) > 1:
            self._pen.line(link.points, fill="#ffffffd0", width=5 * _SCALE, joint="curve")
            self._pen.line(link.points, fill=colour, width=3 * _SCALE, joint="curve")
            head = arrow_head(link.points, 13 * _SCALE)
            self._pen.polygon(head, fill=colour, outline="white", width=_SCALE // 2)
        x, y = link.points[0]
        radius = 4 * _SCALE
        dot = (x - radius, y - radius, x + radius, y + radius)
        self._pen.ellipse(dot, fill=colour, outline="white", width=_SCALE)

    def draw_names(self, names: Sequence[str]) -> None:
        """Draw the names of objects on their colours, with lines to boxes that are not close."""
        height = (self._text_height + 5) * _SCALE
        texts = {index: self._fit(names[index]) for index in self._named}
        places = {}
        for index, text in texts.items():
            size = (self._letters.getlength(text) + 8 * _SCALE, height)
            places[index] = self._placer.place_beside(self._boxes[index], size)
        for index, place in places.items():
            x, y = middle(place)
            left, top, right, bottom = self._boxes[index]
            nearest = (min(max(x, left), right), min(max(y, top), bottom))
            self._pen.line(((x, y), nearest), fill=colour_of(index), width=_SCALE)
        for index, place in places.items():
            self._pen.rounded_rectangle(place, 3 * _SCALE, fill=colour_of(index))
            self._write(place[0] + 4 * _SCALE, place[1], height, texts[index], "white")

    def draw_predicates(self, link: _Link) -> None:
        """Draw the relations of a pair on white, along their arrow."""
        line_height = (self._text_height + 4) * _SCALE
        width = max(self._letters.getlength(text) for text in link.texts) + 8 * _SCALE
        size = (width, line_height * len(link.texts) + 2 * _SCALE)
        left, top, right, bottom = self._placer.place(size, along(link.points, size))
        self._pen.rounded_rectangle(
            (left, top, right, bottom),
            4 * _SCALE,
            fill="#fffffff0",
            outline=colour_of(link.subject),
            width=_SCALE,
        )
        for number, text in enumerate(link.texts):
            y = top + _SCALE + number * line_height
            self._write(left + 4 * _SCALE, y, line_height, text, _INK)

    def reduced(self) -> Image.Image:
        """Return the drawing at its final size."""
        size = (self._size[0] // _SCALE, self._size[1] // _SCALE)
        return self._canvas.resize(size, Image.Resampling.LANCZOS)

    def _fit(self, text: str) -> str:
        return fit(text, self._letters, self._size[0] - 12 * _SCALE)

    def _write(self, x: float, y: float, height: float, text: str, colour: str) -> None:
        self._pen.text((x, y + height / 2), text, fill=colour, font=self._letters, anchor="lm")


def draw_marks(image: Image.Image, boxes: Sequence[Rectangle], side: int) -> Image.Image:
    """Return the image with numbered outlines around boxes.

    Args:
        image: of any size
        boxes: xywh in pixels
        side: longer side of the result in pixels
    """
    objects = [Box(str(number), 0, bbox) for number, bbox in enumerate(boxes, 1)]
    record = Record("", "", "", "", *image.size, objects)
    # the width at which `draw_relations` gives this size
    width = max(image.width, image.height / 1.5) * side / max(image.size)
    return draw_relations(image, record, [], width, _MARK)


def corners(bbox: Rectangle, scale: float, size: Point) -> Rectangle:
    """Return the xyxy corners of an xywh box in an image scaled to `size`, clipped to it."""
    left, top, width, height = (value * scale for value in bbox)
    right = min(left + width, size[0] - 1)
    bottom = min(top + height, size[1] - 1)
    left = min(max(left, 0), size[0] - 1)
    top = min(max(top, 0), size[1] - 1)
    return (left, top, max(right, left), max(bottom, top))


def draw_card(
    image: Image.Image | None, record: Record, relations: Sequence[Relation], width: int
) -> Image.Image:
    """Return the drawing of the relations with a list of them below.

    Args:
        image: None: the drawing is on grey
        record: the objects and all relations of the image
        relations: to draw and to list
        width: of the card in pixels
    """
    background = image or Image.new("RGB", (1, 1), "#c9ccd1")
    top = draw_relations(background, record, relations, width)
    bottom = _draw_list(record, relations, width)
    card = Image.new("RGB", (width, top.height + bottom.height), _PAPER)
    card.paste(top, ((width - top.width) // 2, 0))
    card.paste(bottom, (0, top.height))
    return card


def _draw_list(record: Record, relations: Sequence[Relation], width: int) -> Image.Image:
    """Draw the image id and a line for each relation, with dots in the colours of its objects."""
    line_height = (_TEXT + 6) * _SCALE
    margin = 8 * _SCALE
    radius = 4 * _SCALE
    height = line_height * (len(relations) + 1) + 2 * margin
    canvas = Image.new("RGB", (width * _SCALE, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    letters = font(_TEXT * _SCALE)
    right = canvas.width - margin
    title = record.image_id
    if len(relations) != len(record.relations):
        title += f" · {len(relations)} of {count(len(record.relations), 'relation')}"
    title = fit(title, letters, right - margin)
    pen.text((margin, margin + line_height / 2), title, fill=_QUIET, font=letters, anchor="lm")
    names = object_names(record.objects)
    for number, relation in enumerate(relations, 1):
        x = float(margin)
        y = margin + (number + 0.5) * line_height
        confidence = "" if relation.confidence is None else f"{relation.confidence:.2f}"
        pen.text((right, y), confidence, fill=_QUIET, font=letters, anchor="rm")
        end = right - letters.getlength(confidence) - 2 * margin
        words = (
            (relation.subject, names[relation.subject]),
            (None, relation.predicate),
            (relation.object, names[relation.object]),
        )
        for index, word in words:
            if index is not None:
                pen.ellipse((x, y - radius, x + 2 * radius, y + radius), fill=colour_of(index))
                x += 3 * radius
            if end - x < 2 * _TEXT * _SCALE:
                break
            text = fit(word, letters, end - x)
            pen.text((x, y), text, fill=_INK, font=letters, anchor="lm")
            x += letters.getlength(text) + 6 * _SCALE
    return canvas.resize((width, height // _SCALE), Image.Resampling.LANCZOS)
