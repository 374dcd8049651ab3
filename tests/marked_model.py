"""Images with known relations, and a scripted model that is shown them with numbered boxes and errs
at a given rate.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sgpipe.records import Box, Record
from tests.endpoint_server import shown_image

PREDICATES = ("riding", "holding", "sitting on", "in front of", "next to", "under")
NAMES = ("person", "horse", "dog", "bench", "car")
Triple = tuple[int, str, int]  # indices of objects in their record


@dataclass
class MarkedWorld:
    """Images without two alike, in a folder; the model states another relation in place of a share
    `rate` of them.
    """

    folder: Path
    number: int
    rate: float = 0.0
    seed: int = 0
    records: list[Record] = field(default_factory=list)
    truth: dict[str, list[Triple]] = field(default_factory=dict)  # by image id

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for index in range(self.number):
            noise = random.Random(index)
            name = f"{index:04d}"
            pixels = np.random.default_rng(index).integers(0, 255, (3, 4, 3), np.uint8)
            Image.fromarray(pixels).resize((96, 72), Image.Resampling.NEAREST).save(
                self.folder / f"{name}.png"
            )
            boxes = []
            for _ in range(noise.randint(2, 7)):
                x = noise.randrange(60)
                y = noise.randrange(40)
                size = (float(noise.randint(1, 96 - x)), float(noise.randint(1, 72 - y)))
                number = noise.randrange(len(NAMES))
                boxes.append(Box(NAMES[number], number + 1, (float(x), float(y), *size)))
            self.records.append(Record(name, "coco", "val", f"{name}.png", 96, 72, boxes))
            self.truth[name] = [_triple(noise, len(boxes)) for _ in range(noise.randint(0, 5))]

    def options(self) -> list[str]:
        """The images and their annotations, as options of `sgpipe generate coco`."""
        lists: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
        for number, record in enumerate(self.records):
            lists["images"].append(
                {"id": number, "file_name": record.file_name, "width": 96, "height": 72}
            )
            for box in record.objects:
                annotation = {
                    "image_id": number,
                    "category_id": box.category_id,
                    "bbox": list(box.bbox),
                    "iscrowd": 0,
                }
                lists["annotations"].append(annotation)
        lists["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
        file = self.folder.with_suffix(".json")
        file.write_text(json.dumps(lists), "utf-8")
        return ["--images", str(self.folder), "--annotations", str(file), "--split", "val"]

    def stated(self, record: Record) -> list[Triple]:
        """What the model states of an image, the same each time."""
        noise = random.Random(f"{self.seed} {record.image_id}")
        wrong = (noise.random() < self.rate for _ in self.truth[record.image_id])
        triples = zip(self.truth[record.image_id], wrong, strict=True)
        return [_triple(noise, len(record.objects)) if errs else triple for triple, errs in triples]

    def expected(self, record: Record) -> dict[tuple[int, int], set[str]]:
        """The predicates of each pair that come of it."""
        pairs: dict[tuple[int, int], set[str]] = {}
        for subject, predicate, object_ in self.stated(record):
            pairs.setdefault((subject, object_), set()).add(predicate)
        return pairs

    def shown(self, body: dict[str, Any]) -> Record:
        """The record whose image a request shows."""
        image = shown_image({"messages": body["messages"][:1]})
        assert image is not None
        small = _small(image)
        distances = [
            np.abs(_small(Image.open(self.folder / r.file_name)) - small).sum()
            for r in self.records
        ]
        return self.records[int(np.argmin(distances))]

    def __call__(self, body: dict[str, Any]) -> list[str]:
        """An answer of the server, in the numbers of the marks: the largest box is 1."""
        if isinstance(body["messages"][0]["content"], str):
            return ["yes"]
        record = self.shown(body)
        order = sorted(
            range(len(record.objects)), key=lambda index: _size_first(record.objects[index])
        )
        lines = "\n".join(
            f"{number}: {record.objects[index].category}" for number, index in enumerate(order, 1)
        )
        if f"\n{lines}\n" not in body["messages"][0]["content"][1]["text"]:
            return [json.dumps({"relations": []})]  # the example before a run
        number = {index: at for at, index in enumerate(order, 1)}
        stated = [
            {"subject": number[s], "predicate": text, "object": number[o]}
            for s, text, o in self.stated(record)
        ]
        return [json.dumps({"relations": stated})] * body.get("n", 1)


def _triple(noise: random.Random, boxes: int) -> Triple:
    subject, object_ = noise.sample(range(boxes), 2)
    return subject, noise.choice(PREDICATES), object_


def _small(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB").resize((16, 12), Image.Resampling.BOX), float)


def _size_first(box: Box) -> tuple[float, tuple[float, ...], str]:
    return -box.bbox[2] * box.bbox[3], box.bbox, box.category
