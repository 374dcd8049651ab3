"""Runs to export, and imports of what was exported."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from sgpipe.records import Box, Caption, Pair, Record, Relation, Triplet
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.vocabulary import category_names
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.console import Progress

WIDTH = 320
HEIGHT = 240
COCO_IDS = {name: number for number, name in category_names("coco").items()}
NAMES = ("person", "dog", "cup", "tennis racket")
PREDICATES = ("riding", "next to", 'über "links"', "on")


def records(
    count: int, seed: int = 0, *, crowds: bool = True, confidences: bool = True
) -> list[Record]:
    """Random images of two splits with everything that shards hold, but for error rows."""
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        split = rng.choice(["train", "val"])
        boxes = [
            _box(rng, rng.choice(NAMES), crowds and rng.random() < 0.2)
            for _ in range(rng.randint(0, 6))
        ]
        record = Record(
            str(10 + 3 * number), "coco", split, f"{number:012}.jpg", WIDTH, HEIGHT, boxes
        )
        record.captions = [Caption(f"a caption {n}, ü") for n in range(rng.randint(0, 2))]
        record.triplets = [
            Triplet("a man", "on", "a dog", "man", "dog", "on", 0) for _ in record.captions
        ]
        usable = [index for index, box in enumerate(boxes) if not box.iscrowd]
        for _ in range(rng.randint(0, 4) if usable else 0):
            ends = rng.choice(usable), rng.choice(usable)
            predicate = rng.choice(PREDICATES)
            record.pairs.append(Pair(*ends, [predicate]))
            # as exact as shards have it
            confidence = rng.randint(20, 99) / 128 if confidences else None
            record.relations.append(Relation(*ends, predicate, confidence))
        drawn.append(record)
    return drawn


def _box(rng: random.Random, name: str, crowd: bool) -> Box:
    x = rng.uniform(0, 200)
    y = float(rng.randint(0, 100))
    return Box(
        name,
        COCO_IDS[name],
        (x, y, rng.uniform(1, WIDTH - x - 1), rng.uniform(1, HEIGHT - y - 1)),
        crowd,
    )


def draw_images(folder: Path, drawn: Sequence[Record]) -> Path:
    folder.mkdir()
    for record in drawn:
        image = Image.new("RGB", (record.width, record.height), (int(record.image_id) % 256, 0, 0))
        image.save(folder / record.file_name)
    return folder


def imported(source: AnnotationSource, images: Path, out: Path) -> list[Record]:
    """The rows that `sgpipe import` makes of a source."""
    import_annotations(source, images, out, Progress(Console(quiet=True)))
    return list(iter_records(out))


def only(drawn: Sequence[Record], split: str, **changes: object) -> list[Record]:
    """The records of a split with other values in some columns."""
    return [replace(record, **changes) for record in drawn if record.split == split]
