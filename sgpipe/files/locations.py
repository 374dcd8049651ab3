"""A location: a file or folder of this machine, as a `Path`, or in a store, as a `StorePath`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa

from sgpipe.errors import StoreError, add_filename
from sgpipe.files.object_store import CutError, ObjectInfo, ReplacedError, StorePath

Location: TypeAlias = Path | StorePath

_BUFFER = 256 << 10  # bytes that are read at least, of an object of which parts are needed


@contextmanager
def open_file(path: Location) -> Iterator[Any]:
    """Open a file for random access: of this machine mapped into memory. Raises OSError, also while it is read."""
    if isinstance(path, Path):
        with add_filename(path), pa.memory_map(str(path)) as file:
            yield file
        return
    with _present(path), path.open(buffer=_BUFFER) as file:
        yield pa.PythonFile(file, "r")


def open_stream(path: Location) -> BinaryIO:
    """Open a file to be read from its beginning to its end. Raises OSError."""
    return path.open("rb") if isinstance(path, Path) else path.open()


def read_range(path: Location, start: int, length: int, version: str | None = None) -> bytes:
    """Return `length` bytes of a file.

    Raises OSError; ReplacedError: it is not of this version, as `info_of` has it; CutError: it ends before.
    """
    if isinstance(path, StorePath):
        return path.read_range("", start, length, version)
    parts = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if version not in (None, _version(os.fstat(descriptor))):
            raise ReplacedError(f"{path} was replaced while it was in use")
        while length and (part := os.pread(descriptor, length, start)):
            parts.append(part)
            start, length = start + len(part), length - len(part)
    finally:
        os.close(descriptor)
    if length:
        raise CutError(f"{path} is truncated: it ends at byte {start}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def info_of(path: Location) -> ObjectInfo | None:
    """Return what a file is, by its name; None if there is none."""
    if isinstance(path, StorePath):
        info = path.head()
        return info and replace(info, name=path.name)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    modified = datetime.fromtimestamp(status.st_mtime, UTC)
    return ObjectInfo(path.name, status.st_size, _version(status), modified)


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_bytes(path: Location) -> bytes:
    """Return the content of a file. Raises OSError, which names it."""
    if isinstance(path, Path):
        return path.read_bytes()
    with _present(path):
        content = path.read()
        if content is None:
            raise FileNotFoundError(str(path))
        return content


def sizes(folder: Location) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its last name; of none where there is no folder."""
    if isinstance(folder, StorePath):
        return folder.sizes()
    found: dict[str, int] = {}
    if folder.is_dir():
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # a running job may have replaced it
                found[entry.name] = entry.stat().st_size
    return found


def delete(path: Location) -> None:
    """Delete a file if it exists."""
    if isinstance(path, StorePath):
        path.delete()
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _present(path: StorePath) -> Iterator[None]:
    """A missing object of a run is a StoreError, which ends the work, as those that cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
