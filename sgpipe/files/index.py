"""An index of the files of a place by their names: one sorted Arrow file, which every process maps
into its memory.

The name of an index is a hash of the names and versions of the files in it, so an index that exists
is never outdated.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location, absolute_location
from sgpipe.files.model_cache import cache_folder
from sgpipe.files.stores import StorePath
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import Progress

NAME = "name"
_ROWS_PER_BATCH = 1 << 16
_META = b"sgpipe"

IndexRow: TypeAlias = dict[str, Any]  # a file, by the names of the columns
IndexValues: TypeAlias = tuple[Any, ...]  # the same in the order of the columns


class FileIndex:
    """Rows by name. `meta`: what was said of all of them."""

    def __init__(self, path: Path) -> None:
        """Open an index.

        Raises:
            OSError, ArrowException: the file is missing or damaged.
        """
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        self.meta: dict[str, Any] = json.loads(table.schema.metadata[_META])
        chunks = (
            column.chunk(0) if column.num_chunks else column.combine_chunks()
            for column in table.columns
        )
        self._columns = dict(zip(table.column_names, chunks, strict=True))
        self._names = self._columns[NAME]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def table(self) -> pa.Table:
        """The rows, as they are on disk."""
        return pa.table(self._columns)

    def find(self, name: str) -> list[IndexRow]:
        places = range(len(self._names))
        start = bisect_left(places, name, key=lambda place: self._names[place].as_py())
        named_so = takewhile(lambda place: self._names[place].as_py() == name, places[start:])
        return list(map(self._row, named_so))

    def __iter__(self) -> Iterator[IndexRow]:
        return map(self._row, range(len(self._names)))

    def _row(self, position: int) -> IndexRow:
        return {name: column[position].as_py() for name, column in self._columns.items()}


def index_table(columns: Mapping[str, pa.DataType], rows: Iterator[IndexValues]) -> pa.Table:
    """Return rows of a name and `columns` in Arrow's memory; what UTF-8 has no form of becomes a
    question mark.
    """
    schema = pa.schema({NAME: pa.large_string(), **columns})
    batches = []
    while chunk := list(islice(rows, _ROWS_PER_BATCH)):
        names, *columns_of_chunk = zip(*chunk, strict=True)
        printable = [name.encode("utf-8", "replace").decode() for name in names]
        values = [printable, *columns_of_chunk]
        arrays = [pa.array(value, field.type) for value, field in zip(values, schema, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def write_index(path: Path, table: pa.Table, meta: Mapping[str, object]) -> None:
    """Write sorted rows and what is said of all of them, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.replace_schema_metadata({_META: json.dumps(meta).encode()})
    with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table.combine_chunks())


@dataclass(frozen=True)
class IndexReference:
    """An index by its name, in this machine's cache; a run may keep a copy in its folder or
    store.
    """

    name: str
    run: Location | None = None

    @property
    def path(self) -> Path:
        """The file of the index on this machine, which need not exist yet."""
        return cache_folder().absolute() / "image-indexes" / self.name

    @cached_property
    def opened(self) -> FileIndex:
        """Return the index, fetched if this machine lacks it.

        Raises:
            StoreError: it cannot be read or fetched.
            UserError: the copy in the run's store is damaged.
        """
        copy = None if self.run is None else self.run / f".sgpipe/{self.name}"
        for path in (self.path, copy):
            if isinstance(path, Path):
                with suppress(OSError, ValueError, pa.ArrowException):
                    return FileIndex(path)
        if not isinstance(copy, StorePath):
            raise StoreError(
                f"the index {self.path} is missing or damaged; the same command makes it again"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as temporary:
            copy.get_file(temporary)
            try:
                return FileIndex(temporary)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise UserError(
                    f"{copy} cannot be read ({error}); delete it, and run again"
                ) from None

    @property
    def exists(self) -> bool:
        """Whether it can be opened; fetches it from the run's store."""
        with suppress(OSError, UserError):
            return self.opened is not None
        return False

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "run": self.run}


@dataclass(frozen=True)
class KeptListing:
    """A prefix that a run has listed: the name of its index, and when."""

    index: str
    listed: str


@dataclass(frozen=True)
class IndexFolder:
    """Where indexes are: in this machine's cache, or in a `run`.

    Attributes:
        versioned: prefixes are indexed, with versions.
        kept: prefixes that the run has listed before, by location.
        relists: these are listed again.
    """

    run: Location | None = None
    progress: Progress = field(default_factory=Progress, compare=False)
    versioned: bool = False
    kept: Mapping[str, KeptListing] = field(default_factory=dict, compare=False)
    relists: bool = False

    def reference(self, stamp: object) -> IndexReference:
        """Return the index of what `stamp` describes in plain values, which need not exist."""
        digest = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()
        return self._named(f"images-{digest[:20]}.arrow")

    def kept_reference(self, location: str) -> IndexReference | None:
        """Return the index of a prefix as it was listed before; None: it was not, or it is lost."""
        if location not in self.kept:
            return None
        reference = self._named(self.kept[location].index)
        return reference if reference.exists else None

    def _named(self, name: str) -> IndexReference:
        return IndexReference(name, self.run and absolute_location(self.run))
