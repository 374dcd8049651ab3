"""Where the shards of a run are stored, as a worker on any machine sees it: a shared folder or an object store.

In an object store (S3, Google, Azure) nothing relies on renaming, on appending, or on reading a file that is being
written: an object counts only once the manifest lists it with its size and checksum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from shutil import copyfileobj
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from sgpipe.errors import StoreError, naming
from sgpipe.files.object_store import FAILURES, ObjectReader, failure, open_location
from sgpipe.files.writes import ObjectWriter
from sgpipe.records import Record
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.shards import encode_shard, read_file, write_shard

if TYPE_CHECKING:
    from obstore import UpdateVersion

_UPLOAD_SECONDS, _LOCK_SECONDS = 1800.0, 10.0  # of one request
_PART, _BUFFER = 8 << 20, 256 << 10  # bytes that are read at once: of whole objects, and at least of others


class Storage(Protocol):
    """The files of a run, by their names within it."""

    def open(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """A file for random access. Raises OSError, also while it is read."""

    def read_shard(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Raises UserError: as `read_file`."""

    def write_shard(
        self, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
    ) -> ShardEntry:
        """As `sgpipe.storage.shards.write_shard`."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of each file in a folder, by its last name."""

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""


@dataclass(frozen=True)
class LocalFolder:
    """The files of a run in a folder that all workers share."""

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
            with suppress(FileNotFoundError):  # a running job may have replaced it
                sizes[entry.name] = entry.stat().st_size
        return sizes

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """The files of a run as objects under a URI such as `s3://bucket/labels`.

    Every method raises StoreError if the store cannot be reached or refuses, and UserError if the URI is not that of a
    store.
    """

    uri: str

    @property
    def location(self) -> str:
        """The URI without options."""
        return self.uri.partition("?")[0].rstrip("/")

    def put(self, name: str, data: bytes) -> None:
        """Write an object, replacing an earlier one."""
        with self.naming():
            self._uploads.put(self._path(name), data)

    def put_file(self, name: str, path: Path) -> None:
        """Upload a file."""
        with self.naming():
            self._uploads.put(self._path(name), path)

    def put_if(self, name: str, data: bytes, version: UpdateVersion | None) -> UpdateVersion | None:
        """As `ObjectWriter.put_if`: write a small object if it still has this version (None: if there is none)."""
        with self.naming():
            return self._conditional.put_if(self._path(name), data, version)

    def get(self, name: str) -> tuple[bytes, UpdateVersion] | None:
        """A small object and its version; None if it does not exist."""
        with self.naming():
            return self._conditional.get(self._path(name))

    def get_file(self, name: str, path: Path) -> None:
        """Download an object into a file."""
        with self.naming(), self._reader.open(name, _PART) as source, path.open("wb") as target:
            copyfileobj(source, target, _PART)

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        with self.naming(), self._reader.open(name, _BUFFER) as file:
            yield pa.PythonFile(file, "r")

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if it does not exist."""
        with self.naming():
            try:
                return self._content(name)
            except FileNotFoundError:
                return None

    def read_shard(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        with self.naming():
            content = pa.BufferReader(self._content(name))
        return read_file(Path(name), columns, content)

    def _content(self, name: str) -> bytes:
        """In parts, so that a part that is cut is all that is read again."""
        with self._reader.open(name, _PART) as file:
            return b"".join(iter(partial(file.read, _PART), b""))

    def write_shard(
        self, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
    ) -> ShardEntry:
        """The shard is made in memory and uploaded whole; a killed worker leaves nothing on its disk."""
        data, entry = encode_shard(name, split, start, records, seconds)
        self.put(name, data)
        return entry

    def has(self, name: str) -> bool:
        """Whether the object exists."""
        return self._info(name).type == FileType.File

    def modified(self, name: str) -> datetime:
        """When an object was written, by the store's clock."""
        return self._info(name).mtime or datetime.now(UTC)

    def sizes(self, folder: str) -> dict[str, int]:
        with self.naming():
            entries = self._files.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return {info.base_name: info.size for info in entries if info.type == FileType.File}

    def delete(self, name: str) -> None:
        if self.has(name):
            with self.naming():
                self._files.delete_file(self._path(name))

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Shorten errors of many lines to one that names the store."""
        try:
            yield
        except StoreError:
            raise
        except FAILURES as error:
            raise StoreError(f"{self.location}: {failure(error)}") from None

    def __getstate__(self) -> dict[str, Any]:
        """What travels to workers: connections do not."""
        return {name: value for name, value in vars(self).items() if name in ("uri", "_opened")}

    def _info(self, name: str) -> FileInfo:
        with self.naming():
            return self._files.get_file_info(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._opened[1].rstrip('/')}/{name}"

    @property
    def _files(self) -> FileSystem:
        return self._opened[0]

    @cached_property
    def _reader(self) -> ObjectReader:
        """Reads again what is cut, as Arrow does not."""
        return ObjectReader(self.uri)

    @cached_property
    def _uploads(self) -> ObjectWriter:
        return ObjectWriter(self.uri, *self._opened, _UPLOAD_SECONDS)

    @cached_property
    def _conditional(self) -> ObjectWriter:
        return ObjectWriter(self.uri, *self._opened, _LOCK_SECONDS)

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        return open_location(self.uri)
