"""Shards: Parquet files with one row per image, written whole or not at all, read through the
manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.errors import StoreError, UserError, check_share, first_line, import_extra
from sgpipe.files.locations import Location, StorePath, open_shard_file
from sgpipe.records import (
    LEFT_OUT,
    NO_OBJECT,
    ORIGINS,
    SCHEMA,
    SCHEMA_VERSION,
    BoxOrigin,
    Record,
    from_table,
    to_table,
)
from sgpipe.storage.manifest import DATA, Manifest, ShardEntry, sync_folder
from sgpipe.utils.atomic import atomic_write, fault_point
from sgpipe.utils.boxes import xywh_to_xyxy
from sgpipe.utils.console import count

if TYPE_CHECKING:
    import pandas as pd

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

_ROWS_PER_GROUP = 512  # training reads a group at a time
# What Hugging Face datasets look for to show the column as images.
_IMAGES_METADATA = {
    "huggingface": json.dumps({"info": {"features": {IMAGE_COLUMN: {"_type": "Image"}}}})
}


_IMAGE_COLUMNS = ("image_id", "split", "file_name")
_RELATION_COLUMNS = (
    *_IMAGE_COLUMNS,
    "objects.list.element.category",
    "objects.list.element.bbox.list.element",
    "relations",
)


_VERSION_KEY = b"sgpipe.schema_version"


_POINTERS = (
    ("pairs", "subject", "objects"),
    ("pairs", "object", "objects"),
    ("relations", "subject", "objects"),
    ("relations", "object", "objects"),
    ("triplets", "caption", "captions"),
)
_NESTED = ("objects", "captions", "triplets", "pairs", "relations")
_MAY_BE_NULL = {
    *("subject_category", "object_category", "confidence"),
    *("score", "phrase", "attributes", "segmentation"),
}
_TOLERANCE = 0.01  # pixels


def shard_name(split: str, start: int, stop: int, revision: int = 0) -> str:
    """Path of a shard within its run, by its range of rows; a revision above 0 marks rows that were
    processed again.
    """
    suffix = f"-r{revision}" if revision else ""
    return f"{DATA}/{split}-{start:09d}-{stop:09d}{suffix}.parquet"


def revision_of(file: str) -> int:
    _, found, number = Path(file).stem.rpartition("-r")
    return int(number) if found and number.isdigit() else 0


def write_shard(
    root: Location,
    name: str,
    split: str,
    start: int,
    records: list[Record],
    seconds: dict[str, float],
    images: Sequence[bytes | None] | None = None,
) -> ShardEntry:
    """Write records `start`… of a split to `root/name` and describe the shard for the manifest.

    `images`: the image files of the records, for a column `image`. Raises OSError; no file is left
    behind.
    """
    table = to_table(records) if images is None else with_images(to_table(records), images)
    return write_copy(
        root, ShardEntry(split, start, start + len(records), name, "", 0, {}, seconds), table
    )


def write_copy(
    root: Location, shard: ShardEntry, table: pa.Table, counts: Mapping[str, int] | None = None
) -> ShardEntry:
    """Write a shard with these rows into a run and return its entry; `counts`: if they are not
    those of the rows.

    It is made in memory, and written or uploaded whole. Raises OSError.
    """
    buffer = io.BytesIO()
    path = root / shard.file
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
    data = buffer.getvalue()
    if isinstance(path, StorePath):
        path.put(data)
    else:
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
    column = pa.array(
        [data and {"bytes": data, "path": name} for data, name in zip(images, names, strict=True)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
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
    """Open the file of a shard, of a store in memory. Raises UserError: missing, or not what is
    listed; OSError.
    """
    path = root / shard.file
    content = path.read() if isinstance(path, StorePath) else None
    if content is None and not (isinstance(path, Path) and path.exists()):
        raise UserError("listed in the manifest but missing")
    file = pa.OSFile(str(path)) if content is None else pa.BufferReader(content)
    if file.size() != shard.bytes:
        raise UserError(
            f"{count(file.size(), 'byte')}, the manifest says {shard.bytes:,}: truncated, or"
            " another file"
        )
    if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
        raise UserError("its content has changed: the checksum differs from the manifest's")
    file.seek(0)
    return file


def read_checked(
    root: Location, shard: ShardEntry, columns: Sequence[str], run: object
) -> pa.Table:
    """Return one shard as a table. Raises UserError: it is missing, or a byte of it is not as it
    was written.
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


