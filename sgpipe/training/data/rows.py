"""Read the rows of an epoch, one window of row groups at a time, and filter the rows and relations to train on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.training.annotations import SceneAnnotation, SceneObject, SceneRelation
from sgpipe.calibration import Thresholds
from sgpipe.errors import UserError
from sgpipe.files.remote import uri_of
from sgpipe.storage.shards import IMAGE_COLUMN, read_row_group
from sgpipe.training.data.order import Epoch
from sgpipe.training.data.training_set import TrainingSet, UsableRowGroup
from sgpipe.utils.prefetch import prefetch

_FETCHED = 8  # row groups of a store at once
COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status")
_SHAPES_PER_OCTAVE = 8  # aspect ratios that differ by less than 9% may count as equal


@dataclass(frozen=True)
class TrainingRow:
    """A row of a table in memory.

    Args:
        index: of the row in the table.
        folder: index into the folders of the training set.
    """

    table: pa.Table
    index: int
    folder: int

    def values(self) -> dict[str, Any]:
        """All columns but the image."""
        return self.table.select(COLUMNS).slice(self.index, 1).to_pylist()[0]

    def embedded(self) -> bytes | None:
        """The image file, if the shard contains it."""
        if IMAGE_COLUMN not in self.table.column_names:
            return None
        return (self.table[IMAGE_COLUMN][self.index].as_py() or {}).get("bytes")


def iter_epoch(training_set: TrainingSet, epoch: Epoch, position: int = 0) -> Iterator[TrainingRow]:
    """The rows of an epoch from a position on; earlier windows are not read.

    Raises:
        UserError: a shard is missing or damaged, or has changed since the scan.
        StoreError: the store that it is in cannot be reached.
    """
    window, skipped = epoch.find(position)
    with closing(_read_windows(training_set, epoch, window)) as windows:
        for groups, tables in windows:
            usable = [
                _usable_rows(table, group, training_set.threshold) for table, group in zip(tables, groups, strict=True)
            ]
            shapes = [_aspect_ratios(table) for table in tables] if epoch.step is not None else []
            for visit, index in epoch.order(window, usable, shapes)[skipped:]:
                yield TrainingRow(tables[visit], index, groups[visit].folder)
            window, skipped = window + 1, 0


def _read_windows(
    training_set: TrainingSet, epoch: Epoch, window: int
) -> Generator[tuple[list[UsableRowGroup], list[pa.Table]], None, None]:
    """The row groups of each window from this one on. Threads read those in a store while the last window is used."""
    groups = [training_set.row_groups[visit.row_group] for visit in epoch.visits[window * epoch.window :]]
    threads = _FETCHED if any(uri_of(folder.root) for folder in training_set.folders) else 0
    with prefetch(_read, groups, threads, epoch.window + 1) as tables:
        for start in range(0, len(groups), epoch.window):
            yield groups[start : start + epoch.window], list(islice(tables, epoch.window))


def _read(group: UsableRowGroup) -> pa.Table:
    return read_row_group(Path(group.file), group.group, COLUMNS, (IMAGE_COLUMN,))


def _usable_rows(table: pa.Table, row_group: UsableRowGroup, threshold: Thresholds) -> list[int]:
    rows = TrainingFilter(table, threshold).usable_rows
    if row_group.kept is not None:
        kept = np.unpackbits(np.frombuffer(row_group.kept, np.uint8), count=len(table))
        rows = rows[kept[rows] == 1]
    if len(rows) < row_group.rows:
        raise UserError(f"shard {row_group.file} has changed since the training started; start it again")
    return rows[: row_group.rows].tolist()


def _aspect_ratios(table: pa.Table) -> np.ndarray:
    """`[rows]`: the rounded logarithm of width / height; 0 where there is no size."""
    width, height = (pc.fill_null(table[name], 1).to_numpy().clip(1) for name in ("width", "height"))
    return np.round(_SHAPES_PER_OCTAVE * np.log2(width / height))


def scene_graph(values: Mapping[str, Any], threshold: Thresholds) -> SceneAnnotation:
    """The usable part of a row: objects that are not crowds, and confident relations between them.

    Boxes are xywh in pixels of the original image. An object's id is its index in the row.

    Args:
        threshold: minimum confidence of a relation.
    """
    objects = tuple(
        SceneObject(index, item["category"], tuple(item["bbox"]))
        for index, item in enumerate(values["objects"] or ())
        if not item["iscrowd"]
    )
    kept = {item.object_id for item in objects}
    relations = tuple(
        SceneRelation(item["subject"], item["object"], item["predicate"], item["confidence"])
        for item in values["relations"] or ()
        if item["subject"] in kept and item["object"] in kept and threshold.keeps(item["predicate"], item["confidence"])
    )
    return SceneAnnotation(values["image_id"], objects, relations)


class FlatColumn:
    """A column of lists of structs as one flat list of structs; null lists count as empty."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self.lengths: np.ndarray = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        self.rows = np.repeat(np.arange(len(self.lengths)), self.lengths)  # row of each struct
        self._structs = array.flatten()

    def __getitem__(self, field: str) -> pa.Array:
        return pc.struct_field(self._structs, field)


