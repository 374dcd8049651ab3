"""The ordered pairs of boxes whose classes a statement relates.

A statement says that a box of one class may stand in some relations to a box of another class; it holds for
every such pair of boxes. Images with very many boxes are cut to their most visible pairs on the way, so that
memory stays in proportion to the pairs kept, not to the square of the boxes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sgpipe.records import Box, Pair

Indices: TypeAlias = npt.NDArray[np.int64]
ClassPair: TypeAlias = tuple[str, str]
Predicates: TypeAlias = Mapping[ClassPair, Sequence[str]]

_BLOCK = 1 << 18


def candidate_pairs(
    objects: Sequence[Box],
    predicates: Predicates,
    *,
    require_overlap: bool = False,
    limit: int | None = None,
) -> list[Pair]:
    """All ordered pairs of distinct boxes, not crowds, whose (subject class, object class) has predicates.

    Args:
        objects: boxes of one image; the pairs index them.
        predicates: what a subject of the first class may be to an object of the second.
        require_overlap: only pairs of boxes that share some area.
        limit: most pairs returned. The largest boxes keep theirs: boxes are taken by falling area, each with
            its pairs with the boxes before it, until there are enough.

    Returns:
        pairs by subject, then object index, each with its own copy of the predicates.
    """
    wanted = {pair: texts for pair, texts in predicates.items() if texts}
    classes = {name for pair in wanted for name in pair}
    usable = [i for i, box in enumerate(objects) if box.category in classes and not box.iscrowd]
    if not usable:
        return []
    boxes = np.array([objects[i].bbox for i in usable], np.float64)
    names = [objects[i].category for i in usable]
    chosen = _choose(boxes, names, wanted, require_overlap, limit)
    return [
        Pair(usable[i], usable[j], list(wanted[names[i], names[j]]))
        for i, j in chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))].tolist()
    ]


def overlapping(boxes: npt.NDArray[np.float64], pairs: Indices) -> npt.NDArray[np.bool_]:
    """Which pairs [n, 2] of the xywh boxes [m, 4] share some area; boxes that touch do not."""
    first, second = boxes[pairs[:, 0]], boxes[pairs[:, 1]]
    centres = first[:, :2] + first[:, 2:] / 2 - second[:, :2] - second[:, 2:] / 2
    return np.logical_and.reduce(np.abs(centres) < (first[:, 2:] + second[:, 2:]) / 2, axis=1)


def _choose(
    boxes: npt.NDArray[np.float64],
    names: list[str],
    wanted: Collection[ClassPair],
    require_overlap: bool,
    limit: int | None,
) -> Indices:
    """At most `limit` index pairs [n, 2], in no particular order; found in blocks of falling box area."""
    order = np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")
    members: dict[str, list[int]] = {}
    for rank, index in enumerate(order.tolist()):
        members.setdefault(names[index], []).append(rank)
    ranks = {name: np.array(found) for name, found in members.items()}
    class_pairs = [(ranks[s], ranks[o]) for s, o in wanted if s in ranks and o in ranks]
    found, count, start = [np.zeros((0, 2), np.int64)], 0, 0
    while start < len(boxes) and (limit is None or count < limit):
        stop = _block_end(class_pairs, start, len(boxes))
        pairs = _pairs_of_block(class_pairs, start, stop)
        if require_overlap:
            pairs = pairs[overlapping(boxes, order[pairs])]
        if limit is not None and count + len(pairs) > limit:
            late, early = pairs.max(1), pairs.min(1)
            pairs = pairs[np.lexsort((pairs[:, 0], early, late))][: limit - count]
        found.append(pairs)
        count, start = count + len(pairs), stop
    chosen: Indices = order[np.concatenate(found)]
    return chosen


def _block_end(class_pairs: list[tuple[Indices, Indices]], start: int, end: int) -> int:
    """The last rank up to which a block from `start` has few enough pairs; at least one box."""

    def count(stop: int) -> int:
        """Pairs among the boxes of lower rank, those of a box with itself included."""
        return sum(int(np.searchsorted(s, stop) * np.searchsorted(o, stop)) for s, o in class_pairs)

    if sum(len(s) * len(o) for s, o in class_pairs) <= _BLOCK:
        return end
    allowed = count(start) + _BLOCK
    low, high = start + 1, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= allowed else (low, middle - 1)
    return low


def _pairs_of_block(class_pairs: list[tuple[Indices, Indices]], start: int, stop: int) -> Indices:
    """Rank pairs [n, 2] whose later box lies in [start, stop)."""
    found = [np.zeros((0, 2), np.int64)]
    for subjects, objects in class_pairs:
        old, end = np.searchsorted(subjects, (start, stop))
        old_objects, end_objects = np.searchsorted(objects, (start, stop))
        found.append(_product(subjects[old:end], objects[:end_objects]))
        found.append(_product(subjects[:old], objects[old_objects:end_objects]))
    pairs = np.concatenate(found)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _product(first: Indices, second: Indices) -> Indices:
    pairs = np.empty((len(first), len(second), 2), np.int64)
    pairs[:, :, 0] = first[:, None]
    pairs[:, :, 1] = second
    return pairs.reshape(-1, 2)
