"""Reading the records of synthetic runs: how many a CPU second.

python -m benchmarks.bench_records [--images N] [--rounds N]

Light images have 2 to 12 boxes, 5 captions and up to 12 relations; dense ones 12 boxes, 5 captions,
8 triplets, 30 pairs and 50 relations. All: iterating over `Run`. Boxes: `iter_records` with the
objects alone. Relations: `Run.relation_tables`, without records. Dicts: the rows of all columns by
Arrow's `to_pylist`, which records were made of before. Medians of alternating rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from benchmarks.bench_merge import make_run as make_light_run
from benchmarks.bench_stats import make_run as make_dense_run
from benchmarks.measure import medians, report
from sgpipe.storage.run_records import Run, iter_records, iter_tables


def consume(items: Iterable[object]) -> None:
    deque(items, maxlen=0)


def rates(run: Path, images: int, rounds: int) -> list[str]:
    """Return the images a CPU second of each way."""
    ways = {
        "all": lambda: consume(Run(run)),
        "boxes": lambda: consume(iter_records(run, "objects")),
        "relations": lambda: consume(Run(run).relation_tables()),
        "dicts": lambda: consume(table.to_pylist() for table in iter_tables(run)),
    }
    seconds = medians(ways, rounds)
    return [f"{images / seconds[way]:,.0f}" for way in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    table = Table("images", "all", "boxes", "relations", "dicts", title="Images a CPU second")
    with tempfile.TemporaryDirectory() as folder:
        light = Path(folder) / "light"
        dense = Path(folder) / "dense"
        make_light_run(light, args.images, detected=True)
        make_dense_run(dense, args.images)
        for run in (light, dense):
            table.add_row(run.name, *rates(run, args.images, args.rounds))
    report(__doc__ or "", table)


if __name__ == "__main__":
    main()
