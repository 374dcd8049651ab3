"""Runs in an object store that are read in place: the manifest whole, and of shards only what is asked for.

Such a run is named by its URI, also where a `Path` made of it has a slash less: "s3:/bucket/run".
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

from sgpipe.errors import StoreError
from sgpipe.files.locations import Location
from sgpipe.files.object_store import StorePath
from sgpipe.files.stored_files import uri_of as uri_of
from sgpipe.utils.prefetch import prefetch

_QUERY = re.compile(r"\?.*?(?=/\w+/[^/]+\.parquet$|$)")
_SHARD = re.compile(r"(.*)/(\w+/[^/]+)")
_WHOLE = 4 << 20  # bytes: smaller objects are read at once
_OPENED_AHEAD = 16  # shards
_READ_AT_ONCE = 512 << 20  # bytes of small objects that are kept in memory


def name_of(location: Location | str) -> str:
    """A location as messages name it."""
    if isinstance(location, StorePath):
        return location.location
    uri = uri_of(location)
    return str(location) if uri is None else _QUERY.sub("", uri)


def absolute_run(location: Path) -> str:
    """The location of a run, independently of the working folder."""
    return uri_of(location) or str(location.expanduser().absolute())


@cache
def reader_of(uri: str) -> StorePath:
    """The connection of this process."""
    return StorePath(uri)


def open_object(path: Location) -> BinaryIO | None:
    """A shard of a run in a store, of which large ones are read by ranges; None: it is a file.

    Raises FileNotFoundError: there is no such object; StoreError: the store cannot be reached.
    """
    if isinstance(path, StorePath):
        return _opened(path)
    uri = uri_of(path)
    if uri is None:
        return None
    found = _SHARD.fullmatch(uri)
    assert found is not None, uri
    return _opened(reader_of(found[1]) / found[2])


def opened_ahead(paths: Sequence[Path]) -> Generator[BinaryIO | None, None, None]:
    """Shards of a run as `open_object` opens them, in order, while threads open the next ones; None also if missing."""
    if not paths or uri_of(paths[0]) is None:
        yield from [None] * len(paths)
        return
    with prefetch(_opened_or_none, paths, _OPENED_AHEAD, _OPENED_AHEAD + 1) as opened:
        yield from opened


def _opened_or_none(path: Path) -> BinaryIO | None:
    with suppress(FileNotFoundError):  # whoever opens it again says so
        return open_object(path)
    return None


def _opened(path: StorePath) -> BinaryIO:
    info = path.head()
    if info is None:
        raise FileNotFoundError(str(path))
    if info.size > _WHOLE:
        return path.open(buffer=1)  # who reads Parquet knows what it needs
    return io.BytesIO(path.read_range("", 0, info.size, info.version))


class ShardFileSystem(AbstractFileSystem):
    """The shards of a run in a store, for DuckDB, under `run://`.

    Attributes:
        failure: what the store answered last when it could not be read, which DuckDB puts into pages of its own.
    """

    protocol = "run"
    cachable = False

    def __init__(self, uri: str, sizes: dict[str, int]) -> None:
        """
        Args:
            sizes: in bytes, of each shard.
        """
        super().__init__()
        self._reader, self._sizes = reader_of(uri), sizes
        self._whole: dict[str, bytes] = {}
        self._room = _READ_AT_ONCE
        self.failure: OSError | None = None

    def names(self) -> list[str]:
        """The shards as DuckDB names them."""
        return [f"{self.protocol}://{name}" for name in self._sizes]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        return {"name": name, "size": self._sizes[name], "type": "file"}

    def glob(self, path: str, **_: Any) -> list[str]:
        return [self._strip_protocol(path)]

    def modified(self, path: str) -> datetime:
        """Always the same: what DuckDB knows of a shard stays valid."""
        return datetime(2000, 1, 1)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        try:
            if self._sizes[path] > _WHOLE:
                return self._reader.open(path, 1)
            data = self._whole.get(path)
            if data is None:
                data = self._reader.read_range(path, 0, self._sizes[path])
                if len(data) <= self._room:
                    self._whole[path] = data
                    self._room -= len(data)
            return io.BytesIO(data)
        except OSError as error:
            self.failure = error
            raise

    def raise_failure(self) -> None:
        """Raises StoreError: the store could not be reached."""
        if isinstance(self.failure, StoreError):
            raise self.failure
