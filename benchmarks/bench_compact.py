"""`sgpipe compact` of a synthetic run: size and CPU seconds before and after.

Images have 12 boxes, 5 captions, 8 triplets, 30 pairs and 50 relations, all at random, which
compression cannot shorten. Training CPU-s: of reading each row once, as training does; medians of
alternating rounds.

python -m benchmarks.bench_compact [--images N] [--rounds N]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.bench_stats import make_run
from benchmarks.measure import medians, report
from sgpipe.generation.compacting import compact_run
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_tables
from sgpipe.storage.shards import open_shard
from sgpipe.storage.verify import verify
from sgpipe.training.data.order import COLUMNS
from sgpipe.utils.console import Progress


@dataclass(frozen=True)
class _Size:
    """How large a run is."""

    shards: int
    row_groups: int
    data: int
    of_training: int  # bytes of the columns that training reads

    @classmethod
    def of(cls, run: Path) -> _Size:
        shards = Manifest.load(run).shards
        row_groups = 0
        of_training = 0
        for shard in shards:
            metadata = pq.read_metadata(run / shard.file)
            row_groups += metadata.num_row_groups
            of_training += sum(
                _training_bytes(metadata.row_group(group))
                for group in range(metadata.num_row_groups)
            )
        return cls(len(shards), row_groups, sum(shard.bytes for shard in shards), of_training)


def _training_bytes(group: pq.RowGroupMetaData) -> int:
    total = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema.partition(".")[0] in COLUMNS:
            total += column.total_compressed_size
    return total


def read_for_training(run: Path) -> None:
    """Read all row groups as training does, which keeps none."""
    for shard in Manifest.load(run).shards:
        with open_shard(run / shard.file) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        after = Path(folder) / "after"
        make_run(before, args.images)
        shutil.copytree(before, after)
        start = time.process_time()
        compact_run(after, Progress(Console(quiet=True)))
        compacting = time.process_time() - start
        is_equal = pa.concat_tables(iter_tables(after)).equals(
            pa.concat_tables(iter_tables(before))
        )
        reads = medians(
            {run.name: partial(read_for_training, run) for run in (before, after)}, args.rounds
        )
        checks = medians({run.name: partial(verify, run) for run in (before, after)}, 1, False)
        table = Table(
            "run",
            "shards",
            "row groups",
            "bytes a row",
            "of training",
            "training CPU-s",
            "verify CPU-s",
        )
        for run in (before, after):
            size = _Size.of(run)
            table.add_row(
                run.name,
                f"{size.shards:,}",
                f"{size.row_groups:,}",
                f"{size.data / args.images:,.0f}",
                f"{size.of_training / args.images:,.0f}",
                f"{reads[run.name]:.2f}",
                f"{checks[run.name]:.1f}",
            )
    rows = "the same rows" if is_equal else "OTHER ROWS"
    remark = f"{args.images:,} images: compacted in {compacting:.1f} CPU-s, {rows}."
    report(__doc__ or "", table, remark)


if __name__ == "__main__":
    main()
