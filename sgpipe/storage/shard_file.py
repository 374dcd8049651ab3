"""An open shard, of this schema or of the one before, which is read as if it were of this one.

Whoever changes the schema adds one to `SCHEMA_VERSION` and says in `EARLIER_SCHEMAS` how each
changed column comes from the columns that there were. Nothing else knows of earlier schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA, SCHEMA_VERSION

_VERSION_KEY = b"sgpipe.schema_version"


@dataclass(frozen=True)
class ColumnRule:
    """How a column comes from those of the schema before.

    Attributes:
        sources: the columns that it comes from, which are read whole; those that this schema does
            not have are its readers' no more.
        convert: returns its values from a table that has the sources, with a row for each.
    """

    sources: tuple[str, ...]
    convert: Callable[[pa.Table], pa.ChunkedArray | pa.Array]


# By the name of the column in this schema.
ColumnRules: TypeAlias = Mapping[str, ColumnRule]

# By version: what differs in this schema. There was no release of an earlier one.
EARLIER_SCHEMAS: dict[int, ColumnRules] = {}


def check_version(version: str, file: object) -> ColumnRules:
    """Return what differs in this schema from that of a file.

    Raises:
        UserError: it is of a schema that is not read.
    """
    rules_of = {SCHEMA_VERSION: {}, **EARLIER_SCHEMAS}
    for readable, rules in rules_of.items():
        if version == str(readable):
            return rules
    versions = " and ".join(map(str, sorted(rules_of)))
    raise UserError(f"{file} has schema version {version}, this sgpipe reads {versions}")


def version_of(schema: pa.Schema) -> str:
    """Return the version that a shard states; files of others state none, and count as this one."""
    metadata = schema.metadata or {}
    return str(metadata.get(_VERSION_KEY, str(SCHEMA_VERSION).encode()).decode())


class ShardFile:
    """What readers need of an open Parquet file: columns of this schema, whatever its own is.

    Attributes:
        metadata: of the file, such as its numbers of rows.
        schema_arrow: the columns that it is read with.
    """

    def __init__(self, file: pq.ParquetFile, rules: ColumnRules) -> None:
        """`rules`: for the columns that this schema has otherwise than the file."""
        self._file = file
        self._rules = rules
        self.metadata = file.metadata
        self.schema_arrow: pa.Schema = file.schema_arrow
        if rules:
            self.schema_arrow = self._converted(file.schema_arrow.empty_table(), None).schema

    @property
    def num_row_groups(self) -> int:
        return int(self._file.num_row_groups)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows; `columns`: names, or paths of nested ones."""
        return self._converted(self._file.read(self._stored(columns)), columns)

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a group; `columns`: as in `read`."""
        return self._converted(self._file.read_row_group(group, self._stored(columns)), columns)

    def iter_batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield tables of up to so many rows of a row group, of which one is in memory at a time;
        `columns`: as in `read`.
        """
        stored = self._stored(columns)
        for group in range(self.num_row_groups):
            # of all groups, Arrow would read the bytes at once
            for batch in self._file.iter_batches(rows, row_groups=[group], columns=stored):
                yield self._converted(pa.Table.from_batches([batch]), columns)

    def _stored(self, columns: Sequence[str] | None) -> list[str] | None:
        """Return the columns of the file that the columns come from."""
        if columns is None:
            return None
        stored: list[str] = []
        for column in columns:
            rule = self._rules.get(_top(column))
            stored += rule.sources if rule else (column,)
        return list(dict.fromkeys(stored))

    def _converted(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        """Return a table of the file with its columns as in this schema; changed ones are whole,
        also where only a part of them is asked for.
        """
        if not self._rules:
            return table
        names = self._names(table) if columns is None else [_top(column) for column in columns]
        values: list[pa.ChunkedArray | pa.Array] = []
        fields: list[pa.Field] = []
        for name in dict.fromkeys(names):
            rule = self._rules.get(name)
            field = SCHEMA.field(name) if rule else table.schema.field(name)
            values.append(rule.convert(table).cast(field.type) if rule else table[name])
            fields.append(field)
        metadata = {**(table.schema.metadata or {}), _VERSION_KEY: str(SCHEMA_VERSION)}
        return pa.table(values, pa.schema(fields, metadata))

    def _names(self, table: pa.Table) -> list[str]:
        """Return all columns: those that changed, and those of the file that became no other."""
        replaced = {source for rule in self._rules.values() for source in rule.sources}
        kept = [name for name in table.column_names if name not in replaced]
        return [*kept, *self._rules]


def _top(column: str) -> str:
    return column.partition(".")[0]
