"""The copy of a run in an object store: kept up to date while the run is made, and fetched.

From the copy of its manifest any machine can resume or fetch the run.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location
from sgpipe.files.stores import StorePath
from sgpipe.storage.manifest import (
    MANIFEST,
    Manifest,
    ShardEntry,
    read_manifest,
    replace_manifest,
    whole_lines,
)
from sgpipe.storage.run_folder import PRIVATE, README, RECIPE, RunFolder
from sgpipe.storage.shards import open_checked
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.hashing import file_sha256

_SECONDS_BETWEEN_COPIES = 30.0
_LONGER_THAN_COPIES = 20.0  # times as long as a copy takes


class ManifestMirror:
    """Copies the files of a run, apart from shards, into its store. Without a store it does
    nothing.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.store = folder.store
        self._copied: dict[str, bytes] = {}  # as they are in the store
        self._next = 0.0  # time of the next copy
        self.has_work = True
        self.is_owner = True

    @contextmanager
    def reconciled(self) -> Iterator[None]:
        """Keep the later of the manifests in the folder and in the store, where one continues the
        other.

        At the end of the block the store is this run's own (`is_owner`), unless there is no work
        and nothing to copy: another run may be at work. A UserError within restores the folder's
        manifest.
        """
        local = _lines_of(self.folder.root)
        if local:
            self._check_place()
        remote = _lines_of(self.store)
        latest = later(local, remote, self.folder)
        if latest != local:
            replace_manifest(self.folder.root, latest)
        try:
            yield
            self._refuse_newer(remote)
            self.is_owner = self.store is None or self.has_work or remote != latest
            if self.is_owner and self.folder.claim:
                self.folder.claim.make()
                self._refuse_newer(remote)  # from the claim on, nobody else writes
        except UserError:
            if latest != local:
                self._restore(local)
            raise

    def _restore(self, manifest: bytes) -> None:
        if manifest:
            replace_manifest(self.folder.root, manifest)
        else:
            (self.folder.root / MANIFEST).unlink()

    def _check_place(self) -> None:
        """Raise UserError if the shards of the folder's manifest are in another place."""
        manifest = Manifest.load(self.folder.root)
        before = manifest.run.get("store")
        now = self.store.uri if self.store else None
        if before == now or not manifest.shards:
            return
        advice = f"--store {before}" if before else "no --store, or choose another --out"
        raise UserError(
            f"the shards of {self.folder.root} are in {before or 'it'}; resume with {advice}"
        )

    def _refuse_newer(self, manifest: bytes) -> None:
        if _lines_of(self.store) != manifest:
            raise UserError(
                f"another run is writing into {self.folder.location}; wait for it to finish"
            )

    def copy_index(self, index: Path) -> None:
        """Copy a source index into the store unless it is already there; its description is copied
        last.
        """
        if self.store is None:
            return
        description = index.with_suffix(".json")
        stored = self.store / PRIVATE
        if (stored / description.name).read() != description.read_bytes():
            for part in SourceIndex(index).parts:
                (stored / part.name).put(part)
            (stored / description.name).put(description)

    def copy(self) -> None:
        """Copy everything but the index into the store, the manifest last.

        Raises:
            StoreError: another run took over.
        """
        claim = self.folder.claim
        if claim is None:
            return
        began = time.monotonic()
        for name in (RECIPE, README, MANIFEST):
            file = self.folder.root / name
            if not file.exists():  # compaction reads only the manifest of a run in a store
                continue
            content = whole_lines(file.read_bytes())
            if self._copied.get(name) != content:
                claim.write(name, content)
                self._copied[name] = content
        took = time.monotonic() - began
        self._next = began + took + max(_SECONDS_BETWEEN_COPIES, _LONGER_THAN_COPIES * took)

    def copy_soon(self) -> None:
        """Copy what is new, half a minute after the last copy; later, if a long manifest takes its
        time.
        """
        if time.monotonic() > self._next:
            self.copy()

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Copy what is committed, however the block ends. Raises OSError, unless another error is
        on its way.
        """
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.copy()
            raise
        self.copy()


def _lines_of(place: Location | None) -> bytes:
    """Return the manifest in a place; b"": there is none, or no place."""
    content = None if place is None else read_manifest(place)
    return content or b""


def later(local: bytes, remote: bytes, folder: RunFolder) -> bytes:
    """Return the manifest, of a folder or its store, that continues the other.

    Raises:
        UserError: neither does.
    """
    if not remote.startswith(local) and not local.startswith(remote):
        raise UserError(f"{folder.root} and its store contain different runs; choose a new --out")
    return max(local, remote, key=len)


def fetch(
    store: StorePath, out: Path, advance: Callable[[int, Mapping[str, int]], None]
) -> Manifest:
    """Download a run into a folder, but for files that are there, byte for byte; `advance` gets the
    rows of each shard.

    Raises:
        UserError: the store contains no run, or the folder another one.
        StoreError: an object is missing or damaged.
    """
    folder = RunFolder(out)
    remote = read_manifest(store)
    if remote is None:
        raise UserError(f"{store.uri} is not an sgpipe run: it has no {MANIFEST}")
    with folder.lock():
        content = later(_lines_of(out), remote, folder)
        manifest = Manifest.parse(content, out, store)
        for shard in manifest.shards:
            _fetch_shard(store, shard, out / shard.file)
            advance(shard.rows, shard.counts)
        for name in (RECIPE, README):
            text = (store / name).read()
            if text is not None:
                with atomic_write(out / name) as temporary:
                    temporary.write_bytes(text)
        replace_manifest(out, content)
        folder.sweep(manifest)
    return manifest


def _fetch_shard(store: StorePath, shard: ShardEntry, path: Path) -> None:
    """Download a shard into a file, unless it is there.

    Raises:
        StoreError: it is missing or damaged.
    """
    if path.is_file() and file_sha256(path) == shard.sha256:
        return
    try:
        content = open_checked(store, shard).read()
    except UserError as error:
        advice = "delete the object, and the command that wrote the run makes it again"
        raise StoreError(f"{store}/{shard.file}: {error}; {advice}") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
