"""Row groups: the parts of a shard that can be read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA_VERSION
from sgpipe.shards.manifest import Manifest

_VERSION_KEY = b"sgpipe.schema_version"


@contextmanager
def open_shard(path: Path, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """An open shard file that has these columns.

    Raises UserError: missing, damaged (also while it is read), of another schema version, or without a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check(path, file.schema_arrow, columns)
            yield file
    except FileNotFoundError:
        raise UserError(f"shard {path} is listed in the manifest but missing{_remedy(path.parent.parent)}") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"shard {path} cannot be read ({str(error).splitlines()[0]})") from None


def _remedy(root: Path) -> str:
    try:
        store = Manifest.load(root).run.get("store")
    except UserError:
        return ""
    return f"; `sgpipe fetch {store} --out {root}` brings it" if store else ""


def _check(path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    version = (schema.metadata or {}).get(_VERSION_KEY, str(SCHEMA_VERSION).encode()).decode()
    if version != str(SCHEMA_VERSION):
        raise UserError(f"shard {path} has schema version {version}, this sgpipe reads version {SCHEMA_VERSION}")
    absent = [name for name in columns if name not in schema.names]
    if absent:
        raise UserError(f"shard {path} has no column {absent[0]!r}: it is not a shard of sgpipe")


def read_row_group(path: Path, group: int, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """One row group, with the optional columns where the shard has them.

    Raises UserError: as `open_shard`, or there is no such row group.
    """
    with open_shard(path, columns) as file:
        if group >= file.num_row_groups:
            raise UserError(f"shard {path} has changed: it has no row group {group} any more")
        there = [name for name in optional if name in file.schema_arrow.names]
        return file.read_row_group(group, columns=[*columns, *there])
