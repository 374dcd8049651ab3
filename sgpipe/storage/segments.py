"""The manifest of a run in its object store: `manifest.jsonl`, and the segments that continue it.

Objects cannot be appended to. So while a run is at work, it puts what it has committed since the last time as one more
object, a segment. Its first line has the hash of all bytes of the manifest before it: a segment counts only where it
continues what is there, and never what another run left. When a run begins and ends, and after many segments,
`manifest.jsonl` is written whole and the segments are deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from sgpipe.errors import StoreError, UserError
from sgpipe.storage.manifest import MANIFEST, Manifest, whole_lines
from sgpipe.storage.storage import ObjectStore
from sgpipe.storage.writes import ConditionsError

_FOLDER = ".sgpipe"
_SEGMENT = re.compile(r"manifest-(\d{15})\.jsonl")
_MOST_SEGMENTS = 100  # 50 minutes; reading them takes some seconds
_TRIES = 5


class StoredManifest:
    """The manifest of a run in a store. Every method raises StoreError if the store cannot be reached."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._digest = hashlib.sha256()  # of what is in the store, as far as it was written here
        self._end = 0
        self._segments = 0

    def read(self) -> bytes | None:
        """The manifest with all segments; None: there is none."""
        for _ in range(_TRIES):
            starts = self._starts()  # before the whole manifest: that is written before segments are deleted
            content = self.store.read(MANIFEST)
            if content is None:
                return None
            if (found := self._continued(whole_lines(content), starts)) is not None:
                return found
        raise StoreError(f"{self.store.location}: {MANIFEST} changes too often to be read; try again")

    def write(self, path: Path) -> None:
        """Put the whole manifest, which is in `path`, in the place of all segments."""
        content = whole_lines(path.read_bytes())
        starts = self._starts()
        self.store.put(MANIFEST, content)
        for start in starts:
            self.store.delete(_name(start))
        self._digest, self._end, self._segments = hashlib.sha256(content), len(content), 0

    def append(self, path: Path) -> None:
        """Put what has been appended to the manifest in `path` since it was written.

        Raises StoreError: another run has continued it.
        """
        with path.open("rb") as file:
            file.seek(self._end)
            lines = whole_lines(file.read())
        if not lines:
            return
        if self._segments >= _MOST_SEGMENTS:
            self.write(path)
            return
        self._put_new(_name(self._end), _header(self._digest.hexdigest()) + lines)
        self._digest.update(lines)
        self._end += len(lines)
        self._segments += 1

    def _continued(self, content: bytes, starts: list[int]) -> bytes | None:
        """The content with the segments that continue it; None: one was deleted meanwhile."""
        parts, end, digest = [content], len(content), hashlib.sha256(content)
        for start in starts:
            if start != end:
                continue
            segment = self.store.read(_name(start))
            if segment is None:
                return None
            header, newline, lines = segment.partition(b"\n")
            if header + newline == _header(digest.hexdigest()):
                parts.append(lines)
                end += len(lines)
                digest.update(lines)
        return b"".join(parts)

    def _starts(self) -> list[int]:
        """Where the segments start, counted in bytes of the manifest, in order."""
        names = map(_SEGMENT.fullmatch, self.store.sizes(_FOLDER))
        return sorted(int(found[1]) for found in names if found)

    def _put_new(self, name: str, data: bytes) -> None:
        try:
            written = self.store.put_if(name, data, None)
        except ConditionsError:
            self.store.put(name, data)
            return
        # Perhaps an earlier request was carried out, and only its answer lost.
        if written is None and self.store.read(name) != data:
            raise StoreError(f"{self.store.location}: another run has continued {MANIFEST}: {name} is there already")


def load_stored(store: ObjectStore, root: Path | None = None) -> tuple[Manifest, list[int]]:
    """The manifest of the run in a store, and the numbers of its damaged lines.

    Args:
        root: the folder that image folders within the run are relative to.

    Raises:
        UserError: the store holds no run, its first line is damaged, or it is of another schema version.
        StoreError: the store cannot be reached.
    """
    content = StoredManifest(store).read()
    if content is None:
        raise UserError(f"{store.location} is not an sgpipe run: it has no {MANIFEST}")
    return Manifest.parse(content, root or Path(store.location), f"{store.location}/{MANIFEST}")


def _name(start: int) -> str:
    return f"{_FOLDER}/manifest-{start:015d}.jsonl"


def _header(digest: str) -> bytes:
    return json.dumps({"continues": digest}).encode() + b"\n"
