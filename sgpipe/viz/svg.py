"""Plots as plain geometry, which the templates turn into inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

WIDTH, HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46
_TICK = 56  # of its text


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line through points, and what each says; `kind` is its class: main, second or guide; `name` for the legend."""

    points: list[Point]
    texts: list[str]
    kind: str = "main"
    name: str = ""

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Plot:
    """Axes with bars and lines. `name` describes it to those who cannot see it."""

    name: str
    x_title: str
    y_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bars: list[Bar] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def columns(name: str, values: Mapping[str, int], x_title: str, y_title: str, every: int = 1) -> Plot:
    """Upright bars; every so many are named on the axis."""
    scale = _Scale(0, _nice(max(values.values(), default=0)), HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    bars = [
        Bar(_LEFT + at * step + 1, scale(count), step - 2, HEIGHT - _BOTTOM - scale(count), f"{label}: {count:,}")
        for at, (label, count) in enumerate(values.items())
    ]
    ticks = [Tick(_LEFT + (at + 0.5) * step, label) for at, label in enumerate(values) if at % every == 0]
    return Plot(name, x_title, y_title, ticks, scale.ticks(), bars)


def curve(name: str, points: Sequence[Point], x_title: str, y_title: str, texts: Sequence[str]) -> Plot:
    """A line over x values that are spread evenly, from a zero at the bottom."""
    x = _Scale(min(p[0] for p in points), max(p[0] for p in points), _LEFT + 8, WIDTH - _RIGHT - 8)
    y = _Scale(0, _nice(max(p[1] for p in points)), HEIGHT - _BOTTOM, _TOP)
    line = Line([(x(a), y(b)) for a, b in points], list(texts))
    return Plot(name, x_title, y_title, _apart([Tick(x(a), f"{a:g}") for a, _ in points]), y.ticks(), lines=[line])


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
    name: str, lines: Sequence[tuple[str, str, Sequence[Point], Sequence[str]]], x_title: str, y_title: str
) -> Plot:
    """Lines between 0 and 1 on both axes, each with its kind, name, points and texts."""
    x, y = _Scale(0, 1, _LEFT, WIDTH - _RIGHT), _Scale(0, 1, HEIGHT - _BOTTOM, _TOP)
    drawn = [Line([(x(a), y(b)) for a, b in points], list(texts), kind, said) for kind, said, points, texts in lines]
    marks = [step / 5 for step in range(6)]
    return Plot(
        name, x_title, y_title, [Tick(x(m), f"{m:.1f}") for m in marks], [Tick(y(m), f"{m:.1f}") for m in marks],
        lines=drawn,
    )  # fmt: skip


def _apart(ticks: Sequence[Tick]) -> list[Tick]:
    """The ticks that have room beside those before them."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= _TICK:
            kept.append(tick)
    return kept


def short(number: float) -> str:
    """A number in a few letters: 12 k, 5.8 M."""
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
    """The next number of one digit, or with a half."""
    if highest <= 4:
        return 4
    power = 10 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if step * power >= highest)
