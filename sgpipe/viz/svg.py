"""The one plotter: lines or bars as SVG, inside a page or as a file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_markup
from typing import NamedTuple

from sgpipe.utils.console import single_line
from sgpipe.viz.draw_relations import Point, polyline

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_TITLE, _LEGEND = 30, 220  # of a file: height of the title, width of the legend
_STEPS = 5  # of an axis


class Line(NamedTuple):
    """A line through points, with tooltips. `name`: for the legend of a file. `kind`: its CSS class (main, guide)."""

    points: Sequence[Point]
    texts: Sequence[str] = ()
    name: str = ""
    kind: str = "main"


@dataclass(frozen=True)
class Plot:
    """Lines, or bars by their labels, over axes that start at 0. `name` is the title, also for screen readers.

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
        across, up = x / self.x_end * (self._right - _LEFT), y / self.y_end * (self._bottom - _TOP)
        return _LEFT + across, self._bottom - up

    def inline(self) -> str:
        """Return an `<svg>` element for a page, whose style sheet gives the colours."""
        box, name = f"0 0 {self.size[0]} {self.size[1]}", escape(self.name)
        head = f'<svg class="plot" viewBox="{box}" role="img" aria-label="{name}">'
        return "\n".join([head, *self._body(), "</svg>"])

    def file(self) -> str:
        """Return a complete SVG file, with a legend."""
        width, height = self.size[0] + _LEGEND, self.size[1] + _TITLE
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="12">',
            "<style>.axis { stroke: #ddd; } polyline { fill: none; stroke-width: 2; }</style>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{_LEFT}" y="22" font-size="15">{escape(self.name)}</text>',
            f'<g transform="translate(0 {_TITLE})">',
            *self._body(_COLOURS),
        ]
        x = self._right + 16
        for number, line in enumerate(self.lines):
            colour, y = _COLOURS[number % len(_COLOURS)], _TOP + 12 + 20 * number
            parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 20}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{x + 26}" y="{y}">{escape(line.name)}</text>')
        return "\n".join([*parts, "</g>\n</svg>\n"])

    def _body(self, colours: Sequence[str] = ()) -> Iterator[str]:
        """Axes, bars and lines; lines take `colours` in turn, or their colour from a style sheet if there are none."""
        for share in (step / _STEPS for step in range(_STEPS + 1)):
            x, y = self._place(share * self.x_end, share * self.y_end)
            yield f'<line class="axis" x1="{_LEFT}" x2="{self._right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(_tick(share, self.y_end), _LEFT - 7, y + 4, "end")
            if not self.bars:
                yield _text(_tick(share, self.x_end), x, self._bottom + 19)
        step = (self._right - _LEFT) / max(len(self.bars), 1)
        for at, (label, count) in enumerate(self.bars.items()):
            (_, y), x = self._place(0, count), _LEFT + at * step
            if at % self.every == 0:
                yield _text(label, x + step / 2, self._bottom + 19)
            place = f'x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{self._bottom - y:.1f}"'
            yield f"<rect {place}><title>{escape(f'{label}: {count:,}')}</title></rect>"
        for number, line in enumerate(self.lines):
            stroke = f' stroke="{colours[number % len(colours)]}"' if colours else ""
            points = [self._place(*point) for point in line.points]
            yield f'<polyline class="{line.kind}" points="{polyline(points)}"{stroke}/>'
            for (x, y), text in zip(points, line.texts, strict=False):
                tooltip = f"<title>{escape(text)}</title>"
                yield f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tooltip}</circle>'
        yield _text(self.x_title, (_LEFT + self._right) / 2, self.size[1] - 6)
        turned = f'transform="translate(14 {(_TOP + self._bottom) / 2:.1f}) rotate(-90)"'
        yield f'<text {turned} text-anchor="middle">{escape(self.y_title)}</text>'


def escape(text: str) -> str:
    """Text of data inside SVG: without the control characters that XML forbids and those that turn text round."""
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
    return float(next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= highest))
