"""What the shards of a run, or of a dataset of runs, contain: its tables, records and relations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import check_share, import_extra
from sgpipe.files.locations import Location
from sgpipe.records import IMAGE_FIELDS, SCHEMA, Record, from_table
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.shards import flat, lengths, read_file
from sgpipe.utils.boxes import xywh_to_xyxy

if TYPE_CHECKING:
    import pandas as pd

_IMAGE_COLUMNS = ("image_id", "split", "file_name")
_RELATION_COLUMNS = (
    *_IMAGE_COLUMNS,
    "objects.list.element.category",
    "objects.list.element.bbox.list.element",
    "relations",
)


def iter_tables(root: str | Location, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Return the shards of a run, by split and position, one in memory at a time."""
    manifest = load_manifest(root)
    return (read_file(manifest.location_of(shard.file), columns) for shard in manifest.shards)


def iter_records(root: str | Location, *columns: str) -> Iterator[Record]:
    """Return the records of a run, a shard in memory at a time.

    Args:
        columns: of the nested ones, those that are read; by default all columns are.

    Raises:
        UserError: not a run; later, a damaged shard.
    """
    names = (*IMAGE_FIELDS, *columns) if columns else SCHEMA.names
    return (record for table in iter_tables(root, names) for record in from_table(table))


@dataclass(frozen=True)
class Run:
    """A run, in a folder or a store ("s3://bucket/run"), or a dataset of runs ("labels/part-*"), read
    one shard at a time; iterating gives its records.
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

        Raises:
            UserError: not a run, a shard is missing or damaged, or the threshold is not 0 to 1.
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
        """Return `to_arrow` as a data frame.

        Raises:
            UserError: as `relation_tables`, or pandas is not installed.
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
        for number, side in enumerate(("x1", "y1", "x2", "y2")):
            columns[f"{end}_{side}"] = xyxy[place, number]
    columns["predicate"] = pc.struct_field(relations, "predicate")
    columns["confidence"] = confidence.filter(confident)
    return pa.table(columns)
