"""What can be wrong in the rows of a shard, and how many there are of what."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.records import NO_OBJECT, SCHEMA

_POINTERS = (
    ("pairs", "subject", "objects"),
    ("pairs", "object", "objects"),
    ("relations", "subject", "objects"),
    ("relations", "object", "objects"),
    ("triplets", "caption", "captions"),
)
_NESTED = ("objects", "captions", "triplets", "pairs", "relations")
_MAY_BE_NULL = {"subject_category", "object_category", "confidence"}
_TOLERANCE = 0.01  # pixels


def row_faults(table: pa.Table, split: str) -> Iterator[str]:
    """Yield what is wrong in rows of `SCHEMA` of a split: one line for each kind of fault.

    References (`objects` of relations, pairs and captions, `captions` of triplets), boxes, confidences, missing
    values, and error rows without a reason.
    """
    table = table.combine_chunks()
    for what, rows in _faults(table, split):
        if len(rows := np.unique(rows)):
            first = table["image_id"][int(rows[0])].as_py()
            yield f"{what} (image {first!r}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''})"


def count_rows(table: pa.Table) -> dict[str, int]:
    """Return the counts that the summary of a run adds up over its shards."""
    triplets = _flat(table["triplets"])[1]
    matched = pc.and_(*(pc.is_valid(pc.struct_field(triplets, f"{end}_category")) for end in ("subject", "object")))
    totals = {name: len(_flat(table[name])[1]) for name in _NESTED}
    return {
        "images": table.num_rows,
        "errors": int(np.sum(_text(table["status"]) != "ok")),
        "boxes": totals["objects"],
        "captions": totals["captions"],
        "triplets": totals["triplets"],
        "matched_triplets": pc.sum(matched).as_py() or 0,
        "pairs": totals["pairs"],
        "relations": totals["relations"],
        "images_with_relations": int(np.sum(_lengths(table["relations"]) > 0)),
    }


def _faults(table: pa.Table, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds of faults and the rows that have them."""
    yield f"not of split {split!r}", np.flatnonzero(_text(table["split"]) != split)
    yield from _status(table)
    for name in _NESTED:
        rows, items = _flat(table[name])
        for number, child in enumerate(SCHEMA.field(name).type.value_type):
            if child.name not in _MAY_BE_NULL:
                nulls = pc.is_null(pc.struct_field(items, [number])).to_numpy(zero_copy_only=False)
                yield f"{name} without {child.name}", rows[nulls]
    for name, end, target in _POINTERS:
        rows, items = _flat(table[name])
        places = pc.fill_null(pc.struct_field(items, end), 0).to_numpy(zero_copy_only=False)
        yield f"{end} of {name} points to none of the {target}", rows[_outside(places, rows, table[target])]
    rows, items = _flat(table["captions"])
    inner, boxes = _flat(pc.struct_field(items, "boxes"))
    places = pc.fill_null(boxes, -1).to_numpy(zero_copy_only=False)
    yield "boxes of captions point to none of the objects", rows[inner][_outside(places, rows[inner], table["objects"])]
    rows, items = _flat(table["relations"])
    confidence = pc.fill_null(pc.struct_field(items, "confidence"), 1.0).to_numpy(zero_copy_only=False)
    yield "confidence is not from 0 to 1", rows[~((confidence >= 0) & (confidence <= 1))]
    yield from _boxes(table)


def _status(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    status, reason = _text(table["status"]), _text(pc.fill_null(table["error"], ""))
    failed = status == "error"
    yield "status is neither ok nor error", np.flatnonzero(~failed & (status != "ok"))
    yield "error row without a reason", np.flatnonzero(failed & (reason == ""))
    yield "error row with relations", np.flatnonzero(failed & (_lengths(table["relations"]) > 0))
    yield "error reason in a row with status ok", np.flatnonzero((status == "ok") & (reason != ""))


def _boxes(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    rows, items = _flat(table["objects"])
    boxes = pc.struct_field(items, "bbox")
    whole = _lengths(boxes) == 4
    yield "bbox is not four numbers", rows[~whole]
    values = pc.list_flatten(boxes.filter(pa.array(whole)))
    xywh = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False).reshape(-1, 4)
    rows, names = rows[whole], _text(pc.struct_field(items, "category"))[whole]
    sides = np.column_stack([table[side].to_numpy() for side in ("width", "height")])[rows].astype(float)
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.any(xywh[:, :2] + xywh[:, 2:] > sides + _TOLERANCE, axis=1)
        inside = np.all(xywh[:, :2] >= 0, axis=1) & np.all(xywh[:, 2:] > 0, axis=1) & ~far
    nothing = (names == NO_OBJECT) & ~np.any(xywh, axis=1)
    unfit = ~np.isfinite(xywh).all(axis=1) | ~(inside | nothing)
    yield "bbox is not inside its image", rows[unfit]


def _outside(places: np.ndarray, rows: np.ndarray, target: pa.ChunkedArray) -> np.ndarray:
    """Return which of the places are none in the list that `target` has in their row."""
    return (places < 0) | (places >= _lengths(target)[rows])


def _flat(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return the row of every item of a column of lists, and the items."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.list_parent_indices(array).to_numpy(zero_copy_only=False), pc.list_flatten(array)


def _lengths(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def _text(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
