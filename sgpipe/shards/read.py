"""Reading the shards of a run: always through its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA, Record, from_table
from sgpipe.shards.manifest import Manifest


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard file as a table.

    Raises UserError: the file is missing, cut short or not Parquet.
    """
    try:
        return pq.read_table(path, columns=list(columns) if columns else None, partitioning=None)
    except FileNotFoundError:
        raise UserError(f"shard {path} is listed in the manifest but missing") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"shard {path} cannot be read ({str(error).splitlines()[0]})") from None


def iter_tables(root: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The shards of a run one after the other, by split and position."""
    for shard in Manifest.load(root).shards:
        yield read_file(root / shard.file, columns)


def iter_records(root: Path) -> Iterator[Record]:
    """Every record of a run, by split and position, one shard without its pictures in memory at a time."""
    for table in iter_tables(root, SCHEMA.names):
        yield from from_table(table)
