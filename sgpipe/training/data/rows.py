"""The rows that an epoch goes through, a window of row groups in memory at a time.

Which rows and relations of a shard count for training, for a whole table at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.training.annotations import SceneAnnotation, SceneObject, SceneRelation
from sgpipe.errors import UserError
from sgpipe.storage.shards import IMAGE_COLUMN, read_row_group
from sgpipe.training.data.contents import Chunk, TrainSet
from sgpipe.training.data.order import Epoch

COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status")


@dataclass(frozen=True)
class Row:
    """A row of a table in memory; `folder`: index into the folders of the set."""

    table: pa.Table
    place: int
    folder: int

    def values(self) -> dict[str, Any]:
        """Everything but the image."""
        return self.table.select(COLUMNS).slice(self.place, 1).to_pylist()[0]

    def embedded(self) -> bytes | None:
        """The image file, if the shard holds it."""
        if IMAGE_COLUMN not in self.table.column_names:
            return None
        return (self.table[IMAGE_COLUMN][self.place].as_py() or {}).get("bytes")


def walk(trainset: TrainSet, epoch: Epoch, position: int = 0) -> Iterator[Row]:
    """The rows of an epoch from a position on; what lies before its window is not read.

    Raises UserError: a shard is missing, damaged, or not as it was when it was scanned.
    """
    window, skipped = epoch.find(position)
    while visits := epoch.visits_of(window):
        chunks = [trainset.chunks[visit.chunk] for visit in visits]
        tables = [read_row_group(Path(chunk.file), chunk.group, COLUMNS, (IMAGE_COLUMN,)) for chunk in chunks]
        usable = [_usable(table, chunk, trainset.threshold) for table, chunk in zip(tables, chunks, strict=True)]
        for visit, place in epoch.order(window, usable)[skipped:]:
            yield Row(tables[visit], place, chunks[visit].folder)
        window, skipped = window + 1, 0


def _usable(table: pa.Table, chunk: Chunk, threshold: float) -> list[int]:
    rows = Counted(table, threshold).usable
    if len(rows) < chunk.rows:
        raise UserError(f"shard {chunk.file} has changed since it was scanned; start again")
    return rows[: chunk.rows].tolist()


def scene_graph(values: Mapping[str, Any], threshold: float) -> SceneAnnotation:
    """What counts of a row: the objects that are not crowds, and the relations between them.

    Boxes are xywh in pixels of the original image; an object's id is its place in the row.

    Args:
        threshold: least confidence of a relation, as a float32.
    """
    objects = tuple(
        SceneObject(place, item["category"], tuple(item["bbox"]))
        for place, item in enumerate(values["objects"] or ())
        if not item["iscrowd"]
    )
    there = {item.object_id for item in objects}
    relations = tuple(
        SceneRelation(item["subject"], item["object"], item["predicate"], item["confidence"])
        for item in values["relations"] or ()
        if item["subject"] in there and item["object"] in there
    )
    return SceneAnnotation(values["image_id"], objects, relations).confident(float(np.float32(threshold)))


FILTER_COLUMNS = ("image_id", "objects", "relations", "status")


class Flattened:
    """A column of lists of structs as one long list of structs; a missing list is an empty one."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self.lengths: np.ndarray = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        self.rows = np.repeat(np.arange(len(self.lengths)), self.lengths)  # the row of each struct
        self._structs = array.flatten()

    def __getitem__(self, field: str) -> pa.Array:
        return pc.struct_field(self._structs, field)


@dataclass(frozen=True)
class Counted:
    """What of a table with `FILTER_COLUMNS` counts for training.

    Args:
        threshold: least confidence of a relation; one without confidence counts in any case.
    """

    table: pa.Table
    threshold: float

    @cached_property
    def ok(self) -> np.ndarray:
        """`[rows]`: False for error rows."""
        return pc.equal(self.table["status"], "ok").to_numpy()

    @cached_property
    def _objects(self) -> Flattened:
        return Flattened(self.table["objects"])

    @cached_property
    def _relations(self) -> Flattened:
        return Flattened(self.table["relations"])

    @cached_property
    def _crowd(self) -> np.ndarray:
        """`[all objects]`"""
        return pc.fill_null(self._objects["iscrowd"], False).to_numpy(zero_copy_only=False)

    @cached_property
    def _relation_counts(self) -> np.ndarray:
        """`[all relations]`"""
        confidence = self._relations["confidence"].to_numpy(zero_copy_only=False)  # NaN: none
        low = confidence < np.float32(self.threshold)
        crowd = self._crowd[self._ends("subject")] | self._crowd[self._ends("object")]
        return ~low & ~crowd & self.ok[self._relations.rows]

    def _ends(self, field: str) -> np.ndarray:
        """`[all relations]`, into all objects.

        Raises UserError: a relation of an object that its image lacks.
        """
        ends = pc.fill_null(self._relations[field], -1).to_numpy(zero_copy_only=False)
        rows, lengths = self._relations.rows, self._objects.lengths
        bad = np.flatnonzero((ends < 0) | (ends >= lengths[rows]))
        if len(bad):
            image = self.table["image_id"][int(rows[bad[0]])]
            raise UserError(f"image {image} has a relation of object {ends[bad[0]]}, which it lacks")
        return (np.cumsum(lengths) - lengths)[rows] + ends

    @cached_property
    def usable(self) -> np.ndarray:
        """`[usable rows]`: their places in the table, in order."""
        return np.unique(self._relations.rows[self._relation_counts])

    def object_names(self) -> dict[str, int]:
        """How often each occurs, in order of first appearance."""
        return _frequencies(self._objects["category"], ~self._crowd & self.ok[self._objects.rows])

    def relation_names(self) -> dict[str, int]:
        """How often each occurs, in order of first appearance."""
        return _frequencies(self._relations["predicate"], self._relation_counts)


def _frequencies(names: pa.Array, mask: np.ndarray) -> dict[str, int]:
    counts = pc.value_counts(names.filter(pa.array(mask)))
    return {item["values"]: item["counts"] for item in counts.to_pylist()}
