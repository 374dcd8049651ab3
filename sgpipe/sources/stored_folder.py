"""A prefix of a store as a source: images without annotations, of whose list only a part is in
memory.

Their sizes are not known before workers open them: `add_sizes`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.files.index import NAME, FileIndex
from sgpipe.files.roots import HEIF_SUFFIXES, ImageRoot
from sgpipe.records import FOLDER_DATASET, SCHEMA, Record
from sgpipe.sources.detections import size_or_reason
from sgpipe.sources.folder import (
    HEADERS_PER_THREAD,
    MOST_NAMED,
    SIDECARS,
    SUFFIXES,
    no_images,
    notes_on_unread,
)
from sgpipe.storage.source_index import write_index
from sgpipe.utils.atomic import temporary_folder
from sgpipe.utils.database import configure, interruptible
from sgpipe.utils.prefetch import prefetch

_MEMORY = "256MB"
_ROWS_PER_TABLE = 8192
_HIDDEN = r"(^|/)\."
_UNREAD = rf"""
    WITH files AS (
        SELECT
            name,
            regexp_extract(name, '[^/]*$') AS file,
            regexp_replace(file, '\.[^.]*$', '') AS stem,
            regexp_matches(name, $images) AS is_image
        FROM objects WHERE NOT regexp_matches(name, $hidden)
    ),
    labels AS (
        SELECT file AS label FROM files WHERE is_image
        UNION ALL SELECT stem FROM files WHERE is_image
    ),
    unread AS (
        SELECT name FROM files
        WHERE NOT is_image
        AND NOT (regexp_matches(name, $sidecars) AND stem IN (SELECT label FROM labels))
    )
    SELECT
        count(*),
        min(name, {MOST_NAMED}),
        coalesce(bool_or(regexp_matches(name, $heif)), false)
    FROM unread
"""


def index_prefix(
    path: Path, location: str, index: FileIndex, split: str, files: Mapping[str, object]
) -> None:
    """Write the source index of the images of a prefix, by name, without their sizes.

    Args:
        files: what identifies them.

    Raises:
        UserError: there are none.
    """
    number, notes = _unread(index)
    images = _images(index)
    first = next(images, None)
    if first is None:
        raise UserError(no_images(location, notes))
    digest = hashlib.sha256(b"[")

    def tables() -> Iterator[pa.Table]:
        separator = ""
        for objects in chain([first], images):
            names = objects[NAME].to_pylist()
            listed = json.dumps(list(zip(names, objects["size"].to_pylist(), strict=True)))
            digest.update(f"{separator}{listed[1:-1]}".encode())
            separator = ", "
            yield _records(names, split)

    def meta() -> dict[str, object]:  # after the last table
        digest.update(b"]")
        return {
            "annotations": location,
            "captions": "",
            "annotations_sha256": digest.hexdigest(),
            "notes": notes,
            "files": files,
            "located": True,
            "categories": [],
            "category_ids": [],
            "problems": {"unread_files": number} if number else {},
        }

    write_index(path, tables(), meta)


def _unread(index: FileIndex) -> tuple[int, list[str]]:
    """Return how many files are neither images nor texts of one, and what the user should know of
    them.
    """
    patterns = {
        "images": _ending_in(SUFFIXES),
        "hidden": _HIDDEN,
        "sidecars": _ending_in(SIDECARS),
        "heif": _ending_in(HEIF_SUFFIXES),
    }
    with temporary_folder() as folder, interruptible(), duckdb.connect() as database:
        configure(database, folder, _MEMORY)
        database.register("objects", pa.concat_tables(index.tables()))
        [(number, first, has_heif)] = database.execute(_UNREAD, patterns).fetchall()
    return number, notes_on_unread(number, first or [], has_heif=has_heif)


def _ending_in(suffixes: Sequence[str]) -> str:
    """Return a pattern of names with one of these suffixes, in capitals or not."""
    return rf"(?i)\.({'|'.join(suffix.removeprefix('.') for suffix in suffixes)})$"


def _images(index: FileIndex) -> Iterator[pa.Table]:
    """Yield the images among the files of an index, by name, some thousands at a time."""
    for part in index.tables():
        for start in range(0, len(part), _ROWS_PER_TABLE):
            objects = part.slice(start, _ROWS_PER_TABLE)
            is_hidden = pc.match_substring_regex(objects[NAME], _HIDDEN)
            is_image = pc.match_substring_regex(objects[NAME], _ending_in(SUFFIXES))
            images = objects.filter(pc.and_not(is_image, is_hidden))
            if len(images):
                yield images


def _records(names: Sequence[str], split: str) -> pa.Table:
    """Return images without boxes and size."""
    number = len(names)
    columns = {
        "image_id": names,
        "dataset": [FOLDER_DATASET] * number,
        "split": [split] * number,
        "file_name": names,
        "width": [0] * number,
        "height": [0] * number,
        "objects": [[]] * number,
        "captions": [[]] * number,
        "status": ["ok"] * number,
        "error": [None] * number,
        "left_out": [{"captions": 0}] * number,
    }
    return pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in columns]))


def add_sizes(records: Sequence[Record], roots: Mapping[str, ImageRoot]) -> None:
    """Read the sizes of images that their source does not know; unreadable ones become error
    rows.

    Raises:
        StoreError: a store cannot be reached.
        EngineError: it refuses everything, or this machine has no room.
    """
    unsized = [record for record in records if record.ok and not record.width]
    if not unsized:
        return
    root = roots[unsized[0].split]
    names = [record.file_name for record in unsized]
    threads = HEADERS_PER_THREAD * root.threads
    with prefetch(partial(size_or_reason, root), names, threads, len(names)) as sizes:
        for record, (size, reason) in zip(unsized, sizes, strict=True):
            record.width, record.height = size
            if reason:
                record.fail("source", reason)
