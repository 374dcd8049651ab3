"""A run in an object store, as a folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sgpipe.errors import StoreError, UserError, naming
from sgpipe.shards.folder import RunFolder
from sgpipe.shards.manifest import MANIFEST, Manifest, ShardEntry, replace_manifest, whole_lines
from sgpipe.shards.published import DESCRIPTIONS, go_on
from sgpipe.shards.store import Store
from sgpipe.sources.json_stream import file_sha256


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
