"""The one plotter: plots as geometry, drawn as SVG inside a page or as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_markup
from typing import NamedTuple

from sgpipe.utils.console import single_line
from sgpipe.viz.draw_relations import Point, polyline

WIDTH, HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46
_TICK = 56  # room for the text of a tick
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_TITLE, _LEGEND = 30, 220  # of a file: height of the title, width of the legend


class Tick(NamedTuple):
    """A mark on an axis."""

    at: float
    text: str


class Bar(NamedTuple):
    """A bar and its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str


class Line(NamedTuple):
    """A line through points, with tooltips. `kind`: its CSS class (main, second, guide). `name`: for the legend."""

    points: list[Point]
    texts: list[str]
    kind: str = "main"
    name: str = ""


@dataclass(frozen=True)
class Plot:
    """Axes with bars and lines. `name` is the title, also for screen readers."""

    name: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bars: list[Bar] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def _right(self) -> int:
        return self.width - _RIGHT

    @property
    def _bottom(self) -> int:
        return self.height - _BOTTOM

    def inline(self) -> str:
        """Return an `<svg>` element for a page, whose style sheet gives the colours."""
        box, name = f"0 0 {self.width} {self.height}", escape(self.name)
        head = f'<svg class="plot" viewBox="{box}" role="img" aria-label="{name}">'
        return "\n".join([head, *self._body(), "</svg>"])

    def file(self) -> str:
        """Return a complete SVG file with a title, colours and a legend."""
        width, height = self.width + _LEGEND, self.height + _TITLE
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
        for tick in self.y_ticks:
            yield f'<line class="axis" x1="{_LEFT}" x2="{self._right}" y1="{tick.at:.1f}" y2="{tick.at:.1f}"/>'
            yield _text(tick.text, _LEFT - 7, tick.at + 4, "end")
        for tick in self.x_ticks:
            yield _text(tick.text, tick.at, self._bottom + 19)
        yield '<g class="bars">'
        for x, y, width, height, text in self.bars:
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            yield f"<rect {place}><title>{escape(text)}</title></rect>"
        yield "</g>"
        for number, line in enumerate(self.lines):
            stroke = f' stroke="{colours[number % len(colours)]}"' if colours else ""
            yield f'<polyline class="{line.kind}" points="{polyline(line.points)}"{stroke}/>'
            for (x, y), text in zip(line.points, line.texts, strict=False):
                tooltip = f"<title>{escape(text)}</title>"
                yield f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tooltip}</circle>'
        yield _text(self.x_title, (_LEFT + self._right) / 2, self.height - 6)
        turned = f'transform="translate(14 {(_TOP + self._bottom) / 2:.1f}) rotate(-90)"'
        yield f'<text {turned} text-anchor="middle">{escape(self.y_title)}</text>'


def escape(text: str) -> str:
    """Text of data inside SVG: without the control characters that XML forbids and those that turn text round."""
    return escape_markup(single_line(text))


def _text(text: str, x: float, y: float, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def columns(name: str, values: Mapping[str, int], x_title: str, y_title: str, every: int = 1) -> Plot:
    """Vertical bars; the axis names one in `every`."""
    scale = _Scale(0, _nice(max(values.values(), default=0)), HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    bars = [
        Bar(_LEFT + at * step + 1, scale(count), step - 2, HEIGHT - _BOTTOM - scale(count), f"{label}: {count:,}")
        for at, (label, count) in enumerate(values.items())
    ]
    ticks = [Tick(_LEFT + (at + 0.5) * step, label) for at, label in enumerate(values) if at % every == 0]
    return Plot(name, x_title, y_title, ticks, scale.ticks(), bars)


def curve(name: str, points: Sequence[Point], x_title: str, y_title: str, texts: Sequence[str]) -> Plot:
    """Return a line over evenly spaced x values; the y axis starts at 0."""
    x = _Scale(min(p[0] for p in points), max(p[0] for p in points), _LEFT + 8, WIDTH - _RIGHT - 8)
    y = _Scale(0, _nice(max(p[1] for p in points)), HEIGHT - _BOTTOM, _TOP)
    line = Line([(x(a), y(b)) for a, b in points], list(texts))
    ticks: list[Tick] = []
    for a, _ in points:
        if not ticks or x(a) - ticks[-1].at >= _TICK:  # texts do not run into each other
            ticks.append(Tick(x(a), f"{a:g}"))
    return Plot(name, x_title, y_title, ticks, y.ticks(), lines=[line])


def ranks(name: str, counts: Sequence[int], x_title: str, y_title: str) -> Plot:
    """Counts by rank, both on logarithmic axes."""
    ends = max(math.ceil(math.log10(max(len(counts), 2))), 1), max(math.ceil(math.log10(max([2, *counts]))), 1)
    x, y = _Scale(0, ends[0], _LEFT, WIDTH - _RIGHT), _Scale(0, ends[1], HEIGHT - _BOTTOM, _TOP)
    chosen = sorted({round(10 ** (step / 40 * math.log10(len(counts)))) for step in range(41)}) if counts else []
    points = [(x(math.log10(rank)), y(math.log10(max(counts[rank - 1], 1)))) for rank in chosen]
    texts = [f"rank {rank:,}: {counts[rank - 1]:,}" for rank in chosen]
    x_ticks = [Tick(x(power), f"{10**power:,}") for power in range(ends[0] + 1)]
    y_ticks = [Tick(y(power), short(10**power)) for power in range(ends[1] + 1)]
    return Plot(name, x_title, y_title, x_ticks, y_ticks, lines=[Line(points, texts)])


def unit_square(
    name: str,
    lines: Sequence[tuple[str, str, Sequence[Point], Sequence[str]]],
    x_title: str,
    y_title: str,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    x_end: float = 1,
) -> Plot:
    """Return lines of a kind, name, points and tooltips: y from 0 to 1, x to `x_end`; `size` is in pixels."""
    x, y = _Scale(0, x_end, _LEFT, size[0] - _RIGHT), _Scale(0, 1, size[1] - _BOTTOM, _TOP)
    drawn = [Line([(x(a), y(b)) for a, b in points], list(texts), kind, own) for kind, own, points, texts in lines]
    marks = [step / 5 for step in range(6)]
    x_ticks = [Tick(x(mark * x_end), f"{mark:.1f}" if x_end == 1 else short(mark * x_end)) for mark in marks]
    return Plot(name, x_title, y_title, x_ticks, [Tick(y(mark), f"{mark:.1f}") for mark in marks], [], drawn, *size)


def short(number: float) -> str:
    """Return a number in a few characters: 12 k, 5.8 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


@dataclass(frozen=True)
class _Scale:
    """Maps values linearly to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.end - self.start)

    def ticks(self) -> list[Tick]:
        return [Tick(self(value), short(value)) for value in (self.high * step / 4 for step in range(5))]


def _nice(highest: float) -> float:
    """Return the next round number."""
    if highest <= 4:
        return 4
    power = 10 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * power >= highest)
