"""The files of a run that is read: a folder, a folder whose shards are in an object store, or a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from sgpipe.files.locations import Location, absolute_location, location, sizes
from sgpipe.files.model_cache import cache_folder
from sgpipe.files.object_store import StorePath
from sgpipe.records import SCHEMA
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.shards import DATA, open_shard

_CACHE = ".sgpipe/cache"


class RunFiles:
    """Where the manifest and the shards of a run are: `root`, as messages name it, and `storage`."""

    def __init__(self, root: str | Location) -> None:
        """Raises UserError: there is no run, or its manifest is damaged. StoreError: the store cannot be reached."""
        self._place = location(root)
        self.root = str(self._place)
        self._folder = self._place if isinstance(self._place, Path) else None
        self.manifest, bad = Manifest.salvage(self._place)
        advice = f"`sgpipe verify {self.root} --repair`" if self._folder else "restore it from a copy"
        self.problems = [f"{self.root}/{MANIFEST}: line {line} is damaged; {advice}" for line in bad]
        self.storage = absolute_location(self._place)
        mirror = self.manifest.run.get("store")
        if mirror and self._folder and not all((self._folder / each.file).is_file() for each in self.manifest.shards):
            self.storage = StorePath(mirror)

    def states(self) -> dict[str, str]:
        """Return what tells whether each shard of the manifest is still the same file; "missing" where there is none.

        Raises StoreError: the store cannot be reached.
        """
        local, found = isinstance(self.storage, Path), {}
        if not local:
            found = {f"{DATA}/{name}": str(size) for name, size in sizes(self.storage / DATA).items()}
        for shard in self.manifest.shards if local else ():
            with suppress(OSError):
                status = os.stat(f"{self.storage}/{shard.file}")
                found[shard.file] = f"{status.st_size} {status.st_mtime_ns}"
        return {shard.file: f"{shard.sha256} {found.get(shard.file, 'missing')}" for shard in self.manifest.shards}

    @contextmanager
    def open(self, file: str) -> Iterator[pq.ParquetFile]:
        """Yield a shard; of one in a store only what is read is downloaded. Raises as `open_shard`."""
        with open_shard(self.storage / file, SCHEMA.names) as shard:
            yield shard

    @property
    def judgements(self) -> Path:
        """The file of people's judgements: in the folder, or in the cache, as nothing is appended to an object."""
        return (self._folder or self.cache) / JUDGEMENTS

    @cached_property
    def cache(self) -> Path:
        """A folder to keep what was derived: RUN/.sgpipe/cache, or one in the user's cache for a run in a store or in a
        folder that cannot be written. Raises OSError."""
        if self._folder is not None:
            place = self._folder / _CACHE
            with suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
                if os.access(place, os.W_OK | os.X_OK) and "?" not in str(place):  # where DuckDB's options begin
                    return place
        name = self.root if self._folder is None else str(self._folder.absolute())
        place = cache_folder() / "runs" / hashlib.sha256(name.encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        return place
