"""Images that are objects of a store, under one prefix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import pyarrow as pa

from sgpipe.errors import ImageError
from sgpipe.files.base import MOST_BYTES, ImageEntry, checked_size, safe_name
from sgpipe.files.index import NAME, FileIndexRows, IndexReference, by_name, write_index
from sgpipe.files.local import reading, version_of
from sgpipe.files.object_store import StorePath
from sgpipe.files.parquet_images import ParquetImages, file_of
from sgpipe.files.parquet_rows import open_row
from sgpipe.utils.console import Progress

_COLUMNS = {"size": pa.int64(), "version": pa.large_string()}
_HEADER = 64 << 10  # of an image file; headers are rarely longer
_OBJECTS_PER_STEP = 1000  # of the progress


@dataclass(frozen=True)
class ObjectRoot:
    """A prefix of a store.

    Attributes:
        index: the objects that were there when the work began; no others, and no other versions, are read then. None:
            what is there now is read.
    """

    location: str
    files: StorePath
    threads: int
    index: IndexReference | None = None

    def where(self, name: str) -> str:
        return f"{self.files.location}/{name}"

    def contains(self, name: str) -> bool:
        try:
            name = file_of(safe_name(name))
        except ImageError:
            return False
        return bool(self.files.head(name) if self.index is None else self.index.opened.find(name))

    def open(self, name: str) -> BytesIO:
        return self._row(name) or self._read(name, MOST_BYTES + 1)

    def peek(self, name: str) -> BytesIO:
        """The beginning of an image."""
        return self._row(name) or self._read(name, _HEADER)

    def entries(self) -> Iterator[ImageEntry]:
        if self.index is None:
            return (ImageEntry(info.name, info.size, version_of(info)) for info in self.files.list())
        return (ImageEntry(row[NAME], row["size"], row["version"]) for row in self.index.opened)

    def _row(self, name: str) -> BytesIO | None:
        """The image in a row of a Parquet file, if the name is that of one."""
        with reading(self.files, self.where(name)):
            return open_row(self._parquet, name, self.where(name))

    @cached_property
    def _parquet(self) -> ParquetImages:
        return ParquetImages(self.files.open)

    def _read(self, name: str, most: int) -> BytesIO:
        name, where, version = safe_name(name), self.where(name), None
        if self.index is not None:
            rows = self.index.opened.find(name)
            if not rows:
                raise ImageError(f"image file not found: {where}")
            checked_size(rows[0]["size"], where)
            version = rows[0]["version"]
        with reading(self.files, where):
            data = self.files.read_start(name, most, version)
        checked_size(len(data), where)
        return BytesIO(data)

    def __reduce__(self) -> tuple[type[ObjectRoot], tuple[Any, ...]]:
        """It travels without the files that are open."""
        return ObjectRoot, (self.location, self.files, self.threads, self.index)


def list_objects(files: StorePath, progress: Progress) -> pa.Table:
    """The objects of a prefix, sorted by name: as rows of Arrow, of which a million take 100 MB."""
    rows = FileIndexRows(_COLUMNS)
    with progress.images(None, "listing") as advance:
        for done, info in enumerate(files.list(), 1):
            rows.add(info.name, info.size, info.version)
            if not done % _OBJECTS_PER_STEP:
                advance(_OBJECTS_PER_STEP, {})
    return by_name(rows.table())


def stamp(objects: pa.Table) -> str:
    """What identifies the index of objects: a hash of their names, sizes and versions."""
    digest = hashlib.sha256()
    for batch in objects.to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest()


def write_listing(reference: IndexReference, objects: pa.Table) -> None:
    """Write the index of objects. Raises OSError."""
    write_index(reference.path, objects, {"notes": []})
