"""What of a run is kept in its store besides the shards: the manifest, so that every machine can go on from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.shards.folder import RunFolder
from sgpipe.shards.manifest import MANIFEST, Manifest, replace_manifest, whole_lines

DESCRIPTIONS = ("recipe.yaml", "README.md")
_SECONDS_BETWEEN_COPIES = 30.0


class Published:
    """Copies of a run's files in its store. Without a store nothing here does anything."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.store = folder.store
        self._manifest = folder.root / MANIFEST
        self._copied = -_SECONDS_BETWEEN_COPIES

    @contextmanager
    def reconciled(self) -> Iterator[None]:
        """Of the manifests in the folder and in the store, keep the one that goes on from the other.

        A UserError within puts the folder's manifest back as it was.

        Raises UserError: neither goes on from the other, or the shards are elsewhere.
        """
        here = whole_lines(self._manifest)
        self._check_place()
        latest = here if self.store is None else go_on(here, self.store.read(MANIFEST) or b"", self.folder)
        if latest != here:
            replace_manifest(self.folder.root, latest)
        try:
            yield
        except UserError:
            if latest != here:
                replace_manifest(self.folder.root, here) if here else self._manifest.unlink()
            raise

    def _check_place(self) -> None:
        if not whole_lines(self._manifest) or not (manifest := Manifest.load(self.folder.root)).shards:
            return
        before, now = manifest.run.get("store"), self.store and self.store.place
        if before != now:
            raise UserError(
                f"the shards of {self.folder.root} are in {before or self.folder.root}; "
                + (f"go on with --store {before}" if before else "go on without --store, or choose another --out")
            )

    def copy_index(self, index: Path) -> None:
        """Copy a source index into the store, unless it is there; what tells of it comes last."""
        about = index.with_suffix(".json")
        if self.store and self.store.read(self._name(about)) != about.read_bytes():
            self._copy(index, about)

    def copy(self) -> None:
        """Copy all but the index into the store, the manifest last."""
        self._copy(*(self.folder.root / name for name in DESCRIPTIONS), self._manifest)
        self._copied = time.monotonic()

    def copy_soon(self) -> None:
        """As `copy`, if the copies are half a minute old."""
        if time.monotonic() - self._copied > _SECONDS_BETWEEN_COPIES:
            self.copy()

    def __enter__(self) -> Published:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """However it ended: what is committed is in the store. Raises OSError, unless there is an error already."""
        try:
            self.copy()
        except OSError:
            if kind is None:
                raise

    def _copy(self, *paths: Path) -> None:
        if self.store:
            self.folder.check_lock()
            for path in paths:
                self.store.put_file(self._name(path), path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.root).as_posix()


def go_on(here: bytes, there: bytes, folder: RunFolder) -> bytes:
    """Of the manifest in a folder and that in a store, the one that goes on from the other.

    Raises UserError: neither does.
    """
    if not there.startswith(here) and not here.startswith(there):
        raise UserError(
            f"{folder.root} and its store are of different runs, or both went on by themselves; choose a new --out"
        )
    return max(here, there, key=len)
