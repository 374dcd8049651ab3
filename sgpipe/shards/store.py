"""An object store (S3, Google, Azure) as the place of a run's shards.

Nothing relies on rename, on appending, or on seeing a file while it is written: an object counts only once the manifest
lists it with its size and checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from sgpipe.errors import StoreError, UserError

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
