"""Which rows and relations of a shard count for training, for a whole table at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError

COLUMNS = ("image_id", "objects", "relations", "status")


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
    """What of a table with `COLUMNS` counts for training.

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
