"""`sgpipe merge` of two synthetic runs over the same images: CPU seconds and memory, and merges
that are killed.

One run is annotated (2 to 12 boxes, up to 8 relations, 5 captions), the other one has detected
boxes a few pixels from most of these, relations of a tagger, and captions; its images are in
another order. The killed merges, of a tenth of the images, end by SIGKILL at random moments, and
are run again until they are done.

python -m benchmarks.bench_merge [--images N] [--kills N]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.table import Table

from benchmarks.measure import cost_of_sgpipe, report
from sgpipe.records import SCHEMA, Box, Caption, Pair, Record, Relation, Triplet, to_table
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import count_rows, shard_name, write_copy

ROWS = 512
SCENES = 2048
CLASSES = ["person", "dog", "car", "chair", "cup", "bottle", "book", "tie"]
PREDICATES = ["on", "holding", "left of", "right of", "near", "behind", "wearing", "under"]


def scene(number: int, detected: bool) -> Record:
    """A random image, as annotated or as detected."""
    rng = random.Random(f"scene {number}")
    detector_rng = random.Random(f"detected {number}")
    objects = [
        Box(
            rng.choice(CLASSES),
            1,
            (rng.uniform(0, 400), rng.uniform(0, 300), rng.uniform(20, 200), rng.uniform(20, 150)),
        )
        for _ in range(rng.randint(2, 12))
    ]
    ends = [
        (rng.randrange(len(objects)), rng.randrange(len(objects))) for _ in range(rng.randint(0, 8))
    ]
    relations = [Relation(*pair, rng.choice(PREDICATES)) for pair in ends]
    captions = [
        Caption(f"a {rng.choice(CLASSES)} {rng.choice(PREDICATES)} a {rng.choice(CLASSES)}")
        for _ in range(5)
    ]
    record = Record("", "coco", "train", "", 640, 480, objects, captions, relations=relations)
    if detected:
        for box in objects:
            x, y, w, h = box.bbox
            box.bbox = (x, y, w + detector_rng.uniform(-2, 2), h + detector_rng.uniform(-2, 2))
            box.origin = "detector"
            box.score = detector_rng.random()
        order = detector_rng.sample(range(len(objects)), len(objects))
        record.objects = [objects[index] for index in order]
        new = {index: place for place, index in enumerate(order)}
        remaining = [relation for relation in relations if detector_rng.random() < 0.7]
        record.relations = [
            Relation(new[r.subject], new[r.object], r.predicate, detector_rng.random(), "tagger")
            for r in remaining
        ]
        record.relations += [
            Relation(
                detector_rng.randrange(len(objects)),
                detector_rng.randrange(len(objects)),
                detector_rng.choice(PREDICATES),
                detector_rng.random(),
                "tagger",
            )
            for _ in range(4)
        ]
        record.pairs = [
            Pair(relation.subject, relation.object, [relation.predicate])
            for relation in record.relations
        ]
        record.triplets = [Triplet("a man", "on", "a dog", "man", "dog", "on", 0, "person", "dog")]
    return record


def make_run(root: Path, images: int, detected: bool) -> None:
    """Write a run of `images` rows, those of a detected one in random order."""
    scenes = to_table(scene(number, detected) for number in range(SCENES))
    (root / "data").mkdir(parents=True)
    manifest = Manifest.create(
        root, {"name": root.name, "fingerprint": root.name, "images": {"train": "/images"}}
    )
    order = np.random.default_rng(0).permutation(images) if detected else np.arange(images)
    for start in range(0, images, ROWS):
        numbers = order[start : start + ROWS]
        rows = scenes.take(numbers % SCENES)
        for name, values in (
            ("image_id", map(str, numbers)),
            ("file_name", (f"{number:012}.jpg" for number in numbers)),
        ):
            rows = rows.set_column(
                SCHEMA.names.index(name), SCHEMA.field(name), pa.array(list(values))
            )
        stop = start + len(numbers)
        entry = ShardEntry("train", start, stop, shard_name("train", start, stop), "", 0)
        manifest.commit(write_copy(root, entry, rows, count_rows(rows)))


def digest(root: Path) -> str:
    """Return the hash of all shards."""
    return hashlib.sha256(
        b"".join(file.read_bytes() for file in sorted((root / "data").iterdir()))
    ).hexdigest()


def killed(folder: Path, arguments: list[str], kills: int) -> tuple[int, int]:
    """Merge with kills at random moments; return how many there were, and how many of them after a
    shard.
    """
    command = [
        sys.executable,
        "-c",
        "from sgpipe.cli.main import main; main()",
        "-q",
        *arguments,
        "--out",
        str(folder),
    ]
    rng = random.Random(0)
    times = 0
    later = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list((folder / "data").glob("*.parquet")))
        try:
            if times % 2:  # every second one waits for a shard first
                while (
                    process.poll() is None
                    and len(list((folder / "data").glob("*.parquet"))) == before
                ):
                    time.sleep(0.05)
            if (
                process.wait(None if times == kills else rng.uniform(0, 1 if times % 2 else 12))
                == 0
            ):
                return times, later
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            times += 1
            later += any((folder / "data").glob("*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    table = Table(
        "images", "seconds", "CPU seconds", "peak MB", title="Two runs, all images in both"
    )
    with tempfile.TemporaryDirectory() as name:
        for images in (args.images // 10, args.images):
            place = Path(name) / str(images)
            runs = [place / kind for kind in ("annotated", "detected")]
            for run in runs:
                make_run(run, images, run.name == "detected")
            arguments = ["merge", *map(str, runs)]
            table.add_row(f"{images:,}", *cost_of_sgpipe(*arguments, "--out", str(place / "out")))
        small = Path(name) / str(args.images // 10)
        times, later = killed(
            small / "killed",
            ["merge", *(str(small / kind) for kind in ("detected", "annotated"))],
            args.kills,
        )
        is_equal = (
            "the same files" if digest(small / "killed") == digest(small / "out") else "OTHER FILES"
        )
    remark = (
        f"Killed {times} times, {later} of them after the first shard, with the runs in the other"
        f" order: {is_equal}."
    )
    report(__doc__ or "", table, remark)


if __name__ == "__main__":
    main()
