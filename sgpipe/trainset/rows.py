"""The rows that an epoch goes through, a window of row groups in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlip_model.training.annotations import SceneGraph, SceneObject, SceneRelation
from sgpipe.errors import UserError
from sgpipe.shards.row_groups import read_row_group
from sgpipe.shards.write import PICTURES
from sgpipe.trainset.contents import Chunk, TrainSet
from sgpipe.trainset.order import Epoch
from sgpipe.trainset.usable import Counted

COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status")


@dataclass(frozen=True)
class Row:
    """A row of a table in memory; `folder`: index into the folders of the set."""

    table: pa.Table
    place: int
    folder: int

    def values(self) -> dict[str, Any]:
        """Everything but the picture."""
        return self.table.select(COLUMNS).slice(self.place, 1).to_pylist()[0]

    def picture(self) -> bytes | None:
        """The image file, if the shard holds it."""
        if PICTURES not in self.table.column_names:
            return None
        return (self.table[PICTURES][self.place].as_py() or {}).get("bytes")


def walk(trainset: TrainSet, epoch: Epoch, position: int = 0) -> Iterator[Row]:
    """The rows of an epoch from a position on; what lies before its window is not read.

    Raises UserError: a shard is missing, damaged, or not as it was when it was scanned.
    """
    window, skipped = epoch.find(position)
    while visits := epoch.visits_of(window):
        chunks = [trainset.chunks[visit.chunk] for visit in visits]
        tables = [read_row_group(Path(chunk.file), chunk.group, COLUMNS, (PICTURES,)) for chunk in chunks]
        usable = [_usable(table, chunk, trainset.threshold) for table, chunk in zip(tables, chunks, strict=True)]
        for visit, place in epoch.order(window, usable)[skipped:]:
            yield Row(tables[visit], place, chunks[visit].folder)
        window, skipped = window + 1, 0


def _usable(table: pa.Table, chunk: Chunk, threshold: float) -> list[int]:
    rows = Counted(table, threshold).usable
    if len(rows) < chunk.rows:
        raise UserError(f"shard {chunk.file} has changed since it was scanned; start again")
    return rows[: chunk.rows].tolist()


def scene_graph(values: Mapping[str, Any], threshold: float) -> SceneGraph:
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
    return SceneGraph(values["image_id"], objects, relations).confident(float(np.float32(threshold)))
