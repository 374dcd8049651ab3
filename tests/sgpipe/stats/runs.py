"""Records whose labels say what a test needs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from sgpipe.records import Box, Caption, Pair, Record, Relation, Triplet
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import write_shard
from tests.sgpipe.training.data.runs import cut_shards, make_records

PERSON, DOG, CUP = Box("person", 1, (10, 10, 40, 80)), Box("dog", 2, (60, 40, 50, 40)), Box("cup", 3, (30, 30, 10, 10))


def scene(
    image_id: str = "0",
    relations: Sequence[tuple[int, str, int] | tuple[int, str, int, float | None]] = (),
    objects: Sequence[Box] = (PERSON, DOG, CUP),
    captions: Sequence[str] = (),
    dataset: str = "drawn",
) -> Record:
    """An image of 320 × 240 pixels; relations as subject, predicate, object, and perhaps the confidence."""
    made = [Relation(r[0], r[2], r[1], r[3] if len(r) > 3 else None) for r in relations]
    texts = [Caption(text) for text in captions]
    return Record(image_id, dataset, "val", f"{image_id}.png", 320, 240, list(objects), texts, relations=made)


def make_shards(root: Path, records: Sequence[Record], rows: int = 200) -> Path:
    """A run without images."""
    root.mkdir(parents=True)
    manifest = Manifest.create(root, {"name": "drawn", "fingerprint": "drawn"})
    for shard in cut_shards(records, rows):
        manifest.commit(write_shard(root, *shard, {}))
    return root


def labelled_records(count: int, seed: int = 0) -> list[Record]:
    """Random records with all that the stages fill."""
    rng = random.Random(seed)
    records = make_records(count, seed)
    for record in records:
        record.split = rng.choice(["train", "val"])
        record.captions = [Caption(f"a caption {rng.randrange(30)}") for _ in range(rng.randint(0, 3))]
        for _ in record.captions:
            names = ("person", rng.choice([None, "dog"]))
            record.triplets.append(Triplet("a man", "on", "a dog", "man", "dog", "on", 0, *names))
        for _ in range(rng.randint(0, 2) if record.objects else 0):
            record.pairs.append(Pair(0, len(record.objects) - 1, ["on", "near"][: rng.randint(1, 2)]))
    return records
