"""Where the shards of a run lie, as a worker on any machine sees it: a folder that all share, or an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import pyarrow as pa

from sgpipe.errors import naming
from sgpipe.records import Record
from sgpipe.shards.manifest import ShardEntry
from sgpipe.shards.read import read_file
from sgpipe.shards.store import Store
from sgpipe.shards.write import write_shard


class Shelf(Protocol):
    """Files by their names within the run."""

    def open(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """A file to read anywhere in. Raises OSError, also while it is read."""

    def read_shard(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Raises UserError: as `read_file`."""

    def write_shard(
        self, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
    ) -> ShardEntry:
        """As `sgpipe.shards.write.write_shard`."""

    def sizes(self, folder: str) -> dict[str, int]:
        """The files in a folder by their last names, and how many bytes each has."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""


@dataclass(frozen=True)
class FolderShelf:
    """Files in the folder of the run."""

    root: Path

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        with naming(self.root / name), pa.memory_map(str(self.root / name)) as file:
            yield file

    def read_shard(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        return read_file(self.root / name, columns)

    def write_shard(
        self, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
    ) -> ShardEntry:
        return write_shard(self.root, name, split, start, records, seconds)

    def sizes(self, folder: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        if not (self.root / folder).is_dir():
            return sizes
        for entry in os.scandir(self.root / folder):
            with suppress(FileNotFoundError):  # a run at work may have replaced it
                sizes[entry.name] = entry.stat().st_size
        return sizes

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class StoreShelf:
    """Objects in a store; a shard is written on the worker's own disk and put there whole."""

    store: Store

    def open(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        return self.store.open(name)

    def read_shard(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        with TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            self.store.get_file(name, path)
            return read_file(path, columns)

    def write_shard(
        self, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
    ) -> ShardEntry:
        with TemporaryDirectory() as folder:
            entry = write_shard(Path(folder), name, split, start, records, seconds)
            self.store.put_file(name, Path(folder, name))
            return entry

    def sizes(self, folder: str) -> dict[str, int]:
        return self.store.sizes(folder)

    def delete(self, name: str) -> None:
        self.store.delete(name)
