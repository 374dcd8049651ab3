"""The shards of a run as tables of an in-process DuckDB, which reads them from disk as it needs them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA
from sgpipe.shards.manifest import Manifest
from sgpipe.shards.row_groups import open_shard
from sgpipe.shards.write import PICTURES

_MEMORY = "1GB"  # DuckDB goes to disk beyond it


class Database:
    """SQL over one run.

    View `images`: one row per image, with the columns of the shards, and `shard` and `row`, which order them.

    Attributes:
        run: the header of the manifest.
        files: the shards, which `shard` counts.
    """

    def __init__(self, manifest: Manifest, connection: duckdb.DuckDBPyConnection) -> None:
        self.root = manifest.root
        self.run = manifest.run
        self._connection = connection
        self.files = [self.root / shard.file for shard in manifest.shards]
        self._attach()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a small result; `values` replace the query's `?`.

        Raises UserError: a shard is damaged.
        """
        try:
            return self._connection.execute(query, values).fetchall()
        except duckdb.Error as error:
            raise self._damaged(error) from None

    def table(self, query: str, *values: Any) -> pa.Table:
        """A result as an Arrow table.

        Raises UserError: a shard is damaged.
        """
        try:
            return self._connection.sql(query, params=values).to_arrow_table()
        except duckdb.Error as error:
            raise self._damaged(error) from None

    def execute(self, statement: str, *values: Any) -> None:
        """Run a statement that gives nothing back, such as one that makes a table."""
        self.rows(statement, *values)

    def _attach(self) -> None:
        pictures = [_check(file) for file in self.files]
        if not self.files:
            self._connection.register("nothing", SCHEMA.empty_table())
            self.execute(f"create view images as select 0 as shard, 0 as row, null as {PICTURES}, * from nothing")
            return
        names = [str(file) for file in self.files]
        self.execute(
            "create table shards as select unnest(?) as filename, unnest(range(?)) as shard", names, len(names)
        )
        image = PICTURES if any(pictures) else f"null as {PICTURES}"
        self.execute(
            f"""create view images as select shard, file_row_number as row, {", ".join(SCHEMA.names)}, {image}
            from read_parquet([{", ".join(map(_quoted, names))}],
                              filename = true, file_row_number = true, union_by_name = true)
            join shards using (filename)"""
        )

    def _damaged(self, error: duckdb.Error) -> UserError:
        return UserError(f"the shards of {self.root} cannot be read ({str(error).splitlines()[0]})")


@contextmanager
def open_run(root: Path) -> Iterator[Database]:
    """The database of the run in `root`; what does not fit in memory goes to a temporary folder.

    Raises UserError: it is not a run, or a shard is missing or damaged.
    """
    manifest = Manifest.load(root)
    with tempfile.TemporaryDirectory(prefix="sgpipe-") as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY,
            "temp_directory": folder,
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(config=settings) as connection:
            yield Database(manifest, connection)


def _check(file: Path) -> bool:
    """Whether the shard holds pictures. Raises UserError: it is missing, damaged or of another version."""
    with open_shard(file, SCHEMA.names) as shard:
        return PICTURES in shard.schema_arrow.names


def _quoted(name: str) -> str:
    """A file name as SQL, with the characters that would make it a pattern taken literally."""
    literal = re.sub(r"[*?\[]", r"[\g<0>]", name)
    return "'" + literal.replace("'", "''") + "'"
