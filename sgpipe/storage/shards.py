"""Shards: Parquet files with one row per image, written whole or not at all, read through the
manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.errors import StoreError, UnavailableError, UserError, first_line, is_unavailable
from sgpipe.files.locations import Location, open_shard_file
from sgpipe.files.stores import StorePath
from sgpipe.records import (
    LEFT_OUT,
    NO_OBJECT,
    ORIGINS,
    SCHEMA,
    BoxOrigin,
    Record,
    to_table,
)
from sgpipe.storage.manifest import DATA, ShardEntry, WriterClaim, sync_folder
from sgpipe.storage.shard_file import (
    ShardFile,
    check_version,
    version_of,
)
from sgpipe.utils.atomic import atomic_write, fault_point
from sgpipe.utils.console import count

if TYPE_CHECKING:
    pass

IMAGE_COLUMN = "image"
SOURCES = "sources"  # of merged runs: the rows of single runs that a row was made from
# Columns of `sgpipe score`, by CLIP and by a vision-language model: lists with such an entry for
# each of `relations`.
CLIP_SCORE = "clip_score"
VLM_SCORE = "vlm_score"
SCORES = {
    CLIP_SCORE: pa.struct(
        {
            "score": pa.float32(),
            "swapped": pa.float32(),
            "rank": pa.int32(),
            "contrasts": pa.int32(),
        }
    ),
    VLM_SCORE: pa.float32(),
}

# What Hugging Face datasets look for to show the column as images.
_IMAGES_METADATA = {
    "huggingface": json.dumps({"info": {"features": {IMAGE_COLUMN: {"_type": "Image"}}}})
}

_POINTERS = (
    ("pairs", "subject", "objects"),
    ("pairs", "object", "objects"),
    ("relations", "subject", "objects"),
    ("relations", "object", "objects"),
    ("triplets", "caption", "captions"),
)
_NESTED = ("objects", "captions", "triplets", "pairs", "relations")
_MAY_BE_NULL = {
    "subject_category",
    "object_category",
    "confidence",
    "score",
    "phrase",
    "attributes",
    "segmentation",
}
_TOLERANCE = 0.01  # pixels
_MOST_IN_MEMORY = 4 << 20  # bytes of a copy of a shard in a store


@dataclass(frozen=True)
class ShardLayout:
    """How the rows of a shard are stored.

    Attributes:
        rows_per_group: training reads a group at a time.
        page_index: whether readers find the pages of a column without reading the others.
    """

    rows_per_group: int = 512
    page_index: bool = False


_WORK_UNIT = ShardLayout()

# The items of a column of lists, and the row of each.
Items: TypeAlias = tuple[np.ndarray, pa.Array]
Fault: TypeAlias = tuple[str, np.ndarray]  # what is wrong, and the rows


def shard_name(split: str, start: int, stop: int, revision: int = 0) -> str:
    """Path of a shard within its run, by its range of rows; a revision above 0 marks rows that were
    processed again.
    """
    suffix = f"-r{revision}" if revision else ""
    return f"{DATA}/{split}-{start:09d}-{stop:09d}{suffix}.parquet"


def revision_of(file: str) -> int:
    _, mark, number = Path(file).stem.rpartition("-r")
    return int(number) if mark and number.isdigit() else 0


def write_shard(
    root: Location,
    name: str,
    split: str,
    start: int,
    records: list[Record],
    seconds: dict[str, float],
    images: Sequence[bytes | None] | None = None,
    claim: WriterClaim | None = None,
) -> ShardEntry:
    """Write records `start`… of a split to `root/name` and describe the shard for the manifest.

    Raises as `write_copy`; no file is left behind.

    Args:
        images: the image files of the records, for a column `image`.
        claim: see `write_copy`.
    """
    table = to_table(records) if images is None else with_images(to_table(records), images)
    shard = ShardEntry(split, start, start + len(records), name, "", 0, {}, seconds)
    return write_copy(root, shard, table, claim=claim)


def write_copy(
    root: Location,
    shard: ShardEntry,
    table: pa.Table,
    counts: Mapping[str, int] | None = None,
    claim: WriterClaim | None = None,
    layout: ShardLayout = _WORK_UNIT,
) -> ShardEntry:
    """Write a shard with these rows into a run and return its entry.

    It is made in memory, and written or uploaded whole.

    Args:
        counts: if they are not those of the rows.
        claim: of the run on its store; None: `root` is a folder.

    Raises:
        TakenOverError: another run has claimed the store.
        OSError: it cannot be written.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, table.schema, compression="zstd", write_page_index=layout.page_index
    ) as writer:
        writer.write_table(table, row_group_size=layout.rows_per_group)
    data = buffer.getvalue()
    path = root / shard.file
    if claim is not None:
        claim.write(shard.file, data)
    else:
        assert isinstance(path, Path), path
        path.parent.mkdir(parents=True, exist_ok=True)
        fault_point("before write")
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                fault_point("mid write")  # not synced
                file.flush()
                os.fsync(file.fileno())
            fault_point("before rename")
        fault_point("after rename")
        sync_folder(path.parent)
    counts = {**shard.counts, **(counts or count_rows(table))}
    return replace(shard, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), counts=counts)


