"""Where the shards of a run lie, as a worker on any machine sees it: a folder that all share, or an object store.

An object store (S3, Google, Azure) as the place of a run's shards.

Nothing relies on rename, on appending, or on seeing a file while it is written: an object counts only once the manifest
lists it with its size and checksum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from sgpipe.errors import StoreError, UserError, naming
from sgpipe.records import Record
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.shards import read_file, write_shard


class Shelf(Protocol):
    """Files by their names within the run."""

    def open(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """A file to read anywhere in. Raises OSError, also while it is read."""

    def read_shard(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Raises UserError: as `read_file`."""

    def write_shard(
        self, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
    ) -> ShardEntry:
        """As `sgpipe.storage.shards.write_shard`."""

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


_KINDS = {"s3": "s3://", "gcs": "gs://", "abfs": "abfs://"}


@dataclass(frozen=True)
class Store:
    """Objects under a URI such as `s3://bucket/labels`, by names such as `data/train-000000000-000000512.parquet`.

    Every method raises StoreError: the store cannot be reached, or refuses; and UserError: the URI is none of a store.
    """

    uri: str

    @property
    def place(self) -> str:
        """The URI without options, which says where the objects are."""
        return self.uri.partition("?")[0].rstrip("/")

    def put(self, name: str, data: bytes) -> None:
        """Put a small object, in the place of an earlier one."""
        with self.naming(), self._files.open_output_stream(self._path(name)) as stream:
            stream.write(data)

    def put_file(self, name: str, path: Path) -> None:
        """Put what is in a file; an exception cannot cut it short, as Arrow does it."""
        with self.naming():
            copy_files(str(path), self._path(name), LocalFileSystem(), self._files)

    def get_file(self, name: str, path: Path) -> None:
        """Copy an object into a file."""
        with self.naming():
            copy_files(self._path(name), str(path), self._files, LocalFileSystem())

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        """An object to read anywhere in."""
        with self.naming(), self._files.open_input_file(self._path(name)) as file:
            yield file

    def read(self, name: str) -> bytes | None:
        """All of an object; None if there is none."""
        if not self.has(name):
            return None
        with self.open(name) as file:
            return bytes(file.read())

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        return self._info(name).type == FileType.File

    def changed(self, name: str) -> datetime:
        """When an object was put, by the store's clock."""
        return self._info(name).mtime or datetime.now(timezone.utc)

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects in a folder by their last names, and how many bytes each has."""
        with self.naming():
            found = self._files.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == FileType.File}

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""
        if self.has(name):
            with self.naming():
                self._files.delete_file(self._path(name))

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Arrow says what went wrong, in many lines; here it is said in one, and of which store."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> StoreError:
        return StoreError(f"{self.place}: {str(error).splitlines()[0]}")

    def _info(self, name: str) -> FileInfo:
        with self.naming():
            return self._files.get_file_info(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._opened[1].rstrip('/')}/{name}"

    @property
    def _files(self) -> FileSystem:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        if "@" in self.place:
            raise UserError("an object store's URI may hold no names and keys: give them by the environment")
        try:
            files, path = FileSystem.from_uri(self.uri)
        except pa.ArrowException as error:
            raise UserError(f"{self.uri} is no object store: {str(error).splitlines()[0]}") from None
        except OSError as error:  # it asks where a bucket is
            raise self._error(error) from None
        if files.type_name not in _KINDS or not path.strip("/"):
            raise UserError(f"{self.uri} is no object store: expected {', '.join(_KINDS.values())} and a bucket")
        return files, path
