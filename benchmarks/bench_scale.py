"""`sgpipe generate` with synthetic labels and a growing number of images: the cost of everything
but the models.

    python -m benchmarks.bench_scale [--images 10000 100000 1000000] [--actors 2]

Images have 8 boxes, 10 captions, 10 triplets and 12 relations, whose texts repeat only after 40,009
others. CPU time is that of all processes of the run, from the first shard to the last, also by
quarters of the run. Driver: its peak resident memory, of which the libraries take 0.7 GB. Reading:
that of the process that reads the annotations first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from unittest import mock

from rich.table import Table

from benchmarks.measure import report
from sgpipe.recipe import MINIWORLD, Recipe, Resources, load_recipe
from sgpipe.records import Caption, Pair, Record, Relation, Triplet
from sgpipe.stages.base import Stage

BOXES = 8
CAPTIONS = 10
TRIPLETS = 10
PAIRS = 12
_UNITS_BETWEEN_LOOKS = 4
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class MadeUp(Stage):
    """As many captions, triplets, pairs and relations as a real image has."""

    name: str = "made up"
    resources: Resources = field(default_factory=Resources)

    def setup(self) -> None:
        """Texts and numbers that repeat only after 40,009 others."""
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(3000)]
        self.texts = [" ".join(rng.choices(words, k=9)) for _ in range(40_009)]
        self.predicates = [" ".join(rng.choices(words, k=2)) for _ in range(400)]
        self.confidences = [rng.random() for _ in self.texts]

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            at = int(record.image_id) * PAIRS
            predicates = [self.predicates[(at + k) * k % 397] for k in range(PAIRS)]
            record.captions = [Caption(self.texts[(at + k) % 40_009]) for k in range(CAPTIONS)]
            record.triplets = [
                Triplet(
                    "a dog",
                    predicates[k],
                    "a bench",
                    "dog",
                    "bench",
                    predicates[k],
                    k,
                    "dog",
                    "bench",
                )
                for k in range(TRIPLETS)
            ]
            places = [(k % BOXES, (k + 1 + k // BOXES) % BOXES) for k in range(PAIRS)]
            record.pairs = [Pair(*place, predicates[k : k + 3]) for k, place in enumerate(places)]
            record.relations = [
                Relation(*place, predicates[k], self.confidences[(at + k) % 40_009])
                for k, place in enumerate(places)
            ]
        return records


@dataclass
class Looks:
    """In the place of the progress bar: at (images done, seconds, CPU-seconds of the run's
    processes).
    """

    points: list[tuple[int, float, float]] = field(default_factory=list)
    units: int = 0
    done: int = 0
    used: dict[int, float] = field(default_factory=dict)

    def say(self, message: str) -> None:
        """Nobody listens."""

    @contextmanager
    def images(self, total: int | None, work: str = "") -> Iterator[Callable[..., None]]:
        yield self._advance

    def _advance(self, images: int, counts: Mapping[str, int], seconds: float = 0.0) -> None:
        self.done += images
        self.units += 1
        if self.units % _UNITS_BETWEEN_LOOKS == 1:
            self.used.update({pid: _cpu_seconds(pid) for pid in _group()})
            self.points.append((self.done, time.perf_counter(), sum(self.used.values())))


def _group() -> list[int]:
    """The processes of this one's session; Ray leaves its own in it."""
    session = os.getsid(0)
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                processes.append(int(entry.name))
        except ProcessLookupError:
            continue
    return processes


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def recipe_of(folder: Path, limit: int, cpus: int, unit_size: int | None = None) -> Recipe:
    """Labels the images of `make_annotations` without models."""
    files = {name: folder / f"{name}.json" for name in ("annotations", "captions")}
    settings = {
        "source.splits": {"train": {"images": folder, **files}},
        "caption.captioner": None,
        "tag.tagger": MINIWORLD,  # not loaded
        "limit": limit,
        "engine.cpus": cpus,
        "engine.kind": "ray",
    }
    return load_recipe(
        "coco", settings if unit_size is None else settings | {"engine.unit_size": unit_size}
    )


def label(folder: Path, limit: int, actors: int) -> None:
    """The body of the process that is measured: prints what it saw as JSON."""
    from sgpipe.generation import run

    looks = Looks()
    with (
        mock.patch.object(run, "check_names"),  # there are no images
        mock.patch.object(run, "build_stages", return_value=[MadeUp()]),
    ):
        run.generate(recipe_of(folder, limit, actors), folder / "out", looks)  # type: ignore[arg-type]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"points": looks.points, "peak": peak}))


def make_annotations(folder: Path, images: int) -> None:
    """Images with `BOXES` boxes and a caption each, without images."""
    with (folder / "annotations.json").open("w") as file:
        file.write(
            '{"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "bench"}], "images": ['
        )
        file.write(
            ",".join(
                f'{{"id":{n},"file_name":"{n}.jpg","width":640,"height":480}}'
                for n in range(images)
            )
        )
        file.write('], "annotations": [')
        for n in range(images):
            place = f'"image_id":{n},"bbox":[{n % 599}.{n % 97},{n % 409}.{n % 89}'
            boxes = (
                f'{{{place},{9 + k},{9 + n % 29}],"category_id":{1 + k % 2}}}' for k in range(BOXES)
            )
            file.write("," * bool(n) + ",".join(boxes))
        file.write("]}")
    (folder / "captions.json").write_text('{"annotations": [{"image_id": 0, "caption": "a dog"}]}')


def _measured(folder: Path, limit: int, actors: int) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_scale",
        "--label",
        str(folder),
        "--images",
        str(limit),
    ]
    command += ["--actors", str(actors)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(images: int, actors: int) -> list[str]:
    """A row: the first process reads the annotations, the second finds them read and labels all."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_annotations(folder, images)
        reading = _measured(folder, 1, actors)["peak"]
        figures = _measured(folder, images, actors)
        out = folder / "out"
        bytes_each = sum(path.stat().st_size for path in (out / "data").iterdir()) / images
        manifest = (out / "manifest.jsonl").stat().st_size
        shards = len(list((out / "data").iterdir()))
    points = figures["points"]
    ends = [round(k * (len(points) - 1) / 4) for k in range(5)]
    parts = [_cost(points[start], points[stop]) for start, stop in pairwise(ends)]
    cost = _cost(points[0], points[-1])
    rate = (points[-1][0] - points[0][0]) / (points[-1][1] - points[0][1])
    cells = [
        f"{images:,}",
        f"{rate:,.0f}",
        f"{cost:.3f}",
        " · ".join(f"{part:.3f}" for part in parts),
    ]
    return [
        *cells,
        f"{figures['peak']:,.0f}",
        f"{reading:,.0f}",
        f"{bytes_each:,.0f}",
        f"{manifest / shards:,.0f}",
    ]


def _cost(first: list[float], last: list[float]) -> float:
    """CPU-milliseconds per image between two points."""
    return 1000 * (last[2] - first[2]) / max(1, last[0] - first[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--label", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.label:
        label(options.label, options.images[0], options.actors)
        return
    columns = (
        "images",
        "images/s",
        "CPU-ms per image",
        "by quarters",
        "driver MB",
        "reading MB",
        "bytes per row",
    )
    table = Table(*columns, "bytes of manifest per shard")
    for images in options.images:
        table.add_row(*measure(images, options.actors))
    report(
        __doc__,
        table,
        "The models are left out. The time goes into the Python objects of records on their way to"
        " Arrow and back, the compression of shards, and Ray's work for each unit.",
    )


if __name__ == "__main__":
    main()
