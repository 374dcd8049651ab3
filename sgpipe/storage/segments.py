"""The manifest of a run in its object store: `manifest.jsonl`, and the segments that continue it.

Objects cannot be appended to. So while a run is at work, it puts what it has committed since the last time as one more
object, a segment. Its first line has the hash of all bytes of the manifest before it: a segment counts only where it
continues what is there, and never what another run left. When a run begins and ends, and after many segments,
`manifest.jsonl` is written whole and the segments are deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import ConditionsError

MANIFEST = "manifest.jsonl"
_FOLDER = ".sgpipe"
WRITER = f"{_FOLDER}/writer"
_SEGMENT = re.compile(r"manifest-(\d{15})\.jsonl")
_MOST_SEGMENTS = 100  # 50 minutes; reading them takes a second
_REQUESTS = 8  # at once
_TRIES = 5


class ReadableFiles(Protocol):
    """The files of a run in a store. Every method raises StoreError if the store cannot be reached."""

    @property
    def location(self) -> str:
        """As messages name it."""

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if it does not exist."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each object in a folder, by its last name."""


class WritableFiles(ReadableFiles, Protocol):
    """The same, for the run that is at work."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object, replacing an earlier one."""

    def put_if(self, name: str, data: bytes, version: Any) -> Any:
        """As `StorePath.put_if`."""

    def version(self, name: str) -> Any:
        """Return the version of an object; None if it does not exist."""

    def delete(self, name: str) -> None:
        """Delete an object if it exists."""


def whole_lines(data: bytes) -> bytes:
    """Return the content of a manifest without a last line that was cut short."""
    return data[: data.rfind(b"\n") + 1]


def read_manifest(store: ReadableFiles) -> bytes | None:
    """Return the manifest of a run in a store, with all segments; None: there is none."""
    for _ in range(_TRIES):
        starts = _starts(store)  # before the whole manifest: that is written before segments are deleted
        content = store.read(MANIFEST)
        if content is None:
            return None
        if (found := _continued(store, whole_lines(content), starts)) is not None:
            return found
    raise StoreError(f"{store.location}: {MANIFEST} changes too often to be read; try again")


class WriterClaim:
    """Which run writes into a store: the one that claimed it last. An earlier one ends at its next `check`.

    A claim needs no renewal, so a run that was killed never keeps the next one waiting.
    """

    def __init__(self, store: WritableFiles) -> None:
        self._store = store
        owner = {"process": os.getpid(), "host": socket.gethostname(), "token": uuid.uuid4().hex}
        self._content = json.dumps(owner).encode()

    def make(self) -> None:
        """Claim the store. Raises UserError: another run does so at the same moment."""
        try:
            self._store.put_if(WRITER, self._content, self._store.version(WRITER))
        except ConditionsError:
            self._store.put(WRITER, self._content)
        if self._store.read(WRITER) != self._content:  # also right if only the answer to the request was lost
            raise UserError(f"another run has just started writing into {self._store.location}; wait for it to finish")

    def check(self) -> None:
        """Raises StoreError: another run has claimed the store."""
        if self._store.read(WRITER) != self._content:
            raise StoreError(f"{self._store.location}: another run took over; what this one committed there is kept")


class StoredManifest:
    """Writes the manifest of a run that is at work.

    Every method raises StoreError if the store cannot be reached, or if another run has taken it over.
    """

    def __init__(self, store: WritableFiles, check_claim: Callable[[], None]) -> None:
        self.store, self._check_claim = store, check_claim
        self._digest = hashlib.sha256()  # of what is in the store
        self._end = 0
        self._segments = 0

    def write(self, path: Path) -> None:
        """Put the whole manifest, which is in `path`, in the place of all segments."""
        content = whole_lines(path.read_bytes())
        merged = [start for start in _starts(self.store) if start < len(content)]
        self._put(MANIFEST, content)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(self.store.delete, map(_name, merged)))
        self._digest, self._end, self._segments = hashlib.sha256(content), len(content), 0

    def append(self, path: Path) -> None:
        """Put what has been appended to the manifest in `path` since it was written."""
        with path.open("rb") as file:
            file.seek(self._end)
            lines = whole_lines(file.read())
        if not lines:
            return
        if self._segments >= _MOST_SEGMENTS:
            self.write(path)
            return
        self._put(_name(self._end), _header(self._digest.hexdigest()) + lines)
        self._digest.update(lines)
        self._end += len(lines)
        self._segments += 1

    def _put(self, name: str, data: bytes) -> None:
        """Write an object, unless another run has taken over the store, even between two requests of this one."""
        for _ in range(_TRIES):
            version = self.store.version(name)
            self._check_claim()
            try:
                if self.store.put_if(name, data, version) is not None or self.store.read(name) == data:
                    return
            except ConditionsError:
                return self.store.put(name, data)
        raise StoreError(f"{self.store.location}: {name} changes too often to be written; try again")


def _continued(store: ReadableFiles, content: bytes, starts: list[int]) -> bytes | None:
    """Return the content with the segments that continue it; None: one was deleted meanwhile."""
    parts, end, digest = [content], len(content), hashlib.sha256(content)
    starts = [start for start in starts if start >= end]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        segments = list(pool.map(store.read, map(_name, starts)))
    for start, segment in zip(starts, segments, strict=True):
        if start != end:
            continue
        if segment is None:
            return None
        header, newline, lines = segment.partition(b"\n")
        if header + newline == _header(digest.hexdigest()):
            parts.append(lines)
            end += len(lines)
            digest.update(lines)
    return b"".join(parts)


def _starts(store: ReadableFiles) -> list[int]:
    """Where the segments start, counted in bytes of the manifest, in order."""
    names = map(_SEGMENT.fullmatch, store.sizes(_FOLDER))
    return sorted(int(found[1]) for found in names if found)


def _name(start: int) -> str:
    return f"{_FOLDER}/manifest-{start:015d}.jsonl"


def _header(digest: str) -> bytes:
    return json.dumps({"continues": digest}).encode() + b"\n"
