"""Locations: files and folders of this machine, as a `Path`, or in a store or on the hub, as a
`StorePath`.

`location` makes one of what a user typed, once; from then on `location / name` works for both.
obstore retries, and knows the versions of objects (ETags); nothing renames or appends. Keys are in
the environment.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import pyarrow as pa

from sgpipe.errors import StoreError, UserError, add_filename, existing_file
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.stores import CutError, ObjectInfo, ReplacedError, StorePath, is_uri
from sgpipe.utils.prefetch import prefetch

if TYPE_CHECKING:
    pass
# Plain or gzip, which its content shows, not its name.
TextFile: TypeAlias = io.BufferedReader | gzip.GzipFile
_SMALL_BUFFER = 256 << 10  # bytes that are read at least, of an object of which parts are needed
_WHOLE = 4 << 20  # bytes: smaller shards are read at once
_OPENED_AHEAD = 16  # shards
_GZIP = b"\x1f\x8b"
_ON_HUB = re.compile(rf"{DATASETS}(?P<dataset>[^/]+/[^/]+)/(?P<file>.+)")


Location: TypeAlias = Path | StorePath


def location(place: str | Location) -> Location:
    """Return the location that a text names.

    Raises:
        UserError: a URI is not of a store, or contains keys.
    """
    if isinstance(place, str):
        return StorePath(place) if is_uri(place) else Path(place)
    return place


def below(base: Location | None, place: str | Location) -> Location:
    """Return a place below `base`, unless it is absolute or a URI itself."""
    place = location(place)
    if base is None or isinstance(place, StorePath) or place.is_absolute():
        return place
    return base / str(place)


def absolute_location(place: str | Location) -> Location:
    """Return a location that does not depend on the working folder."""
    place = location(place)
    return place.expanduser().absolute() if isinstance(place, Path) else place


@contextmanager
def open_file(path: Location) -> Iterator[Any]:
    """Open a file for random access: of this machine mapped into memory. Raises OSError, also while
    it is read.
    """
    if isinstance(path, Path):
        with add_filename(path), pa.memory_map(str(path)) as file:
            yield file
        return
    try:
        with path.open(buffering=_SMALL_BUFFER) as file:
            yield pa.PythonFile(file, "r")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None


def open_stream(path: str | Location) -> io.BufferedReader:
    """Open a file to be read from its beginning to its end. Raises OSError; StoreError."""
    return _local(path).open("rb")


def read_range(path: Location, start: int, length: int, version: str | None = None) -> bytes:
    """Return `length` bytes. Raises OSError; ReplacedError: not of this version; CutError: it ends
    before.
    """
    if isinstance(path, StorePath):
        return path.read_range(start, length, version)
    with path.open("rb") as file:
        if version not in (None, _version(os.fstat(file.fileno()))):
            raise ReplacedError(f"{path} was replaced while it was in use")
        file.seek(start)
        data = file.read(length)
    if len(data) < length:
        raise CutError(f"{path} is truncated: it ends at byte {start + len(data)}")
    return data


def info_of(path: Location) -> ObjectInfo | None:
    """Return size and version of a file; None if there is none."""
    if isinstance(path, StorePath):
        return path.head()
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ObjectInfo(path.name, status.st_size, _version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def content_id(path: str | Location) -> list[str | int | None]:
    """Return what tells a file's content unread: place, size, time or version.

    Raises:
        UserError: no such file.
    """
    local = _local(path)
    if isinstance(local, Path):
        status = existing_file(local).stat()
        return [str(local.resolve()), status.st_size, status.st_mtime_ns]
    info = local.head()
    if info is None:
        local.check()
        raise UserError(f"no such file: {local.uri}")
    return [local.uri, info.size, info.state]


def _local(path: str | Location) -> Location:
    """Return a location that can be read: a file of the hub in its cache.

    Raises:
        UserError: there is no such file.
    """
    path = location(path)
    if isinstance(path, Path):
        return path
    if ".." in path.uri.split("/"):
        raise UserError(f"no such file: {path.uri}: objects have no .. in their names")
    if not path.uri.startswith("hf://"):
        return path
    parts = _ON_HUB.fullmatch(path.uri)
    dataset = HubDataset.parse(parts["dataset"]) if parts else None
    if parts is None or dataset is None:
        raise UserError(f"{path.uri} is not a file of the hub: expected {DATASETS}USER/NAME/FILE")
    return dataset.fetch(parts["file"])


def sizes(folder: Location) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its last name; of none where there is
    no folder.
    """
    if isinstance(folder, StorePath):
        return {info.name: info.size for info in folder.list() if "/" not in info.name}
    size_of: dict[str, int] = {}
    if folder.is_dir():
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # a running job may have replaced it
                size_of[entry.name] = entry.stat().st_size
    return size_of


def open_shard_file(path: Location) -> Path | BinaryIO:
    """Return a shard as pyarrow reads it, large ones of a store by ranges. Raises
    FileNotFoundError; StoreError.
    """
    if isinstance(path, Path):
        return path
    info = path.head()
    if info is None:
        raise FileNotFoundError(str(path))
    if info.size > _WHOLE:
        return path.open(buffering=1)  # who reads Parquet knows what it needs
    return io.BytesIO(path.read_range(0, info.size, info.version))


def opened_ahead(paths: Sequence[Location]) -> Generator[BinaryIO | None, None, None]:
    """Shards in a store as `open_shard_file` opens them, while threads open the next ones; None:
    missing, or a file.
    """
    if not paths or isinstance(paths[0], Path):
        yield from [None] * len(paths)
        return

    def opened_or_none(path: Location) -> BinaryIO | None:
        with suppress(FileNotFoundError):  # whoever opens it again says so
            return cast(BinaryIO, open_shard_file(path))
        return None

    with prefetch(opened_or_none, paths, _OPENED_AHEAD, _OPENED_AHEAD + 1) as opened:
        yield from opened


@contextmanager
def open_text(path: Location | str) -> Iterator[TextFile]:
    """Open a text file, decompressed as it is read. Raises OSError; UserError: it is empty or, also
    later, damaged.
    """
    try:
        with open_stream(path) as raw:
            compressed = raw.peek(len(_GZIP)).startswith(_GZIP)
            with gzip.GzipFile(fileobj=raw) if compressed else raw as file:
                if not file.peek(1):
                    raise UserError(f"{path} is empty")
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is cut short or corrupt ({error}); copy or download it again"
        ) from None


def read_text(path: Location, kind: str) -> str:
    """Return a small text file, whose kind messages name.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        with open_text(path) as file:
            return file.read().decode("utf-8-sig")
    except StoreError:
        raise
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{kind} {path} is not UTF-8 text (plain or gzip)") from None


def text_sha256(path: str | Location) -> str:
    """SHA-256 of a file's content, decompressed if it is compressed by gzip. Raises as
    `open_text`.
    """
    with open_text(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ends(path: Location, length: int) -> tuple[bytes, bytes]:
    """Return both ends of a text file, of gzip only the first. Raises as `open_text`; UserError: it
    is a pipe.
    """
    with open_text(path) as file:
        if not file.seekable():
            raise UserError(
                f"{path} is a pipe, but it is read more than once; save it as a file, plain or gzip"
            )
        head = file.read(length)
        if isinstance(file, gzip.GzipFile):
            return head, b""
        file.seek(max(0, file.seek(0, 2) - length))
        return head, file.read()
