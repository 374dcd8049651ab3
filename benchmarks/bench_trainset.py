"""The data path of training: how fast shards become batches, and whether memory grows with the
number of images.

    python -m benchmarks.bench_trainset [--images N] [--times T] [--full-size P]

Made-up runs of N and T·N images, of 7.5 objects and 10 relations on average, in shards of 64. Their
images are a few, used again and again. Each row of the first table is a process of its own that
scans the shards and reads a whole epoch of small images; peak is the most memory that it ever had,
scan and first step are how long these took, where the first step is the last one of an epoch, as
after an interruption. The second table is how fast images of 640x480 are read, augmented as RLIPv2
does, and put into batches of 16.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from PIL import Image
from rich.table import Table

from benchmarks.measure import report
from sgpipe.records import Box, Record, Relation
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.training.data.scan import scan_training
from sgpipe.training.data.stream import ShardFeed, StepStream
from sgpipe.training.recipe import DataConfig, ShardsConfig

BATCH = 32
MAX_RELATIONS = 100
ROWS_PER_SHARD = 64
DISTINCT = 32
SMALL = {
    "short_sides": (32, 40),
    "crop_short_sides": (36,),
    "crop_range": (24, 32),
    "long_side": 64,
}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of one process; `rows`: that can be trained on."""

    rows: int
    scan: float
    first_step: float
    epoch: float
    peak: int


def records(images: int, size: tuple[int, int]) -> Iterator[Record]:
    rng = random.Random(images)
    for number in range(images):
        record = Record(str(number), "made-up", "train", f"{number % DISTINCT}.jpg", *size)
        for _ in range(rng.randint(1, 14)):
            left = rng.uniform(0, size[0] / 2)
            top = rng.uniform(0, size[1] / 2)
            name = f"object {int(rng.paretovariate(0.7)) % 5000}"
            record.objects.append(
                Box(name, 1, (left, top, rng.uniform(4, size[0] / 2), rng.uniform(4, size[1] / 2)))
            )
        for _ in range(rng.randint(0, 20)):
            ends = (rng.randrange(len(record.objects)) for _ in range(2))
            name = f"relation {int(rng.paretovariate(0.7)) % 5000}"
            record.relations.append(Relation(*ends, name, rng.uniform(0.05, 1)))
        yield record


def make_run(root: Path, images: int, size: tuple[int, int], embedded: bool) -> None:
    """A run of made-up images, whose images are next to or in the shards."""
    folder = root / "images"
    folder.mkdir(parents=True)
    contents = {f"{number}.jpg": _image(number, size) for number in range(DISTINCT)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = Manifest.create(root, {"fingerprint": "made-up", "images": {"train": str(folder)}})
    rows = records(images, size)
    for start in range(0, images, ROWS_PER_SHARD):
        part = list(islice(rows, ROWS_PER_SHARD))
        inside = [contents[record.file_name] for record in part] if embedded else None
        name = shard_name("train", start, start + len(part))
        manifest.commit(write_shard(root, name, "train", start, part, {}, inside))


def _image(seed: int, size: tuple[int, int]) -> bytes:
    file = BytesIO()
    noise = random.Random(seed).randbytes(size[0] // 8 * (size[1] // 8) * 3)
    Image.frombytes("RGB", (size[0] // 8, size[1] // 8), noise).resize(size).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


def read_epoch(root: Path) -> Measured:
    """Scan a run and read all of its (small) images."""
    data = DataConfig.model_validate({"train": [ShardsConfig(shards=root)], "augment": SMALL})
    scan_training(data)  # imports what it needs
    started = time.perf_counter()
    trainset = scan_training(data)
    scanned = time.perf_counter()
    feed = ShardFeed(StepStream(trainset, data, BATCH, 0, MAX_RELATIONS))
    next(feed.stream.steps(0, feed.steps_per_epoch - 1))
    stepped = time.perf_counter()
    with feed.read() as steps:
        for _ in islice(steps, feed.steps_per_epoch):
            pass
    ended = time.perf_counter()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Measured(trainset.rows, scanned - started, stepped - scanned, ended - stepped, peak)


def read_images(root: Path, count: int, threads: int) -> tuple[float, float]:
    """Images per second, and CPU seconds per image, at full size and augmentation, after a first
    batch.
    """
    data = DataConfig(train=(ShardsConfig(shards=root),), threads=threads)
    feed = ShardFeed(StepStream(scan_training(data), data, 16, 0, MAX_RELATIONS))
    with feed.read() as steps:
        next(steps)
        started = time.perf_counter()
        cpu = time.process_time()
        read = sum(len(batch) for parts in islice(steps, count // 16) for batch in parts)
        return read / (time.perf_counter() - started), (time.process_time() - cpu) / read


def alone(work: Callable[..., Result], *arguments: object) -> Result:
    """The result of a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument(
        "--full-size", type=int, default=256, help="read at full size, per number of threads"
    )
    arguments = parser.parse_args()
    columns = (
        "stored",
        "images",
        "usable",
        "scan, images/s",
        "first step, ms",
        "epoch, images/s",
        "peak, MB",
    )
    memory = Table(*columns, title=f"a whole epoch of small images, batches of {BATCH}")
    speed = Table(
        "threads",
        "images/s",
        "CPU, ms/image",
        title=f"640x480, RLIPv2's augmentation, {os.cpu_count()} cores",
    )
    with TemporaryDirectory() as place:
        for embedded in (False, True):
            for images in (arguments.images, arguments.images * arguments.times):
                root = Path(place) / f"{embedded}-{images}"
                alone(make_run, root, images, (64, 48), embedded)
                found = alone(read_epoch, root)
                figures = (
                    images / found.scan,
                    found.first_step * 1e3,
                    found.rows / found.epoch,
                    found.peak / 1e6,
                )
                where = "in the shards" if embedded else "in a folder"
                memory.add_row(
                    where,
                    f"{images:,}",
                    f"{found.rows:,}",
                    *(f"{figure:,.0f}" for figure in figures),
                )
        root = Path(place) / "large"
        alone(make_run, root, 512, (640, 480), False)
        for threads in (1, 2, 4):
            rate, cpu = alone(read_images, root, arguments.full_size, threads)
            speed.add_row(str(threads), f"{rate:,.0f}", f"{cpu * 1e3:,.0f}")
    report(
        __doc__,
        memory,
        speed,
        "Memory does not grow with the number of images, except for their names. Nearly all of the"
        " time in the second table goes into decoding, resizing and jittering the images.",
    )


if __name__ == "__main__":
    main()
