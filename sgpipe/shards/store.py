"""An object store (S3, Google, Azure) as the place of a run's shards.

Nothing relies on rename, on appending, or on seeing a file while it is written: an object is put whole, and counts only
once the manifest lists it with its size and checksum.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from sgpipe.errors import StoreError, UserError

_KINDS = {"s3": "s3://", "gcs": "gs://", "abfs": "abfs://"}
_LOCK = ".sgpipe/lock"
_SECONDS_PER_BEAT, _STALE = 30, 150


@dataclass(frozen=True)
class Store:
    """Objects under a URI such as `s3://bucket/labels`, by names such as `data/train-000000000-000000512.parquet`.

    Every method raises OSError: the store cannot be reached, or refuses.
    """

    uri: str

    def put(self, name: str, data: bytes) -> None:
        """Put an object, in the place of an earlier one."""
        with self._naming(), self._files.open_output_stream(self._path(name)) as stream:
            stream.write(data)

    def put_file(self, name: str, path: Path) -> None:
        """Put what is in a file."""
        with path.open("rb") as file, self._naming(), self._files.open_output_stream(self._path(name)) as stream:
            shutil.copyfileobj(file, stream)

    def get_file(self, name: str, path: Path) -> None:
        """Copy an object into a file. Raises FileNotFoundError: there is none."""
        with self.open(name) as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file)

    def open(self, name: str) -> pa.NativeFile:
        """An object to read anywhere in. Raises FileNotFoundError: there is none."""
        try:
            return self._files.open_input_file(self._path(name))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._error(error) from None

    def read(self, name: str) -> bytes | None:
        """All of an object; None if there is none."""
        try:
            with self.open(name) as file, self._naming():
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects in a folder by their last names, and how many bytes each has."""
        with self._naming():
            found = self._files.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == FileType.File}

    def delete(self, name: str) -> None:
        """Delete an object, if there is one."""
        with self._naming():
            if self._info(name).type == FileType.File:
                self._files.delete_file(self._path(name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out, on whatever machine: an object that is put anew every half minute.

        Stores know no locks that end with their owner. One whose process is gone, or that was not renewed for some
        minutes, is taken over. Two runs that start within a second of each other may both go on: they make the same.

        Raises UserError: another run is at work.
        """
        me = f"{os.getpid()} on {socket.gethostname()}"
        self._refuse_others()
        self.put(_LOCK, me.encode())
        over = threading.Event()
        beat = threading.Thread(target=self._renew, args=(me, over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            self.delete(_LOCK)

    def _refuse_others(self) -> None:
        owner = self.read(_LOCK)
        if owner is None:
            return
        changed = self._info(_LOCK).mtime or datetime.now(timezone.utc)
        age = (datetime.now(timezone.utc) - changed).total_seconds()
        if age < _STALE and not _is_gone(owner.decode(errors="replace")):
            raise UserError(
                f"another run (process {owner.decode(errors='replace')}) is writing into {self.uri}; wait for it, "
                f"or, if it died, {_STALE - age:.0f} s"
            )

    def _renew(self, me: str, over: threading.Event) -> None:
        while not over.wait(_SECONDS_PER_BEAT):
            try:
                self.put(_LOCK, me.encode())
            except OSError:  # the run itself will meet it, with more to say
                continue

    def _info(self, name: str) -> FileInfo:
        with self._naming():
            return self._files.get_file_info(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._place[1].rstrip('/')}/{name}"

    @property
    def _files(self) -> FileSystem:
        return self._place[0]

    @cached_property
    def _place(self) -> tuple[FileSystem, str]:
        """Raises UserError: not the URI of a store."""
        try:
            files, path = FileSystem.from_uri(self.uri)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.uri} cannot be used as an object store: {str(error).splitlines()[0]}") from None
        if files.type_name not in _KINDS or not path.strip("/"):
            raise UserError(f"{self.uri} is no object store: expected {', '.join(_KINDS.values())} and a bucket")
        return files, path

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> StoreError:
        """Arrow says what went wrong, in many lines; here it is said of which store."""
        return StoreError(f"{self.uri}: {str(error).splitlines()[0]}")


def _is_gone(owner: str) -> bool:
    """Whether the owner of a lock was a process of this machine that is no more."""
    process, _, host = owner.partition(" on ")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except OSError as error:
        return error.errno == errno.ESRCH  # otherwise it is somebody else's
    return False