def iter_tables(root: str | Location, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Return the shards of a run, by split and position, one in memory at a time."""
    manifest = Manifest.load(root)
    return (read_file(manifest.root / shard.file, columns) for shard in manifest.shards)


def iter_records(root: str | Location) -> Iterator[Record]:
    """Return the records of a run, a shard in memory at a time. Raises UserError: not a run; later,
    a damaged shard.
    """
    return (record for table in iter_tables(root, SCHEMA.names) for record in from_table(table))


@dataclass(frozen=True)
class Run:
    """A run, in a folder or a store ("s3://bucket/run"), read one shard at a time; iterating gives
    its records.
    """

    root: str | Location

    def __iter__(self) -> Iterator[Record]:
        return iter_records(self.root)

    def relation_tables(self, threshold: float = 0.0) -> Iterator[pa.Table]:
        """Yield an Arrow table for each shard, with a row for each relation of at least this
        confidence.

        Ground truth has no confidence, and is always included. Columns: `image_id`, `split`,
        `file_name`; `subject`, `object` (indices of the boxes in their image), each also with
        `_category` and, in pixels, `_x1`, `_y1`, `_x2` and `_y2`; `predicate`, `confidence`.

        Raises UserError: not a run, a shard is missing or damaged, or the threshold is not 0 to 1.
        """
        check_share("threshold", threshold)
        for table in iter_tables(self.root, _RELATION_COLUMNS):
            yield relation_rows(table, threshold)

    def to_arrow(self, threshold: float = 0.0) -> pa.Table:
        """Return all relations as one table, as `relation_tables` does; `polars.from_arrow` takes
        it without a copy.
        """
        return pa.concat_tables(
            [relation_rows(SCHEMA.empty_table(), threshold), *self.relation_tables(threshold)]
        )

    def to_pandas(self, threshold: float = 0.0) -> pd.DataFrame:
        """Return `to_arrow` as a data frame. Raises UserError: as `relation_tables`, or pandas is
        not installed.
        """
        import_extra("pandas")
        return self.to_arrow(threshold).to_pandas()


def relation_rows(table: pa.Table, threshold: float) -> pa.Table:
    """Return the rows of `Run.relation_tables` of a shard."""
    images, relations = flat(table["relations"])
    confidence = pc.struct_field(relations, "confidence")
    confident = pc.fill_null(pc.greater_equal(confidence, pa.scalar(threshold, pa.float32())), True)
    images = images[confident.to_numpy(zero_copy_only=False)]
    relations = relations.filter(confident)
    objects = flat(table["objects"])[1]
    category = pc.struct_field(objects, "category")
    counts = lengths(table["objects"])
    bbox = pc.list_flatten(pc.struct_field(objects, "bbox")).to_numpy(zero_copy_only=False)
    xyxy = xywh_to_xyxy(bbox.reshape(-1, 4))
    first = (np.cumsum(counts) - counts)[images]  # of the objects of the image
    columns = {name: table[name].take(images) for name in _IMAGE_COLUMNS}
    for end in ("subject", "object"):
        columns[end] = pc.struct_field(relations, end)
        place = first + columns[end].to_numpy(zero_copy_only=False)
        columns[f"{end}_category"] = category.take(place)
        columns |= {
            f"{end}_{side}": xyxy[place, i] for i, side in enumerate(("x1", "y1", "x2", "y2"))
        }
    return pa.table(
        columns | {name: pc.struct_field(relations, name) for name in ("predicate", "confidence")}
    )


@contextmanager
def open_shard(
    path: Location, columns: Sequence[str] = (), content: pa.NativeFile | BinaryIO | None = None
) -> Iterator[pq.ParquetFile]:
    """Open a shard, or its `content`. Raises UserError: missing, damaged (also later), other
    schema, no `columns`.
    """
    try:
        with pq.ParquetFile(content or open_shard_file(path), pre_buffer=True) as file:
            schema = file.schema_arrow
            version = (
                (schema.metadata or {}).get(_VERSION_KEY, str(SCHEMA_VERSION).encode()).decode()
            )
            if version != str(SCHEMA_VERSION):
                raise UserError(
                    f"shard {path} has schema version {version}, this sgpipe reads {SCHEMA_VERSION}"
                )
            absent = [name for name in columns if name not in schema.names]
            if absent:
                raise UserError(
                    f"shard {path} has no column {absent[0]!r}: it is not an sgpipe shard"
                )
            yield file
    except FileNotFoundError:
        advice = "the command that wrote the run makes it again, or `sgpipe fetch` downloads it"
        raise UserError(f"shard {path} is listed in the manifest but missing; {advice}") from None
    except StoreError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"shard {path} cannot be read ({first_line(error)})") from None


def read_row_group(
    path: Location, group: int, columns: Sequence[str], optional: Sequence[str] = ()
) -> pa.Table:
    """Return one row group, with the optional columns where the shard has them. Raises as
    `open_shard`.
    """
    with open_shard(path, columns) as file:
        present = [name for name in optional if name in file.schema_arrow.names]
        return file.read_row_group(group, columns=[*columns, *present])


def row_faults(table: pa.Table, split: str) -> Iterator[str]:
    """Yield what is wrong in rows of `SCHEMA` of a split: one line for each kind of fault."""
    table = table.combine_chunks()
    for what, rows in _faults(table, split):
        rows = np.unique(rows)
        if len(rows):
            first = table["image_id"][int(rows[0])].as_py()
            yield f"{what} (image {first!r}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''})"


def count_rows(table: pa.Table) -> dict[str, int]:
    """Return the counts that the summary of a run adds up over its shards."""
    triplets = flat(table["triplets"])[1]
    matched = pc.and_(
        *(
            pc.is_valid(pc.struct_field(triplets, f"{end}_category"))
            for end in ("subject", "object")
        )
    )
    totals = {name: len(flat(table[name])[1]) for name in _NESTED}
    grounded = (
        pc.sum(pc.equal(pc.struct_field(flat(table["objects"])[1], "origin"), "grounded")).as_py()
        or 0
    )
    missing = table["left_out"].combine_chunks()
    left_out = {
        f"{name}_left_out": pc.sum(pc.struct_field(missing, name)).as_py() or 0 for name in LEFT_OUT
    }
    return {
        "images": table.num_rows,
        "errors": int(np.sum(_numpy(table["status"]) != "ok")),
        "boxes": totals["objects"],
        "captions": totals["captions"],
        "triplets": totals["triplets"],
        "matched_triplets": pc.sum(matched).as_py() or 0,
        "pairs": totals["pairs"],
        "relations": totals["relations"],
        "images_with_relations": int(np.sum(lengths(table["relations"]) > 0)),
        **{name: number for name, number in {"grounded": grounded, **left_out}.items() if number},
    }


def _faults(table: pa.Table, split: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"not of split {split!r}", np.flatnonzero(_numpy(table["split"]) != split)
    status = _numpy(table["status"])
    reason = _numpy(pc.fill_null(table["error"], ""))
    failed = status == "error"
    yield "status is neither ok nor error", np.flatnonzero(~failed & (status != "ok"))
    yield "error row without a reason", np.flatnonzero(failed & (reason == ""))
    yield "error row with relations", np.flatnonzero(failed & (lengths(table["relations"]) > 0))
    yield "error reason in a row with status ok", np.flatnonzero((status == "ok") & (reason != ""))
    lists = {name: flat(table[name]) for name in _NESTED}
    for name, (rows, items) in lists.items():
        for number, child in enumerate(SCHEMA.field(name).type.value_type):
            if child.name not in _MAY_BE_NULL:
                yield (
                    f"{name} without {child.name}",
                    rows[_numpy(pc.is_null(pc.struct_field(items, [number])))],
                )
    for name, end, target in _POINTERS:
        rows, items = lists[name]
        places = _numpy(pc.fill_null(pc.struct_field(items, end), 0))
        yield (
            f"{end} of {name} points to none of the {target}",
            rows[_outside(places, rows, table[target])],
        )
    rows, items = lists["captions"]
    inner, boxes = flat(pc.struct_field(items, "boxes"))
    places = _numpy(pc.fill_null(boxes, -1))
    yield (
        "boxes of captions point to none of the objects",
        rows[inner][_outside(places, rows[inner], table["objects"])],
    )
    rows, items = lists["relations"]
    confidence = _numpy(pc.fill_null(pc.struct_field(items, "confidence"), 1.0))
    yield "confidence is not from 0 to 1", rows[~((confidence >= 0) & (confidence <= 1))]
    for name, known in (("objects", get_args(BoxOrigin)), ("relations", ORIGINS)):
        rows, items = lists[name]
        origins = pc.struct_field(items, "origin")
        texts = [text for text in pc.unique(origins).to_pylist() if text is not None]
        unknown = [
            text
            for text in texts
            if not {*(text.split("+") if name == "relations" else [text])} <= {*known}
        ]
        yield (
            f"origin of {name} is unknown",
            rows[_numpy(pc.is_in(origins, value_set=pa.array(unknown, origins.type)))],
        )
    rows, items = lists["objects"]
    boxes = pc.struct_field(items, "bbox")
    whole = lengths(boxes) == 4
    yield "bbox is not four numbers", rows[~whole]
    values = pc.list_flatten(boxes.filter(pa.array(whole)))
    xywh = _numpy(pc.fill_null(values, np.nan)).reshape(-1, 4)
    rows = rows[whole]
    names = _numpy(pc.struct_field(items, "category"))[whole]
    sides = np.column_stack([table[side].to_numpy() for side in ("width", "height")])[rows].astype(
        float
    )
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
