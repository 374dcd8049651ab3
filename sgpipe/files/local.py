"""The files of a local folder, read as the objects of a store are: by ranges of a version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

from sgpipe.errors import EngineError, ImageError, StoreError, UserError
from sgpipe.files.base import image_error
from sgpipe.files.object_store import AccessError, CutError, ObjectInfo, ReplacedError

_MOST_OPEN = 256


class Files(Protocol):
    """What `StorePath` and `LocalFiles` have in common; see `StorePath`."""

    @property
    def location(self) -> str: ...

    def check(self) -> None: ...

    def read_range(self, name: str, start: int, length: int, version: str | None = None) -> bytes: ...

    def head(self, name: str) -> ObjectInfo | None: ...

    def open(self, name: str) -> BinaryIO: ...


class LocalFiles:
    """Files in a folder, the first of which stay open. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)
        self._descriptors: dict[str, int] = {}
        self._lock = Lock()

    def check(self) -> None:
        """It is there when the root is made."""

    def read_range(self, name: str, start: int, length: int, version: str | None = None) -> bytes:
        """Raises OSError; ReplacedError: the file is not of this version; CutError: it ends before."""
        parts = []
        with self._descriptor(name) as descriptor:
            if version not in (None, _version(os.fstat(descriptor))):
                raise ReplacedError(f"{self.folder / name} was replaced while it was in use")
            while length and (part := os.pread(descriptor, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
        if length:
            raise CutError(f"{self.folder / name} is cut: it ends at byte {start}")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def head(self, name: str) -> ObjectInfo | None:
        try:
            status = (self.folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectInfo(name, status.st_size, _version(status), datetime.fromtimestamp(status.st_mtime, UTC))

    def open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb")

    @contextmanager
    def _descriptor(self, name: str) -> Iterator[int]:
        """Of an open file, which stays open if not many are."""
        with self._lock:
            kept = name in self._descriptors or len(self._descriptors) < _MOST_OPEN
            if kept and name not in self._descriptors:
                self._descriptors[name] = self._opened(name)
        if kept:
            yield self._descriptors[name]
            return
        descriptor = self._opened(name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _opened(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def reading(files: Files, where: str) -> Iterator[None]:
    """Errors of the body that are one image's are ImageErrors.

    Raises StoreError: the store cannot be reached; EngineError: it refuses everything, as keys have expired, or this
    machine has no room or no more files to open.
    """
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"image file not found: {where}") from None
    except ReplacedError:
        raise ImageError(f"image cannot be read: {where} (it was replaced while it was in use)") from None
    except CutError:
        raise ImageError(f"image cannot be read: {where} (it is cut)") from None
    except AccessError as error:
        try:
            files.check()
        except UserError as refused:
            raise EngineError(str(refused)) from None
        raise ImageError(f"image cannot be read: {error}") from None
    except StoreError:
        raise
    except OSError as error:
        raise image_error(error, where) from None


def version_of(info: ObjectInfo) -> str:
    """What changes with a file."""
    return info.version or info.modified.isoformat()
