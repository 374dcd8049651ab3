"""The relations of one image in two runs: which are in both, and which in only one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgpipe.records import Box, Relation
from sgpipe.utils.boxes import iou, xywh_to_xyxy

SAME_OBJECT = 0.5  # IoU from which on boxes of a class are the same object


@dataclass(frozen=True)
class ImageComparison:
    """The relations of an image in two runs, each in their order.

    Attributes:
        objects: the objects that both have: index in the first, index in the second.
        both: relations with the same predicate between the same objects.
        here: only in the first. there: only in the second.
    """

    objects: dict[int, int]
    both: list[tuple[Relation, Relation]]
    here: list[Relation]
    there: list[Relation]


def compare_images(
    objects: Sequence[Box], relations: Sequence[Relation], others: Sequence[Box], other_relations: Sequence[Relation]
) -> ImageComparison:
    """Compare an image's relations in two runs, whose boxes may differ.

    Args:
        relations, other_relations: without repetition, between existing objects.
    """
    same = match_objects(objects, others)
    waiting = {(found.subject, found.object, found.predicate): found for found in other_relations}
    both, here = [], []
    for relation in relations:
        key = (same.get(relation.subject, -1), same.get(relation.object, -1), relation.predicate)
        other = waiting.pop(key, None)
        if other is None:
            here.append(relation)
        else:
            both.append((relation, other))
    return ImageComparison(same, both, here, list(waiting.values()))


def match_objects(first: Sequence[Box], second: Sequence[Box]) -> dict[int, int]:
    """One-to-one matches of boxes with the same class and an IoU of at least `SAME_OBJECT`, the highest IoU first."""
    if not first or not second:
        return {}
    rows, columns = (index.ravel() for index in np.indices((len(first), len(second))))
    names = [np.array([box.category for box in boxes]) for boxes in (first, second)]
    same = names[0][rows] == names[1][columns]
    rows, columns = rows[same], columns[same]
    corners = [xywh_to_xyxy(np.array([box.bbox for box in boxes], np.float64)) for boxes in (first, second)]
    overlaps = iou(corners[0][rows], corners[1][columns])
    matches: dict[int, int] = {}
    taken: set[int] = set()
    for at in np.argsort(-overlaps, kind="stable").tolist():
        row, column = int(rows[at]), int(columns[at])
        if overlaps[at] >= SAME_OBJECT and row not in matches and column not in taken:
            matches[row] = column
            taken.add(column)
    return matches
