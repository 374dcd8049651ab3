"""`sgpipe stats` on 6 million synthetic relations in 120,000 images: seconds and memory.

python -m benchmarks.bench_stats [--images N] [--run FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.table import Table

from benchmarks.measure import cost_of_sgpipe, report
from sgpipe.records import SCHEMA
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import shard_name, write_copy

ROWS = 512
OBJECTS = 12
CAPTIONS = 5
TRIPLETS = 8
PAIRS = 30
RELATIONS = 50
CATEGORIES = ["person", "bottle", *(f"category {n}" for n in range(78))]
# Some at the head claim what the health checks look into.
_CLAIMS = [
    "near",
    "on",
    "next to",
    "behind",
    "holding",
    "in front of",
    "wearing",
    "under",
    "left of",
    "inside",
    "at",
]
PREDICATES = [
    *_CLAIMS,
    *("".join(letters) + "ing" for letters in islice(product("abcdefghijklm", repeat=3), 1989)),
]


def make_run(root: Path, images: int, seed: int = 0, captions: int = CAPTIONS) -> None:
    """Write a run of `images` rows, each with 50 relations and as many captions as `captions`
    says.
    """
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    manifest = Manifest.create(root, {"name": "made up", "fingerprint": "synthetic"})
    for start in range(0, images, ROWS):
        stop = min(start + ROWS, images)
        entry = ShardEntry("train", start, stop, shard_name("train", start, stop), "", 0)
        manifest.commit(write_copy(root, entry, _table(rng, start, stop - start, captions)))


def _table(rng: np.random.Generator, start: int, rows: int, captions: int) -> pa.Table:
    names = pa.array([str(start + row) for row in range(rows)])
    columns = {
        "image_id": names,
        "dataset": _same("made up", rows),
        "split": _same("train", rows),
        "file_name": names,
        "width": pa.array(np.full(rows, 640), pa.int32()),
        "height": pa.array(np.full(rows, 480), pa.int32()),
        "objects": _objects(rng, rows),
        "captions": _captions(rng, rows, captions),
        "triplets": _triplets(rng, rows),
        "pairs": _pairs(rng, rows),
        "relations": _relations(rng, rows),
        "status": _same("ok", rows),
        "error": pa.nulls(rows, pa.string()),
        "left_out": pa.array([dict.fromkeys(SCHEMA.field("left_out").type.names, 0)] * rows),
    }
    return pa.Table.from_arrays(
        [columns[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names], schema=SCHEMA
    )


def _objects(rng: np.random.Generator, rows: int) -> pa.Array:
    total = rows * OBJECTS
    kinds = _zipf(rng, len(CATEGORIES), total)
    corner = rng.uniform(0, 400, (total, 2))
    size = rng.uniform(4, 80, (total, 2))
    boxes = pa.ListArray.from_arrays(
        np.arange(0, 4 * total + 1, 4), np.hstack([corner, size]).ravel()
    )
    return _lists(
        rows,
        OBJECTS,
        category=pa.array(CATEGORIES).take(pa.array(kinds)),
        category_id=pa.array(kinds, pa.int32()),
        bbox=boxes,
        iscrowd=pa.array(np.zeros(total, bool)),
        origin=_same("annotation", total),
    )


def _captions(rng: np.random.Generator, rows: int, per_row: int) -> pa.Array:
    total = rows * per_row
    words = rng.integers(0, 1000, (total, 2))
    empty = pa.ListArray.from_arrays(np.zeros(total + 1, np.int32), pa.array([], pa.int32()))
    return _lists(
        rows,
        per_row,
        text=pa.array([f"A thing {a} is standing next to the thing {b}." for a, b in words]),
        scope=_same("image", total),
        boxes=empty,
    )


def _triplets(rng: np.random.Generator, rows: int) -> pa.Array:
    total = rows * TRIPLETS
    subjects, objects = (
        pa.array(CATEGORIES).take(pa.array(_zipf(rng, 80, total))) for _ in range(2)
    )
    predicates = _predicates(rng, total)
    return _lists(
        rows, TRIPLETS, subject=subjects, predicate=predicates, object=objects, subject_head=subjects,
        object_head=objects, predicate_lemma=predicates, caption=pa.array(rng.integers(0, CAPTIONS, total), pa.int32()),
        subject_category=subjects, object_category=objects,
    )  # fmt: skip


def _pairs(rng: np.random.Generator, rows: int) -> pa.Array:
    total = rows * PAIRS
    texts = pa.ListArray.from_arrays(np.arange(0, 2 * total + 1, 2), _predicates(rng, 2 * total))
    subject, object_ = _ends(rng, total)
    return _lists(rows, PAIRS, subject=subject, object=object_, predicates=texts)


def _relations(rng: np.random.Generator, rows: int) -> pa.Array:
    total = rows * RELATIONS
    subject, object_ = _ends(rng, total)
    confidence = pa.array(0.05 + 0.95 * rng.beta(0.6, 3, total).astype(np.float32))
    return _lists(
        rows,
        RELATIONS,
        subject=subject,
        object=object_,
        predicate=_predicates(rng, total),
        confidence=confidence,
        origin=_same("tagger", total),
    )


def _ends(rng: np.random.Generator, total: int) -> tuple[pa.Array, pa.Array]:
    subject = rng.integers(0, OBJECTS, total)
    return pa.array(subject, pa.int32()), pa.array(
        (subject + rng.integers(1, OBJECTS, total)) % OBJECTS, pa.int32()
    )


def _predicates(rng: np.random.Generator, total: int) -> pa.Array:
    return pa.array(PREDICATES).take(pa.array(_zipf(rng, len(PREDICATES), total)))


def _zipf(rng: np.random.Generator, kinds: int, total: int) -> np.ndarray:
    weights = 1 / np.arange(1, kinds + 1)
    return rng.choice(kinds, total, p=weights / weights.sum())


def _same(value: str, total: int) -> pa.Array:
    return pa.array([value] * total)


def _lists(rows: int, per_row: int, **columns: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(
        np.arange(0, rows * per_row + 1, per_row),
        pa.StructArray.from_arrays(list(columns.values()), list(columns)),
    )


@contextmanager
def run_of_options(description: str, captions: int = CAPTIONS) -> Iterator[tuple[Path, int]]:
    """The run that the command line asks for, made if it is not there, and its number of images."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--run", type=Path, help="keep the run here, and use the one that is here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.run or Path(temporary) / "run"
        if not root.exists():
            make_run(root, options.images, captions=captions)
        yield root, options.images


def main() -> None:
    with run_of_options(__doc__) as (root, images), tempfile.TemporaryDirectory() as temporary:
        title = f"{images:,} images, {images * RELATIONS:,} relations"
        table = Table("command", "seconds", "CPU seconds", "peak MB", title=title)
        for name, extra in (
            ("stats --json", ["--json"]),
            ("stats --html", ["--html", str(Path(temporary) / "r.html")]),
        ):
            table.add_row(name, *cost_of_sgpipe("stats", str(root), *extra))
    report(
        __doc__,
        table,
        "All cores work. In the way: all relations are read and grouped, which is DuckDB's work.",
    )


if __name__ == "__main__":
    main()
