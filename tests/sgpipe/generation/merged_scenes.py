"""Images and boxes of runs that are merged."""

from collections.abc import Sequence
from dataclasses import replace

from sgpipe.records import Box, Record, Relation

SIDE = 100


def scene(name: str, *boxes: Box, relations: Sequence[Relation] = (), **values: object) -> Record:
    record = Record(
        name, "made", "train", f"{name}.png", SIDE, SIDE, list(boxes), relations=list(relations)
    )
    return replace(record, **values)


def person(
    x: float = 10,
    y: float = 10,
    w: float = 20,
    h: float = 40,
    category: str = "person",
    **values: object,
) -> Box:
    return Box(category, 1, (x, y, w, h), **values)


def detected(*args: float, score: float = 0.5, **values: object) -> Box:
    return person(*args, origin="detector", score=score, **values)
