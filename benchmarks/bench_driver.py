"""`sgpipe generate` of 10 million images: memory and time of the driver alone

    python -m benchmarks.bench_driver [--images 10000000] [--done 0.9] [--units 100000]

The source index has 8 boxes per image. Workers do nothing: they read no records and write empty
files as shards. So all that is left is the driver. Begin: seconds from the start of the command to
the first unit that Ray gets, and to the first shard, both without Ray's own start. Peak: the
driver's resident memory until `--units` units are committed; its libraries: that of a run of one
unit. Resumed: with `--done` of the shards there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from unittest import mock

import pyarrow as pa
from rich.table import Table

from benchmarks.bench_scale import BOXES, make_annotations, recipe_of
from benchmarks.measure import report
from sgpipe.recipe import Resources
from sgpipe.records import Record
from sgpipe.sources.opening import open_source
from sgpipe.stages.base import Stage
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import shard_name
from sgpipe.storage.source_index import write_index

UNIT = 512
_SLICE = 8192  # images
_SHARD_BYTES = 256_000
_COUNTS = (
    "images",
    "errors",
    "boxes",
    "captions",
    "triplets",
    "matched_triplets",
    "pairs",
    "relations",
)
_STAGES = ("caption", "parse", "pair", "tag")


@dataclass
class Idle(Stage):
    """A stage that does nothing."""

    name: str = "idle"
    resources: Resources = field(default_factory=Resources)

    def __call__(self, records: list[Record]) -> list[Record]:
        return records


@dataclass(frozen=True)
class NoRecords:
    """In the place of a `UnitReader`."""

    storage: object
    indexes: dict[str, str]
    roots: object

    def __call__(self, unit: object) -> list[Record]:
        return []


@dataclass(frozen=True)
class EmptyShards:
    """In the place of a `UnitWriter`: describes a shard, and makes an empty file for it in a
    folder.
    """

    storage: object
    claim: object = None

    def __call__(self, unit: object, records: list[Record], usage: object) -> ShardEntry:
        entry = described(unit.split, unit.start, unit.stop)  # type: ignore[attr-defined]
        if isinstance(self.storage, Path):
            (self.storage / entry.file).parent.mkdir(exist_ok=True)
            (self.storage / entry.file).touch()
        return entry


def described(split: str, start: int, stop: int) -> ShardEntry:
    """As long as the description of a real shard."""
    counts = dict.fromkeys(_COUNTS, (start % 97 + 7) * (stop - start)) | {
        "images_with_relations": stop - start
    }
    seconds = dict.fromkeys(_STAGES, start % 1013 / 7)
    name = shard_name(split, start, stop)
    return ShardEntry(split, start, stop, name, f"{start:064x}", _SHARD_BYTES, counts, seconds)


class Watch:
    """In the place of the progress bar: shards committed and when."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def say(self, message: str) -> None:
        """Nobody listens."""

    @contextmanager
    def images(self, total: int | None, work: str = "") -> Iterator[Callable[..., None]]:
        yield self._advance

    def _advance(self, images: int, counts: Mapping[str, int], seconds: float = 0.0) -> None:
        self.times.append(time.perf_counter())


def label(folder: Path, out: Path, limit: int, units: int) -> None:
    """The body of the process that is measured: prints what it saw as JSON."""
    from sgpipe.generation import ray_engine, run

    watch = Watch()
    ray_seconds = [0.0]
    began = [0.0]
    start_ray = ray_engine.start_ray
    run_units = ray_engine.RayEngine.run

    def timed_start(*arguments: object) -> None:
        at = time.perf_counter()
        start_ray(*arguments)  # type: ignore[arg-type]
        ray_seconds[0] += time.perf_counter() - at

    def first_units(*arguments: object) -> Iterator[ShardEntry]:
        began[0] = time.perf_counter()
        with closing(run_units(*arguments)) as shards:  # type: ignore[arg-type]
            yield from islice(shards, units)

    with (
        mock.patch.object(run, "check_names"),  # there are no images
        mock.patch.object(run, "build_stages", return_value=[Idle()]),
        mock.patch.object(run, "UnitReader", NoRecords),
        mock.patch.object(run, "UnitWriter", EmptyShards),
        mock.patch.object(ray_engine, "start_ray", timed_start),
        mock.patch.object(ray_engine.RayEngine, "run", first_units),
    ):
        start = time.perf_counter()
        run.generate(recipe_of(folder, limit, 2, UNIT), out, watch)  # type: ignore[arg-type]
    start += ray_seconds[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = {
        "plan": began[0] - start,
        "first": watch.times[0] - start,
        "all": watch.times[-1] - watch.times[0],
    }
    print(json.dumps(seconds | {"peak": peak, "shards": len(watch.times)}))


def make_index(folder: Path, out: Path, images: int) -> None:
    """The source index of `images` images, without their annotation file: as if it had been
    read.
    """
    make_annotations(folder, 1)
    path = out / ".sgpipe" / "index-train.arrow"
    path.parent.mkdir(parents=True)
    small = open_source(recipe_of(folder, 1, 2).source, "train", path)
    [record] = small.records(0, 1)
    assert len(record.objects) == BOXES
    with pa.memory_map(str(small.parts[0])) as file:
        table = pa.concat_tables(repeat(pa.ipc.open_file(file).read_all(), _SLICE)).combine_chunks()
    sizes = [min(_SLICE, images - at) for at in range(0, images, _SLICE)]
    meta = {key: value for key, value in small.meta.items() if key != "crc32"}
    write_index(path, (table.slice(0, size) for size in sizes), lambda: meta)


def finish_some(out: Path, images: int, share: float) -> None:
    """As if a run had been stopped: the manifest and the files of the first shards, which are
    holes.
    """
    old = Manifest.load(out)
    for path in (out / "data").iterdir():
        path.unlink()
    starts = range(0, int(images * share), UNIT)
    shards = [described("train", start, min(start + UNIT, images)) for start in starts]
    for shard in shards:
        (out / shard.file).touch()
        os.truncate(out / shard.file, shard.bytes)
    Manifest(out, old.run, shards, 0).rewrite()


def _measured(folder: Path, out: Path, limit: int, units: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_driver", "--label", str(folder), str(out)]
    command += ["--images", str(limit), "--units", str(units)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = (line for line in done.stdout.splitlines() if line.startswith("{"))  # not what Ray says
    figures: dict[str, float] = json.loads(next(rows))
    return figures


def measure(images: int, share: float, units: int) -> Iterator[list[str]]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        out = Path(temporary) / "out"
        make_index(folder, out, images)
        libraries = _measured(folder, out, UNIT, 1)["peak"]
        for name, done in (("begun", 0.0), (f"resumed at {share:.0%}", share)):
            finish_some(out, images, done)
            figures = _measured(folder, out, images, units)
            above = figures["peak"] - libraries
            cells = [
                f"{figures['plan']:.1f}",
                f"{figures['first']:.1f}",
                f"{figures['shards']:,}",
                f"{figures['all']:.0f}",
            ]
            yield [name, *cells, f"{above:,.0f}", f"{libraries:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--done", type=float, default=0.9)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--label", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.label:
        label(*options.label, options.images, options.units)
        return
    columns = (
        "run",
        "planned after s",
        "first shard after s",
        "units committed",
        "in s",
        "peak MB above libraries",
    )
    table = Table(*columns, "libraries MB")
    for row in measure(options.images, options.done, options.units):
        table.add_row(*row)
    report(__doc__, table)


if __name__ == "__main__":
    main()
