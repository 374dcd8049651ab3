"""Plots as SVG: lines over two axes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_markup
from typing import NamedTuple

from sgpipe.utils.console import single_line
from sgpipe.viz import Point, polyline

# margins of a plot
_LEFT = 62
_RIGHT = 14
_TOP = 14
_BOTTOM = 46
_LINES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
# of a file: height of the title, width of the legend
_TITLE = 30
_LEGEND = 220
_TICKS = 5  # of an axis


class Line(NamedTuple):
    """A line through points.

    Attributes:
        points: in the units of the axes
        texts: tooltips of the points
        name: for the legend of a file
        kind: its CSS class (main, guide)
    """

    points: Sequence[Point]
    texts: Sequence[str] = ()
    name: str = ""
    kind: str = "main"


@dataclass(frozen=True)
class Plot:
    """Lines, or bars by their labels, over axes that start at 0.

    Attributes:
        name: the title, also for screen readers
        every: each bar whose number it divides has a label
        size: width and height in pixels
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
        """Yield the elements of the plot.

        Args:
            colours: of the lines in turn; if empty, a style sheet gives them
        """
        yield from self._axes()
        yield from self._bars()
        for number, line in enumerate(self.lines):
            stroke = f' stroke="{colours[number % len(colours)]}"' if colours else ""
            points = [self._place(*point) for point in line.points]
            yield f'<polyline class="{line.kind}" points="{polyline(points)}"{stroke}/>'
            for (x, y), text in zip(points, line.texts, strict=False):
                circle = f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
                yield f"{circle}<title>{escape(text)}</title></circle>"
        yield _text(self.x_title, (_LEFT + self._right) / 2, self.size[1] - 6)
        turned = f'transform="translate(14 {(_TOP + self._bottom) / 2:.1f}) rotate(-90)"'
        yield f'<text {turned} text-anchor="middle">{escape(self.y_title)}</text>'

    def _axes(self) -> Iterator[str]:
        for step in range(_TICKS + 1):
            share = step / _TICKS
            x, y = self._place(share * self.x_end, share * self.y_end)
            yield f'<line class="axis" x1="{_LEFT}" x2="{self._right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield _text(_tick(share, self.y_end), _LEFT - 7, y + 4, "end")
            if not self.bars:
                yield _text(_tick(share, self.x_end), x, self._bottom + 19)

    def _bars(self) -> Iterator[str]:
        step = (self._right - _LEFT) / max(len(self.bars), 1)
        for number, (label, value) in enumerate(self.bars.items()):
            x = _LEFT + number * step
            _, y = self._place(0, value)
            if number % self.every == 0:
                yield _text(label, x + step / 2, self._bottom + 19)
            corner = f'x="{x + 1:.1f}" y="{y:.1f}"'
            size = f'width="{step - 2:.1f}" height="{self._bottom - y:.1f}"'
            tooltip = escape(f"{label}: {value:,}")
            yield f"<rect {corner} {size}><title>{tooltip}</title></rect>"


def escape(text: str) -> str:
    """Return a text of data for SVG, without control and direction characters."""
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
    round_numbers = [step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)]
    return float(next(number for number in round_numbers if number >= highest))