def replace_column(table: pa.Table, name: str, values: Sequence[object]) -> pa.Table:
    """Return a table with other values in a column, of its type."""
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, field.type))


def with_images(table: pa.Table, images: Sequence[bytes | None]) -> pa.Table:
    """Return the rows with their image files in an additional column `image`."""
    names = table["file_name"].to_pylist()
    files = [
        data and {"bytes": data, "path": name} for data, name in zip(images, names, strict=True)
    ]
    column = pa.array(files, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = table.append_column(IMAGE_COLUMN, column)
    return table.replace_schema_metadata({**table.schema.metadata, **_IMAGES_METADATA})


def embedded_images(table: pa.Table) -> list[bytes | None]:
    """Return the image file of each row, None where the shard does not hold it."""
    if IMAGE_COLUMN not in table.column_names:
        return [None] * table.num_rows
    return [image and image["bytes"] for image in table[IMAGE_COLUMN].to_pylist()]


def read_file(
    path: Location, columns: Sequence[str] | None = None, content: pa.NativeFile | None = None
) -> pa.Table:
    """Return one shard file, or the file `content` that messages call `path`, as a table. Raises as
    `open_shard`.
    """
    with open_shard(path, [name.partition(".")[0] for name in columns or ()], content) as file:
        return file.read(columns=list(columns) if columns else None)


def open_checked(root: Location, shard: ShardEntry) -> pa.NativeFile:
    """Open the file of a shard; of a store a copy: in memory, or if it is large in a temporary
    file.

    Raises:
        UserError: missing, or not what is listed.
        OSError: it cannot be read.
    """
    path = root / shard.file
    try:
        file = _copy_of(path, shard.bytes) if isinstance(path, StorePath) else pa.OSFile(str(path))
    except FileNotFoundError:
        raise UserError("listed in the manifest but missing") from None
    if file.size() != shard.bytes:
        raise UserError(
            f"{count(file.size(), 'byte')}, the manifest says {shard.bytes:,}: truncated, or"
            " another file"
        )
    if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
        raise UserError("its content has changed: the checksum differs from the manifest's")
    file.seek(0)
    return file


def _copy_of(path: StorePath, size: int) -> pa.NativeFile:
    """Download a shard, as large as the manifest says. Raises FileNotFoundError."""
    if size > _MOST_IN_MEMORY:
        copy = tempfile.TemporaryFile()  # noqa: SIM115, its reader closes it
        with path.open() as source:
            shutil.copyfileobj(source, copy, _MOST_IN_MEMORY)
        copy.seek(0)
        return pa.PythonFile(copy, "r")
    content = path.read()
    if content is None:
        raise FileNotFoundError(str(path))
    return pa.BufferReader(content)


def read_checked(
    root: Location, shard: ShardEntry, columns: Sequence[str], run: object
) -> pa.Table:
    """Return one shard as a table.

    Raises:
        UserError: it is missing, or a byte of it is not as it was written.
    """
    try:
        file = open_checked(root, shard)
    except StoreError:
        raise
    except (OSError, UserError):
        raise damaged(run, shard.file) from None
    return read_file(root / shard.file, columns, file)


def damaged(run: object, file: str) -> UserError:
    """Return the error for a shard of a run that another one is made from."""
    return UserError(
        f"{file} of {run} is missing or damaged; the command that started {run} makes it again"
    )


@contextmanager
def open_shard(
    path: Location, columns: Sequence[str] = (), content: pa.NativeFile | BinaryIO | None = None
) -> Iterator[ShardFile]:
    """Open a shard, or its `content`.

    Raises:
        UnavailableError: its disk or a network fails for now.
        UserError: missing, damaged (also later), other schema, no `columns`.
    """
    try:
        with pq.ParquetFile(content or open_shard_file(path), pre_buffer=True) as file:
            rules = check_version(version_of(file.schema_arrow), f"shard {path}")
            shard = ShardFile(file, rules)
            absent = [name for name in columns if name not in shard.schema_arrow.names]
            if absent:
                raise UserError(
                    f"shard {path} has no column {absent[0]!r}: it is not an sgpipe shard"
                )
            yield shard
    except FileNotFoundError:
        advice = "the command that wrote the run makes it again, or `sgpipe fetch` downloads it"
        raise UserError(f"shard {path} is listed in the manifest but missing; {advice}") from None
    except StoreError:
        raise
    except (OSError, pa.ArrowException) as error:
        kind = UnavailableError if is_unavailable(error) else UserError
        raise kind(f"shard {path} cannot be read ({first_line(error)})") from None


def read_row_group(
    path: Location, group: int, columns: Sequence[str], optional: Sequence[str] = ()
) -> pa.Table:
    """Return one row group, with the optional columns where the shard has them; columns may be
    paths of nested ones. Raises as `open_shard`.
    """
    with open_shard(path, [name.partition(".")[0] for name in columns]) as file:
        present = [name for name in optional if name in file.schema_arrow.names]
        return file.read_row_group(group, columns=[*columns, *present])


def row_faults(table: pa.Table, split: str) -> Iterator[str]:
    """Yield what is wrong in rows of `SCHEMA` of a split: one line for each kind of fault."""
    table = table.combine_chunks()
    for fault, faulty in _faults(table, split):
        rows = np.unique(faulty)
        if len(rows):
            first = table["image_id"][int(rows[0])].as_py()
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            yield f"{fault} (image {first!r}{more})"


def count_rows(table: pa.Table) -> dict[str, int]:
    """Return the counts that the summary of a run adds up over its shards."""
    triplets = flat(table["triplets"])[1]
    matched = pc.and_(
        pc.is_valid(pc.struct_field(triplets, "subject_category")),
        pc.is_valid(pc.struct_field(triplets, "object_category")),
    )
    totals = {name: len(flat(table[name])[1]) for name in _NESTED}
    origins = pc.struct_field(flat(table["objects"])[1], "origin")
    rare = {"grounded": _sum(pc.equal(origins, "grounded"))}
    left_out = table["left_out"].combine_chunks()
    for name in LEFT_OUT:
        rare[f"{name}_left_out"] = _sum(pc.struct_field(left_out, name))
    counts = {
        "images": table.num_rows,
        "errors": int(np.sum(_numpy(table["status"]) != "ok")),
        "boxes": totals["objects"],
        "captions": totals["captions"],
        "triplets": totals["triplets"],
        "matched_triplets": _sum(matched),
        "pairs": totals["pairs"],
        "relations": totals["relations"],
        "images_with_relations": int(np.sum(lengths(table["relations"]) > 0)),
    }
    return counts | {name: number for name, number in rare.items() if number}


def _sum(column: pa.Array) -> int:
    """Return the sum of a column, 0 without values."""
    return pc.sum(column, min_count=0).as_py()


def _faults(table: pa.Table, split: str) -> Iterator[Fault]:
    """Yield kinds of faults, each with the rows that have it."""
    items = {name: flat(table[name]) for name in _NESTED}
    yield f"not of split {split!r}", np.flatnonzero(_numpy(table["split"]) != split)
    yield from _status_faults(table)
    yield from _null_faults(items)
    yield from _pointer_faults(table, items)
    yield from _relation_faults(*items["relations"])
    yield from _origin_faults(items)
    yield from _box_faults(table, *items["objects"])


def _status_faults(table: pa.Table) -> Iterator[Fault]:
    status = _numpy(table["status"])
    reason = _numpy(pc.fill_null(table["error"], ""))
    failed = status == "error"
    yield "status is neither ok nor error", np.flatnonzero(~failed & (status != "ok"))
    yield "error row without a reason", np.flatnonzero(failed & (reason == ""))
    yield "error row with relations", np.flatnonzero(failed & (lengths(table["relations"]) > 0))
    yield "error reason in a row with status ok", np.flatnonzero((status == "ok") & (reason != ""))


def _null_faults(items: Mapping[str, Items]) -> Iterator[Fault]:
    for name, (rows, values) in items.items():
        for number, child in enumerate(SCHEMA.field(name).type.value_type):
            if child.name not in _MAY_BE_NULL:
                is_null = _numpy(pc.is_null(pc.struct_field(values, [number])))
                yield f"{name} without {child.name}", rows[is_null]


def _pointer_faults(table: pa.Table, items: Mapping[str, Items]) -> Iterator[Fault]:
    """Yield indices into other lists of the row which these do not have."""
    for name, end, target in _POINTERS:
        rows, values = items[name]
        places = _numpy(pc.fill_null(pc.struct_field(values, end), 0))
        outside = _outside(places, rows, table[target])
        yield f"{end} of {name} points to none of the {target}", rows[outside]
    rows, captions = items["captions"]
    caption_numbers, boxes = flat(pc.struct_field(captions, "boxes"))
    places = _numpy(pc.fill_null(boxes, -1))
    rows = rows[caption_numbers]
    outside = _outside(places, rows, table["objects"])
    yield "boxes of captions point to none of the objects", rows[outside]


def _relation_faults(rows: np.ndarray, relations: pa.Array) -> Iterator[Fault]:
    confidence = _numpy(pc.fill_null(pc.struct_field(relations, "confidence"), 1.0))
    yield "confidence is not from 0 to 1", rows[~((confidence >= 0) & (confidence <= 1))]


def _origin_faults(items: Mapping[str, Items]) -> Iterator[Fault]:
    """Yield origins that no stage has; those of relations may be several, joined by +."""
    box_origins = set(get_args(BoxOrigin))
    relation_origins = set(ORIGINS)
    for name in ("objects", "relations"):
        rows, values = items[name]
        origins = pc.struct_field(values, "origin")
        unknown: list[str] = []
        for text in pc.unique(origins.drop_null()).to_pylist():
            is_known = text in box_origins
            if name == "relations":
                is_known = relation_origins.issuperset(text.split("+"))
            if not is_known:
                unknown.append(text)
        is_unknown = pc.is_in(origins, value_set=pa.array(unknown, origins.type))
        yield f"origin of {name} is unknown", rows[_numpy(is_unknown)]


def _box_faults(table: pa.Table, rows: np.ndarray, objects: pa.Array) -> Iterator[Fault]:
    boxes = pc.struct_field(objects, "bbox")
    has_four = lengths(boxes) == 4
    yield "bbox is not four numbers", rows[~has_four]
    values = pc.list_flatten(boxes.filter(pa.array(has_four)))
    xywh = _numpy(pc.fill_null(values, np.nan)).reshape(-1, 4)
    rows = rows[has_four]
    names = _numpy(pc.struct_field(objects, "category"))[has_four]
    widths = table["width"].to_numpy()
    heights = table["height"].to_numpy()
    sides = np.column_stack([widths, heights])[rows].astype(float)
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.any(xywh[:, :2] + xywh[:, 2:] > sides + _TOLERANCE, axis=1)
        inside = np.all(xywh[:, :2] >= 0, axis=1) & np.all(xywh[:, 2:] > 0, axis=1) & ~far
    nothing = (names == NO_OBJECT) & ~np.any(xywh, axis=1)
    unfit = ~np.isfinite(xywh).all(axis=1) | ~(inside | nothing)
    yield "bbox is not inside its image", rows[unfit]


def _outside(places: np.ndarray, rows: np.ndarray, target: pa.ChunkedArray) -> np.ndarray:
    """Return which of the places are none in the list that `target` has in their row."""
    return (places < 0) | (places >= lengths(target)[rows])


def flat(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return the row of every item of a column of lists, and the items."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.list_parent_indices(array).to_numpy(zero_copy_only=False), pc.list_flatten(array)


def lengths(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def _numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
