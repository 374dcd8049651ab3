"""The copy of a run's manifest in its object store, from which any machine can resume or fetch the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import StorePath
from sgpipe.storage.manifest import MANIFEST, Manifest, put_file, read_manifest, replace_manifest, whole_lines
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import checked_content
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.hashing import file_sha256

DESCRIPTIONS = ("recipe.yaml", "README.md")
_SECONDS_BETWEEN_COPIES, _LONGER_THAN_COPIES = 30.0, 20.0


class ManifestMirror:
    """Copies the files of a run, apart from shards, into its store. Without a store it does nothing."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.store = folder.store
        self._manifest = folder.root / MANIFEST
        self._copied: dict[str, bytes] = {}  # as they are in the store
        self._next = 0.0  # time of the next copy
        self.has_work, self.is_owner = True, True

    @contextmanager
    def reconciled(self) -> Iterator[None]:
        """Keep the later of the manifests in the folder and in the store, where one continues the other.

        At the end of the block the store is this run's own (`is_owner`), unless there is no work and nothing to copy:
        another run may be at work. A UserError within restores the folder's manifest.
        """
        local = _local(self._manifest)
        if local and (manifest := Manifest.load(self.folder.root)).shards:
            before, now = manifest.run.get("store"), self.store and self.store.location
            if before != now:
                advice = f"--store {before}" if before else "no --store, or choose another --out"
                raise UserError(f"the shards of {self.folder.root} are in {before or 'it'}; resume with {advice}")
        remote = self._remote()
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
                replace_manifest(self.folder.root, local) if local else self._manifest.unlink()
            raise

    def _refuse_newer(self, manifest: bytes) -> None:
        if self._remote() != manifest:
            raise UserError(f"another run is writing into {self.folder.location}; wait for it to finish")

    def _remote(self) -> bytes:
        return (self.store and read_manifest(self.store)) or b""

    def copy_index(self, index: Path) -> None:
        """Copy a source index into the store unless it is already there; its description is copied last."""
        description = index.with_suffix(".json")
        names = {path: path.relative_to(self.folder.root).as_posix() for path in (index, description)}
        if self.store and (self.store / names[description]).read() != description.read_bytes():
            for path, name in names.items():
                (self.store / name).put(path)

    def copy(self) -> None:
        """Copy everything but the index into the store, the manifest last. Raises StoreError: another run took over."""
        if self.store is None:
            return
        began = time.monotonic()
        for name in (*DESCRIPTIONS, MANIFEST):
            content = whole_lines((self.folder.root / name).read_bytes())
            if self._copied.get(name) != content:
                put_file(self.store, name, content, self.folder.check_claim)
                self._copied[name] = content
        took = time.monotonic() - began
        self._next = began + took + max(_SECONDS_BETWEEN_COPIES, _LONGER_THAN_COPIES * took)

    def copy_soon(self) -> None:
        """Copy what is new, half a minute after the last copy; later, if a long manifest takes its time."""
        if time.monotonic() > self._next:
            self.copy()

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Copy what is committed, however the block ends. Raises OSError, unless another error is on its way."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.copy()
            raise
        self.copy()


def _local(manifest: Path) -> bytes:
    return whole_lines(manifest.read_bytes()) if manifest.exists() else b""


def later(local: bytes, remote: bytes, folder: RunFolder) -> bytes:
    """Return the manifest, of a folder or its store, that continues the other. Raises UserError: neither does."""
    if not remote.startswith(local) and not local.startswith(remote):
        raise UserError(f"{folder.root} and its store contain different runs; choose a new --out")
    return max(local, remote, key=len)


def fetch(store: StorePath, out: Path, advance: Callable[[int, Mapping[str, int]], None]) -> Manifest:
    """Download a run into a folder, but for files that are there, byte for byte; `advance` gets the rows of each shard.

    Raises UserError: the store contains no run, or the folder another one; StoreError: an object is missing or damaged.
    """
    folder = RunFolder(out)
    remote = read_manifest(store)
    if remote is None:
        raise UserError(f"{store.location} is not an sgpipe run: it has no {MANIFEST}")
    with folder.lock():
        content = later(_local(out / MANIFEST), remote, folder)
        manifest = Manifest.parse(content, out, store)
        for shard in manifest.shards:
            path = out / shard.file
            if not path.is_file() or file_sha256(path) != shard.sha256:
                try:
                    data = checked_content(store, shard)
                except (FileNotFoundError, UserError) as error:
                    why = "it is missing" if isinstance(error, FileNotFoundError) else error
                    again = "delete the object, and the command that wrote the run makes it again"
                    raise StoreError(f"{store}/{shard.file}: {why}; {again}") from None
                with atomic_write(path) as temporary:
                    temporary.write_bytes(data or b"")
            advance(shard.rows, shard.counts)
        for name in DESCRIPTIONS:
            if (text := (store / name).read()) is not None:
                with atomic_write(out / name) as temporary:
                    temporary.write_bytes(text)
        replace_manifest(out, content)
        folder.sweep(manifest)
    return manifest
