"""Reading the shards of a run: always through its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from sgpipe.records import SCHEMA, Record, from_table
from sgpipe.shards.manifest import Manifest
from sgpipe.shards.row_groups import open_shard


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard file as a table.

    Raises UserError: as `open_shard`.
    """
    with open_shard(path, [name.partition(".")[0] for name in columns or ()]) as file:
        return file.read(columns=list(columns) if columns else None)


def iter_tables(root: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The shards of a run one after the other, by split and position."""
    for shard in Manifest.load(root).shards:
        yield read_file(root / shard.file, columns)


def iter_records(root: Path) -> Iterator[Record]:
    """Every record of a run, by split and position, one shard without its pictures in memory at a time."""
    for table in iter_tables(root, SCHEMA.names):
        yield from from_table(table)
