"""`sgpipe score`: a copy of a run with an additional column, the CLIP agreement of each relation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from sgpipe.generation.clip_agreement import Agreement
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Record, from_table
from sgpipe.storage.database import open_run
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import AGREEMENT, embedded_images, read_file, write_table
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import file_sha256, fingerprint

TYPE = pa.list_(
    pa.struct({"score": pa.float32(), "swapped": pa.float32(), "rank": pa.int32(), "contrasts": pa.int32()})
)
Scorer = Callable[[Record, Image.Image], list[Agreement | None]]


def score_run(
    root: Path,
    out: Path,
    make_scorer: Callable[[], Scorer],
    identity: dict[str, Any],
    progress: Progress,
    images: Path | None = None,
) -> dict[str, int]:
    """Copy the shards of a run to `out` with scores; an earlier call that stopped is resumed.

    Args:
        make_scorer: called once, if there is anything to score.
        identity: everything that decides the scores; a folder with another identity is refused.
        images: the image folder, if the images moved.

    Returns:
        the number of relations that were scored, and of those that could not be.

    Raises UserError: a folder is not a run or another one, a shard cannot be read, or another process writes to `out`.
    """
    source, folder = Manifest.load(root), RunFolder(out)
    scorer, counts = None, {"scored": 0, "unscored": 0}
    with folder.lock():
        manifest = _open(source, folder, identity)
        done = {(shard.split, shard.start): shard.stop for shard in manifest.shards}
        folder.sweep(manifest)
        with progress.images(None, "scoring") as advance:
            for shard in source.shards:
                if done.get((shard.split, shard.start)) != shard.stop:
                    scorer = scorer or make_scorer()
                    table = _scored(source, root / shard.file, scorer, images, counts)
                    manifest.commit(_write(out, shard, table))
                    advance(shard.rows, shard.counts)
        folder.write_readme(f"{source.run.get('name', '')}: scored by sgpipe", "Scores are CLIP's.", manifest)
    return counts


def frequent_predicates(root: Path, count: int) -> list[str]:
    """The most frequent predicates of a run, for contrast texts.

    Raises UserError: it is not a run, or a shard cannot be read.
    """
    with open_run(root) as database:
        rows = database.rows("select predicate from predicates order by relations desc, predicate limit ?", count)
    return [predicate for (predicate,) in rows]


def model_identity(name: str | None) -> str | None:
    """A name unchanged; a file or folder as the hash of its content."""
    path = Path(name or "")
    if name is None or not path.exists():
        return name
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return "sha256:" + fingerprint({file.name: file_sha256(file) for file in files})


def _open(source: Manifest, folder: RunFolder, identity: dict[str, Any]) -> Manifest:
    parts = {"scored": source.run.get("fingerprint"), **identity}
    images = {split: str(folder) for split, folder in source.image_folders.items()}
    return folder.open({**source.run, "images": images, "identity": parts})


def _scored(source: Manifest, file: Path, scorer: Scorer, images: Path | None, counts: dict[str, int]) -> pa.Table:
    table = read_file(file)
    column = []
    for record, embedded in zip(from_table(table), embedded_images(table), strict=True):
        agreements = _agreements(source, record, embedded, scorer, images)
        counts["unscored"] += agreements.count(None)
        counts["scored"] += len(agreements) - agreements.count(None)
        column.append([agreement and asdict(agreement) for agreement in agreements])
    metadata = table.schema.metadata
    return table.append_column(AGREEMENT, pa.array(column, TYPE)).replace_schema_metadata(metadata)


def _agreements(
    source: Manifest, record: Record, embedded: bytes | None, scorer: Scorer, images: Path | None
) -> list[Agreement | None]:
    """The agreement of each relation; None for all of them if the image cannot be opened."""
    if record.ok and record.relations:
        try:
            return scorer(record, open_row_image(source.image_folders, record, embedded, images))
        except ImageError:
            pass
    return [None] * len(record.relations)


def _write(out: Path, shard: ShardEntry, table: pa.Table) -> ShardEntry:
    with atomic_write(out / shard.file) as temporary:
        write_table(temporary, table)
        values = asdict(shard) | {"sha256": file_sha256(temporary), "bytes": temporary.stat().st_size}
    return ShardEntry(**values)
