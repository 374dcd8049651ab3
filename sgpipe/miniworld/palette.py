"""Named colours, each in several tones, so that a caption may say "a red car"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from numpy.random import Generator

from sgpipe.miniworld.shapes import RGB

_TONES: dict[str, tuple[RGB, ...]] = {
    "red": ((206, 48, 45), (225, 70, 60), (184, 34, 48)),
    "orange": ((236, 131, 42), (242, 148, 66), (222, 112, 30)),
    "yellow": ((246, 205, 62), (250, 216, 94), (236, 190, 40)),
    "green": ((58, 142, 82), (84, 164, 78), (32, 122, 92)),
    "blue": ((52, 102, 186), (72, 132, 212), (40, 78, 156)),
    "purple": ((124, 78, 168), (146, 96, 186), (104, 62, 142)),
    "pink": ((238, 132, 166), (244, 152, 184), (226, 106, 148)),
    "brown": ((134, 86, 52), (152, 102, 64), (112, 70, 44)),
    "black": ((48, 48, 54), (60, 58, 64), (38, 40, 48)),
    "white": ((240, 238, 232), (246, 246, 246), (232, 230, 222)),
    "gray": ((138, 142, 148), (156, 158, 162), (118, 122, 130)),
}

SKIN: tuple[RGB, ...] = ((248, 212, 180), (232, 184, 146), (198, 144, 104), (146, 98, 68), (104, 68, 48))
HAIR: tuple[RGB, ...] = (
    (44, 34, 32),
    (92, 60, 38),
    (164, 108, 56),
    (222, 182, 98),
    (176, 76, 40),
    (120, 120, 124),
)
CLOTHES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
TROUSERS: tuple[RGB, ...] = (
    (52, 62, 92),
    (74, 96, 140),
    (58, 56, 60),
    (104, 92, 76),
    (70, 84, 70),
    (120, 62, 58),
)


class Colour(NamedTuple):
    """A tone and the name people give it."""

    name: str
    rgb: RGB


def pick_colour(rng: Generator, names: Sequence[str]) -> Colour:
    """One of the named colours in one of its tones, slightly varied."""
    name = names[int(rng.integers(len(names)))]
    return Colour(name, vary(rng, pick(rng, _TONES[name]), 8))


def pick(rng: Generator, colours: Sequence[RGB]) -> RGB:
    return colours[int(rng.integers(len(colours)))]


def vary(rng: Generator, colour: RGB, amount: int) -> RGB:
    """The colour with each channel moved by at most `amount`."""
    red, green, blue = (
        int(min(max(channel + move, 0), 255))
        for channel, move in zip(colour, rng.integers(-amount, amount + 1, 3), strict=True)
    )
    return red, green, blue