@dataclass(frozen=True)
class TrainingFilter:
    """The usable rows and relations of a table; `TrainingSet` defines both.

    Args:
        table: with the columns image_id, objects, relations and status.
        threshold: minimum confidence of a relation; relations without confidence are always usable.
    """

    table: pa.Table
    threshold: Thresholds

    @cached_property
    def ok(self) -> np.ndarray:
        """`[rows]`: False for error rows."""
        return pc.equal(self.table["status"], "ok").to_numpy()

    @cached_property
    def _objects(self) -> FlatColumn:
        return FlatColumn(self.table["objects"])

    @cached_property
    def _relations(self) -> FlatColumn:
        return FlatColumn(self.table["relations"])

    @cached_property
    def _crowd(self) -> np.ndarray:
        """`[all objects]`"""
        return pc.fill_null(self._objects["iscrowd"], False).to_numpy(zero_copy_only=False)

    @cached_property
    def _usable_relations(self) -> np.ndarray:
        """`[all relations]`"""
        confidence = self._relations["confidence"].to_numpy(zero_copy_only=False)  # NaN: no confidence
        unsure = confidence < self.threshold.of_column(self._relations["predicate"])
        crowd = self._crowd[self._ends("subject")] | self._crowd[self._ends("object")]
        return ~unsure & ~crowd & self.ok[self._relations.rows]

    def _ends(self, field: str) -> np.ndarray:
        """`[all relations]`: indices into all objects.

        Raises UserError: a relation refers to an object that its image does not have.
        """
        ends = pc.fill_null(self._relations[field], -1).to_numpy(zero_copy_only=False)
        rows, lengths = self._relations.rows, self._objects.lengths
        bad = np.flatnonzero((ends < 0) | (ends >= lengths[rows]))
        if len(bad):
            image = self.table["image_id"][int(rows[bad[0]])]
            raise UserError(f"image {image} has a relation with object {ends[bad[0]]}, which does not exist")
        return (np.cumsum(lengths) - lengths)[rows] + ends

    @cached_property
    def usable_rows(self) -> np.ndarray:
        """`[usable rows]`: their indices in the table, in order."""
        return np.unique(self._relations.rows[self._usable_relations])

    def object_names(self) -> dict[str, int]:
        """The frequency of each class name, in order of first occurrence."""
        return _frequencies(self._objects["category"], ~self._crowd & self.ok[self._objects.rows])

    def relation_names(self) -> dict[str, int]:
        """The frequency of each predicate of usable relations, in order of first occurrence."""
        return _frequencies(self._relations["predicate"], self._usable_relations)


def _frequencies(names: pa.Array, mask: np.ndarray) -> dict[str, int]:
    counts = pc.value_counts(names.filter(pa.array(mask)))
    return {item["values"]: item["counts"] for item in counts.to_pylist()}
