"""Writing one shard: temporary file, sync, rename. Nothing half-written ever has a shard's name."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sgpipe.records import Record, to_table
from sgpipe.shards.manifest import ShardEntry, sync_folder
from sgpipe.sources.json_stream import file_sha256

DATA = "data"


def shard_name(split: str, start: int, stop: int, revision: int = 0) -> str:
    """Path of a shard inside its run, the same for the same range; a revision marks rows done again."""
    suffix = f"-r{revision}" if revision else ""
    return f"{DATA}/{split}-{start:09d}-{stop:09d}{suffix}.parquet"


def write_shard(
    root: Path, name: str, split: str, start: int, records: list[Record], seconds: dict[str, float]
) -> ShardEntry:
    """Put records `start`… of a split into `root/name` and describe the shard for the manifest.

    Raises OSError: disk full, folder gone, no permission; no file is left behind.
    """
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_table(temporary, to_table(records))
        digest, size = file_sha256(temporary), temporary.stat().st_size
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return ShardEntry(
        split=split,
        start=start,
        stop=start + len(records),
        file=name,
        sha256=digest,
        bytes=size,
        counts=count(records),
        seconds=seconds,
    )


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file and sync it to the disk."""
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def count(records: list[Record]) -> dict[str, int]:
    """What the summary of a run adds up over its shards."""
    return {
        "images": len(records),
        "errors": sum(not r.ok for r in records),
        "boxes": sum(len(r.objects) for r in records),
        "captions": sum(len(r.captions) for r in records),
        "triplets": sum(len(r.triplets) for r in records),
        "matched_triplets": sum(
            t.subject_category is not None and t.object_category is not None for r in records for t in r.triplets
        ),
        "pairs": sum(len(r.pairs) for r in records),
        "relations": sum(len(r.relations) for r in records),
        "images_with_relations": sum(bool(r.relations) for r in records),
    }
