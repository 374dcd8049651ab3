"""Small runs with shards and images, generated from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from sgpipe.records import Box, Record, Relation
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.training.recipe import DataConfig, ShardsConfig
from tests.values import values_of

NAMES = ("person", "dog", "cup", "left hand", "car", "tree")
PREDICATES = ("on", "left of", "holding", "next to", "under")
SIZE = (24, 16)


def make_records(count: int, seed: int = 0, split: str = "train") -> list[Record]:
    """Records, some of them errors or without relations; some objects are crowds."""
    rng = random.Random(seed)
    return [_record(rng, f"{seed}-{number}", split) for number in range(count)]


def _record(rng: random.Random, image_id: str, split: str) -> Record:
    record = Record(image_id, "drawn", split, f"{image_id}.png", *SIZE)
    if rng.random() < 0.1:
        record.fail("caption", "image file not found")
        return record
    for _ in range(rng.randint(1, 5)):
        left = rng.uniform(0, 16)
        top = rng.uniform(0, 10)
        box = (left, top, rng.uniform(2, 24 - left), rng.uniform(2, 16 - top))
        record.objects.append(Box(rng.choice(NAMES), 1, box, rng.random() < 0.1))
    for _ in range(rng.randint(0, 4)):
        ends = (rng.randrange(len(record.objects)) for _ in range(2))
        confidence = rng.choice([None, 0.05, 0.1, 0.2, 0.7, 1.0])
        record.relations.append(Relation(*ends, rng.choice(PREDICATES), confidence))
    return record


def plain_record(
    image_id: str, predicate: str = "on", confidence: float | None = None, **changes: object
) -> Record:
    """A record of a person and a dog with one relation."""
    values = {
        "split": "train",
        "file_name": f"{image_id}.png",
        "width": SIZE[0],
        "height": SIZE[1],
        **changes,
    }
    boxes = [Box("person", 1, (2, 2, 8, 8)), Box("dog", 2, (12, 4, 8, 10))]
    return Record(
        image_id,
        "drawn",
        objects=boxes,
        relations=[Relation(0, 1, predicate, confidence)],
        **values,
    )


def make_run(
    root: Path,
    records: Sequence[Record],
    *,
    rows: int = 5,
    embedded: bool = False,
    images: Path | None = None,
    spoilt: Mapping[str, bytes | None] = MappingProxyType({}),
    run: dict[str, Any] | None = None,
) -> ShardsConfig:
    """A run with images in `images` (default: root/images) or its shards; `spoilt`: wrong contents,
    None: no file.
    """
    folder = images or root / "images"
    for place in (root, folder):
        place.mkdir(parents=True, exist_ok=True)
    header = {
        "fingerprint": "drawn",
        "images": {record.split: str(folder) for record in records},
        **(run or {}),
    }
    manifest = Manifest.create(root, header)
    for shard in cut_shards(records, rows):
        contents = (
            [spoilt.get(record.image_id, image(record)) for record in shard[-1]]
            if embedded
            else None
        )
        manifest.commit(write_shard(root, *shard, {}, contents))
    for record in records if not embedded else ():
        content = spoilt.get(record.image_id, image(record))
        if content is not None:
            (folder / record.file_name).write_bytes(content)
    return ShardsConfig(shards=root)


def cut_shards(
    records: Sequence[Record], rows: int
) -> Iterator[tuple[str, str, int, list[Record]]]:
    """The name, the split, the first row and the records of each shard."""
    for split in dict.fromkeys(values_of(records, "split")):
        members = [record for record in records if record.split == split]
        for start in range(0, len(members), rows):
            part = members[start : start + rows]
            yield shard_name(split, start, start + len(part)), split, start, part


def image(record: Record) -> bytes:
    """A PNG of noise that depends on the image id."""
    file = BytesIO()
    pixels = random.Random(record.image_id).randbytes(record.width * record.height * 3)
    Image.frombytes("RGB", (record.width, record.height), pixels).save(file, "PNG")
    return file.getvalue()


def data(*configs: ShardsConfig, **changes: object) -> DataConfig:
    """Settings for small images."""
    small = {
        "short_sides": (12, 16),
        "crop_short_sides": (14,),
        "crop_range": (6, 12),
        "long_side": 32,
    }
    values = {
        "train": configs,
        "val": configs,
        "augment": small,
        "short_side": 32,
        "long_side": 48,
        "shuffle": 3,
    }
    return DataConfig.model_validate({**values, "negative_texts": 6, **changes})
