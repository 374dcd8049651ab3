"""Drawing: relations on images (boxes, links, and labels that hide neither), and plots as SVG.

Link geometry, which the HTML report uses too, is in pixels with y downwards; rectangles are xyxy.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape as escape_markup
from typing import NamedTuple, TypeAlias

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
_ROWS = 8  # of names around a box
_PAPER = "#ffffff"
_INK = "#1a1a1a"
_QUIET = "#6b6b6b"


_LEFT = 62
_RIGHT = 14
_TOP = 14
_BOTTOM = 46
_LINES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
# of a file: height of the title, width of the legend
_TITLE = 30
_LEGEND = 220
_TICKS = 5  # of an axis


@dataclass
class TextPlacer:
    """Places texts in an image of `width` × `height` pixels so that they cover little of each other
    and of objects.
    """

    width: float
    height: float
    objects: list[Rectangle] = field(default_factory=list)
    taken: list[Rectangle] = field(default_factory=list)

    def place(self, size: Point, spots: Iterable[Point]) -> Rectangle:
        """Place a text at the spot (a centre) where it covers least, inside the image; ties go to
        the first.
        """
        choices = []
        for x, y in spots:
            left = min(max(x - size[0] / 2, 0), max(self.width - size[0] - 1, 0))
            top = min(max(y - size[1] / 2, 0), max(self.height - size[1] - 1, 0))
            choices.append((left, top, left + size[0], top + size[1]))
        self.taken.append(min(choices, key=self._covered))
        return self.taken[-1]

    def place_beside(self, box: Rectangle, size: Point) -> Rectangle:
        """Place a text at a corner of a box, or, if other texts are there, around it as near as
        there is room.
        """
        left, top, right, bottom = box
        wide, high = size
        ys = [top - high / 2, bottom + high / 2, top + high / 2, bottom - high / 2]
        spots = corners = [(x, y) for y in ys for x in (left + wide / 2, right - wide / 2)]
        for row in range(1, _ROWS):
            spot = self.place(size, spots)
            if not any(overlap(spot, other) for other in self.taken[:-1]):
                return spot
            self.taken.pop()
            shares = [step / (2 * row) for step in range(2 * row + 1)]
            out = row - 0.5
            xs = [left - out * wide + share * (right - left + 2 * out * wide) for share in shares]
            ys = [top - out * high + share * (bottom - top + 2 * out * high) for share in shares]
            spots = [(x, y) for y in (ys[0], ys[-1]) for x in xs] + [
                (x, y) for x in (xs[0], xs[-1]) for y in ys
            ]
        return self.place(size, corners)

    def _covered(self, text: Rectangle) -> float:
        texts = sum(overlap(text, other) for other in self.taken)
        return texts + _LITTLE * sum(overlap(text, other) for other in self.objects)


def overlap(a: Rectangle, b: Rectangle) -> float:
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
    """25 points from the middle of the subject to that of the object, bent to the left, so that
    opposite arrows differ.

    If the middles are closer than `short`, it runs from near the top to near the bottom. `bend`:
    share of its length.
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
    for t in (step / _STEPS for step in range(_STEPS + 1)):
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        x, y = (
            sum(w * p[axis] for w, p in zip(weights, (start, control, end), strict=True))
            for axis in (0, 1)
        )
        points.append((x, y))
    return points


def arrow_head(points: Sequence[Point], length: float) -> list[Point]:
    (tip_x, tip_y), (from_x, from_y) = points[-1], points[max(-5, -len(points))]
    angle = math.atan2(tip_y - from_y, tip_x - from_x)
    turned = (angle + 0.45, angle - 0.45)
    return [
        (tip_x, tip_y),
        *((tip_x - length * math.cos(at), tip_y - length * math.sin(at)) for at in turned),
    ]


