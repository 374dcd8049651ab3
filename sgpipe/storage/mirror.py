"""What of a run is kept in its store besides the shards: the manifest, so that every machine can go on from it.

A run in an object store, as a folder.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sgpipe.errors import StoreError, UserError, naming
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry, replace_manifest, whole_lines
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.storage import Store
from sgpipe.utils.hashing import file_sha256

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


def fetch(store: Store, out: Path, advance: Callable[[int, Mapping[str, int]], None]) -> Manifest:
    """Bring a run into a folder; what is there already, byte for byte, is not fetched again.

    Args:
        advance: told how many images are there, shard by shard.

    Raises:
        UserError: the store holds no run, the folder another one.
        StoreError: an object is missing, or is not what the manifest says.
    """
    folder = RunFolder(out)
    there = store.read(MANIFEST)
    if there is None:
        raise UserError(f"{store.place} holds no sgpipe run: there is no {MANIFEST} in it")
    with folder.lock():
        content = go_on(whole_lines(out / MANIFEST), there, folder)
        with TemporaryDirectory() as temporary:
            replace_manifest(Path(temporary), content)
            shards = Manifest.load(Path(temporary)).shards
        for shard in shards:
            _fetch_shard(store, out, shard)
            advance(shard.rows, shard.counts)
        for name in DESCRIPTIONS:
            if (description := store.read(name)) is not None:
                (out / name).write_bytes(description)
        replace_manifest(out, content)
        manifest = Manifest.load(out)
        folder.sweep(manifest)
    return manifest


def _fetch_shard(store: Store, out: Path, shard: ShardEntry) -> None:
    path = out / shard.file
    if path.is_file() and file_sha256(path) == shard.sha256:
        return
    if not store.has(shard.file):
        raise StoreError(f"{store.place}: {shard.file} is missing; the run makes it again")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            store.get_file(shard.file, temporary)
        if file_sha256(temporary) != shard.sha256:
            raise StoreError(f"{store.place}: {shard.file} is not what the manifest says; the run makes it again")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
