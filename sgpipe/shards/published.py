"""What of a run is kept in its store besides the shards: the manifest, so that every machine can go on from it."""

from __future__ import annotations

import time
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.shards.folder import RunFolder
from sgpipe.shards.manifest import MANIFEST, Manifest, replace_manifest, whole_lines

_SECONDS_BETWEEN_COPIES = 30.0


class Published:
    """Copies of a run's files in its store. Without a store nothing here does anything."""

    def __init__(self, folder: RunFolder) -> None:
        self.root = folder.root
        self.store = folder.store
        self._copied = -_SECONDS_BETWEEN_COPIES

    def reconcile(self) -> None:
        """Of the manifests in the folder and in the store, keep the one that goes on from the other.

        Raises UserError: neither does; they are of different runs, or the shards are elsewhere.
        """
        here = whole_lines(self.root / MANIFEST)
        self._check_place(here)
        if self.store is None:
            return
        there = self.store.read(MANIFEST) or b""
        if len(there) > len(here) and there.startswith(here):
            replace_manifest(self.root, there)
        elif not here.startswith(there):
            raise UserError(f"{self.root} and {self.store.uri} hold different runs; choose another --out or --store")

    def _check_place(self, manifest: bytes) -> None:
        if not manifest or not (loaded := Manifest.load(self.root)).shards:
            return
        before, now = loaded.run.get("store"), self.store and self.store.uri
        if before != now:
            raise UserError(
                f"the shards of {self.root} are in {before or self.root}; "
                + (f"go on with --store {before}" if before else "go on without --store, or choose another --out")
            )

    def copy_index(self, index: Path) -> None:
        """Copy a source index into the store, unless it is there; what tells of it comes last."""
        about = index.with_suffix(".json")
        if self.store and self.store.read(self._name(about)) != about.read_bytes():
            self._copy(index, about)

    def copy_manifest(self, *, soon: bool = False) -> None:
        """Copy the manifest into the store; `soon`: only if the copy there is half a minute old."""
        if not soon or time.monotonic() - self._copied > _SECONDS_BETWEEN_COPIES:
            self._copy(self.root / MANIFEST)
            self._copied = time.monotonic()

    def __enter__(self) -> Published:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """However it ended: what is committed is in the store. Raises OSError, unless there is an error already."""
        try:
            self._copy(*(self.root / name for name in ("recipe.yaml", "README.md", MANIFEST)))
        except OSError:
            if kind is None:
                raise

    def _copy(self, *paths: Path) -> None:
        if self.store:
            for path in paths:
                self.store.put_file(self._name(path), path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