def along(points: Sequence[Point], size: Point) -> list[Point]:
    """Spots for a text of this size: on the curve, first at its middle, then next to it."""
    half = len(points) // 2
    spots = [points[half + aside * len(points) // _STEPS] for aside in (0, -2, 2, -4, 4, -6, 6)]
    return spots + [
        (x + a * size[0] / 2, y + b * size[1]) for x, y in spots[:5] for a, b in _AROUND
    ]


def shown(relations: Iterable[Relation], threshold: float, limit: int) -> list[Relation]:
    """Return the most confident relations of at least `threshold`, at most `limit`; human
    annotations come first.
    """
    least = np.float32(threshold)  # as shards store confidences, so that 0.7 is not below 0.7
    kept = [
        relation
        for relation in relations
        if relation.confidence is None or relation.confidence >= least
    ]
    return sorted(kept, key=lambda r: -1.0 if r.confidence is None else -r.confidence)[:limit]


def object_names(objects: Sequence[Box]) -> list[str]:
    """Return a name for each object: its class, numbered if there are several of it."""
    total = Counter(box.category for box in objects)
    seen = Counter[str]()
    names = []
    for box in objects:
        seen[box.category] += 1
        names.append(
            f"{box.category} {seen[box.category]}" if total[box.category] > 1 else box.category
        )
    return names


def drawn_objects(record: Record, relations: Sequence[Relation]) -> list[int]:
    """Return the objects to draw with their names: those of the relations, or all if there are no
    relations.
    """
    ends = {end for relation in relations for end in (relation.subject, relation.object)}
    return sorted(ends) if relations else list(range(len(record.objects)))


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


@cache
def font(size: float) -> Font:
    """Pillow's default font, `size` pixels high."""
    return ImageFont.load_default(size=size)


def fit(text: str, letters: Font, width: float) -> str:
    """Return the text on one line, shortened with an ellipsis if it is wider than `width`
    pixels.
    """
    text = single_line(text)
    if letters.getlength(text) <= width:
        return text
    ends = range(1, len(text) + 1)
    longest = bisect_right(
        ends, width, key=lambda end: letters.getlength(text[:end].rstrip() + "…")
    )
    return text[:longest].rstrip() + "…"


def draw_relations(
    image: Image.Image,
    record: Record,
    relations: Sequence[Relation],
    width: float,
    text_height: int = _TEXT,
) -> Image.Image:
    """Return the image with the objects and arrows of these relations, `width` pixels wide, or less
    if it is very tall.

    Other objects get a thin outline; without relations, all get their names. Texts overlap as
    little as possible.
    """
    scale = _SCALE * min(width / max(record.width, 1), 1.5 * width / max(record.height, 1))
    size = (max(_SCALE, round(record.width * scale)), max(_SCALE, round(record.height * scale)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas, "RGBA")
    letters = font(text_height * _SCALE)
    room = TextPlacer(*size)
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
            pen.polygon(
                arrow_head(points, 13 * _SCALE), fill=colour, outline="white", width=_SCALE // 2
            )
        pen.ellipse(
            (x - dot, y - dot, x + dot, y + dot), fill=colour, outline="white", width=_SCALE
        )

    def write(x: float, y: float, height: float, text: str, colour: str) -> None:
        pen.text((x, y + height / 2), text, fill=colour, font=letters, anchor="lm")

    names = object_names(record.objects)
    texts = {index: fit(names[index], letters, size[0] - 12 * _SCALE) for index in used}
    high = (text_height + 5) * _SCALE
    spots = {
        i: room.place_beside(boxes[i], (letters.getlength(texts[i]) + 8 * _SCALE, high))
        for i in used
    }
    for index, spot in spots.items():  # a line to its box, which is hidden if the name stands at it
        left, top, right, bottom = boxes[index]
        x, y = middle(spot)
        nearest = (min(max(x, left), right), min(max(y, top), bottom))
        pen.line(((x, y), nearest), fill=colour_of(index), width=_SCALE)
    for index, spot in spots.items():  # its name on its colour
        pen.rounded_rectangle(spot, 3 * _SCALE, fill=colour_of(index))
        write(spot[0] + 4 * _SCALE, spot[1], high, texts[index], "white")
    for (subject, _), (
        points,
        lines,
    ) in links.items():  # the relations of a pair, on white, along their arrow
        step = (text_height + 4) * _SCALE
        block = (max(map(letters.getlength, lines)) + 8 * _SCALE, step * len(lines) + 2 * _SCALE)
        spot = room.place(block, along(points, block))
        pen.rounded_rectangle(
            spot, 4 * _SCALE, fill="#fffffff0", outline=colour_of(subject), width=_SCALE
        )
        for number, line in enumerate(lines):
            write(spot[0] + 4 * _SCALE, spot[1] + _SCALE + number * step, step, line, _INK)
    return canvas.resize((size[0] // _SCALE, size[1] // _SCALE), Image.Resampling.LANCZOS)


def draw_marks(image: Image.Image, boxes: Sequence[Rectangle], side: int) -> Image.Image:
    """Return the image, its longer side resized to `side` pixels, with numbered outlines around the
    boxes (xywh).
    """
    record = Record(
        "",
        "",
        "",
        "",
        *image.size,
        [Box(str(number), 0, bbox) for number, bbox in enumerate(boxes, 1)],
    )
    width = (
        max(image.width, image.height / 1.5) * side / max(image.size)
    )  # where `draw_relations` gives this size
    return draw_relations(image, record, [], width, _MARK)


def corners(bbox: Rectangle, scale: float, size: Point) -> Rectangle:
    """Return the xyxy corners of an xywh box in an image that is scaled to this size, without what
    is outside.
    """
    left, top, width, height = (value * scale for value in bbox)
    right = min(left + width, size[0] - 1)
    bottom = min(top + height, size[1] - 1)
    left, top = (min(max(value, 0), end - 1) for value, end in zip((left, top), size, strict=True))
    return (left, top, max(right, left), max(bottom, top))


def draw_card(
    image: Image.Image | None, record: Record, relations: Sequence[Relation], width: int
) -> Image.Image:
    """Draw on the image, or on grey, `width` pixels wide, and list the relations below, with dots
    in their colours.
    """
    top = draw_relations(image or Image.new("RGB", (1, 1), "#c9ccd1"), record, relations, width)
    step = (_TEXT + 6) * _SCALE
    margin = 8 * _SCALE
    dot = 4 * _SCALE
    canvas = Image.new("RGB", (width * _SCALE, step * (len(relations) + 1) + 2 * margin), _PAPER)
    pen = ImageDraw.Draw(canvas)
    letters = font(_TEXT * _SCALE)
    right = canvas.width - margin
    total = f" · {len(relations)} of {count(len(record.relations), 'relation')}"
    title = f"{record.image_id}{'' if len(relations) == len(record.relations) else total}"
    title = fit(title, letters, right - margin)
    pen.text((margin, margin + step / 2), title, fill=_QUIET, font=letters, anchor="lm")
    names = object_names(record.objects)
    for number, relation in enumerate(relations, 1):
        x = float(margin)
        y = margin + (number + 0.5) * step
        confidence = "" if relation.confidence is None else f"{relation.confidence:.2f}"
        pen.text((right, y), confidence, fill=_QUIET, font=letters, anchor="rm")
        end = right - letters.getlength(confidence) - 2 * margin
        for index, text in (
            (relation.subject, ""),
            (None, relation.predicate),
            (relation.object, ""),
        ):
            if index is not None:
                pen.ellipse((x, y - dot, x + 2 * dot, y + dot), fill=colour_of(index))
                x = x + 3 * dot
                text = names[index]
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


class Line(NamedTuple):
    """A line through points, with tooltips. `name`: for the legend of a file. `kind`: its CSS class
    (main, guide).
    """

    points: Sequence[Point]
    texts: Sequence[str] = ()
    name: str = ""
    kind: str = "main"


@dataclass(frozen=True)
class Plot:
    """Lines, or bars by their labels, over axes that start at 0. `name` is the title, also for
    screen readers.

    `every`: each bar whose number it divides has a label. `size`: width and height in pixels.
    """

    name: str
    x_title: str
    y_title: str
    lines: Sequence[Line] = ()
    bars: Mapping[str, int] = field(default_factory=dict)
    every: int = 1
    x_end: float = 1
    y_end: float = 1
    size: tuple[int, int] = (560, 260)

    @property
    def _right(self) -> int:
        return self.size[0] - _RIGHT

    @property
    def _bottom(self) -> int:
        return self.size[1] - _BOTTOM

    def _place(self, x: float, y: float) -> Point:
        across = x / self.x_end * (self._right - _LEFT)
        up = y / self.y_end * (self._bottom - _TOP)
        return _LEFT + across, self._bottom - up

    def inline(self) -> str:
        """Return an `<svg>` element for a page, whose style sheet gives the colours."""
        box = f"0 0 {self.size[0]} {self.size[1]}"
        name = escape(self.name)
        head = f'<svg class="plot" viewBox="{box}" role="img" aria-label="{name}">'
        return "\n".join([head, *self._body(), "</svg>"])

    def file(self) -> str:
        """Return a complete SVG file, with a legend."""
        width = self.size[0] + _LEGEND
        height = self.size[1] + _TITLE
        parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
                f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
            ),
            "<style>.axis { stroke: #ddd; } polyline { fill: none; stroke-width: 2; }</style>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{_LEFT}" y="22" font-size="15">{escape(self.name)}</text>',
            f'<g transform="translate(0 {_TITLE})">',
            *self._body(_LINES),
        ]
        x = self._right + 16
        for number, line in enumerate(self.lines):
            colour = _LINES[number % len(_LINES)]
            y = _TOP + 12 + 20 * number
            parts.append(
                f'<line x1="{x}" y1="{y - 4}" x2="{x + 20}" y2="{y - 4}" stroke="{colour}"'
                ' stroke-width="2"/>'
            )
            parts.append(f'<text x="{x + 26}" y="{y}">{escape(line.name)}</text>')
        return "\n".join([*parts, "</g>\n</svg>\n"])

    def _body(self, colours: Sequence[str] = ()) -> Iterator[str]:
        """Axes, bars and lines; lines take `colours` in turn, or their colour from a style sheet if
        there are none.
        """
        for share in (step / _TICKS for step in range(_TICKS + 1)):
            x, y = self._place(share * self.x_end, share * self.y_end)
            yield f'<line class="axis" x1="{_LEFT}" x2="{self._right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(_tick(share, self.y_end), _LEFT - 7, y + 4, "end")
            if not self.bars:
                yield _text(_tick(share, self.x_end), x, self._bottom + 19)
        step = (self._right - _LEFT) / max(len(self.bars), 1)
        for at, (label, height) in enumerate(self.bars.items()):
            (_, y), x = self._place(0, height), _LEFT + at * step
            if at % self.every == 0:
                yield _text(label, x + step / 2, self._bottom + 19)
            place = (
                f'x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}"'
                f' height="{self._bottom - y:.1f}"'
            )
            yield f"<rect {place}><title>{escape(f'{label}: {height:,}')}</title></rect>"
        for number, line in enumerate(self.lines):
            stroke = f' stroke="{colours[number % len(colours)]}"' if colours else ""
            points = [self._place(*point) for point in line.points]
            yield f'<polyline class="{line.kind}" points="{polyline(points)}"{stroke}/>'
            for (x, y), text in zip(points, line.texts, strict=False):
                tooltip = f"<title>{escape(text)}</title>"
                yield (
                    f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}"'
                    f' r="3.5">{tooltip}</circle>'
                )
        yield _text(self.x_title, (_LEFT + self._right) / 2, self.size[1] - 6)
        turned = f'transform="translate(14 {(_TOP + self._bottom) / 2:.1f}) rotate(-90)"'
        yield f'<text {turned} text-anchor="middle">{escape(self.y_title)}</text>'


def escape(text: str) -> str:
    """Text of data inside SVG: without the control characters that XML forbids and those that turn
    text round.
    """
    return escape_markup(single_line(text))


def _text(text: str, x: float, y: float, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _tick(share: float, end: float) -> str:
    """Return a number of an axis in a few characters: 0.4, 12 k, 5.8 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if share * end >= size:
            return f"{share * end / size:.3g}{letter}"
    return f"{share:.1f}" if end == 1 else f"{share * end:.3g}"


def round_end(highest: float) -> float:
    """Return the next round number, as the end of an axis."""
    power = 10 ** math.floor(math.log10(highest or 1))
    return float(
        next(
            step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= highest
        )
    )
