"""Candidate pairs: the ordered pairs of boxes whose classes may be related, with their possible predicates.

The predicates come from the captions of the image, or, for images without captions, from a prior: the predicates
that relate two classes in Visual Genome. They apply to every pair of boxes of these classes. In images with very
many boxes only the largest pairs are kept, block by block, so that memory grows with the pairs kept and not with the
square of the boxes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.records import Box, Pair
from sgpipe.stages.pair.matching import Matcher, normalise_predicate

Indices: TypeAlias = npt.NDArray[np.int64]
ClassPair: TypeAlias = tuple[str, str]
Predicates: TypeAlias = Mapping[ClassPair, Sequence[str]]

_PAIRS_PER_BLOCK = 1 << 18


def candidate_pairs(
    objects: Sequence[Box],
    predicates: Predicates,
    *,
    require_overlap: bool = False,
    limit: int | None = None,
) -> list[Pair]:
    """All ordered pairs of distinct non-crowd boxes whose (subject class, object class) has predicates.

    Args:
        objects: boxes of one image; the pairs index them.
        predicates: possible predicates by (subject class, object class).
        require_overlap: keep only pairs of boxes that share some area.
        limit: maximum number of pairs. Boxes are visited by descending area, each adding its pairs with the boxes
            visited before it, until the limit is reached.

    Returns:
        pairs sorted by subject index, then object index, each with its own copy of the predicates.
    """
    related = {pair: texts for pair, texts in predicates.items() if texts}
    classes = {name for pair in related for name in pair}
    usable = [i for i, box in enumerate(objects) if box.category in classes and not box.iscrowd]
    if not usable:
        return []
    boxes = np.array([objects[i].bbox for i in usable], np.float64)
    names = [objects[i].category for i in usable]
    chosen = _choose(boxes, names, related, require_overlap, limit)
    return [
        Pair(usable[i], usable[j], list(related[names[i], names[j]]))
        for i, j in chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))].tolist()
    ]


def overlapping(boxes: npt.NDArray[np.float64], pairs: Indices) -> npt.NDArray[np.bool_]:
    """Which pairs [n, 2] of the pixel xywh boxes [m, 4] share some area; boxes that only touch do not."""
    first, second = boxes[pairs[:, 0]], boxes[pairs[:, 1]]
    centres = first[:, :2] + first[:, 2:] / 2 - second[:, :2] - second[:, 2:] / 2
    return np.logical_and.reduce(np.abs(centres) < (first[:, 2:] + second[:, 2:]) / 2, axis=1)


def _choose(
    boxes: npt.NDArray[np.float64],
    names: list[str],
    related: Collection[ClassPair],
    require_overlap: bool,
    limit: int | None,
) -> Indices:
    """At most `limit` index pairs [n, 2], in no particular order, collected in blocks of descending box area."""
    order = np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")
    members: dict[str, list[int]] = {}
    for rank, index in enumerate(order.tolist()):
        members.setdefault(names[index], []).append(rank)
    ranks = {name: np.array(own) for name, own in members.items()}
    class_pairs = [(ranks[s], ranks[o]) for s, o in related if s in ranks and o in ranks]
    blocks, count, start = [np.zeros((0, 2), np.int64)], 0, 0
    while start < len(boxes) and (limit is None or count < limit):
        stop = _block_end(class_pairs, start, len(boxes))
        pairs = _pairs_of_block(class_pairs, start, stop)
        if require_overlap:
            pairs = pairs[overlapping(boxes, order[pairs])]
        if limit is not None and count + len(pairs) > limit:
            late, early = pairs.max(1), pairs.min(1)
            pairs = pairs[np.lexsort((pairs[:, 0], early, late))][: limit - count]
        blocks.append(pairs)
        count, start = count + len(pairs), stop
    chosen: Indices = order[np.concatenate(blocks)]
    return chosen


def _block_end(class_pairs: list[tuple[Indices, Indices]], start: int, end: int) -> int:
    """The largest end rank for which a block from `start` has at most `_PAIRS_PER_BLOCK` pairs, or one box."""

    def count(stop: int) -> int:
        """Pairs among the boxes of rank below `stop`, including pairs of a box with itself."""
        return sum(int(np.searchsorted(s, stop) * np.searchsorted(o, stop)) for s, o in class_pairs)

    if sum(len(s) * len(o) for s, o in class_pairs) <= _PAIRS_PER_BLOCK:
        return end
    allowed = count(start) + _PAIRS_PER_BLOCK
    low, high = start + 1, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= allowed else (low, middle - 1)
    return low


def _pairs_of_block(class_pairs: list[tuple[Indices, Indices]], start: int, stop: int) -> Indices:
    """Rank pairs [n, 2] whose higher rank is in [start, stop)."""
    blocks = [np.zeros((0, 2), np.int64)]
    for subjects, objects in class_pairs:
        old, end = np.searchsorted(subjects, (start, stop))
        old_objects, end_objects = np.searchsorted(objects, (start, stop))
        blocks.append(_product(subjects[old:end], objects[:end_objects]))
        blocks.append(_product(subjects[:old], objects[old_objects:end_objects]))
    pairs = np.concatenate(blocks)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _product(first: Indices, second: Indices) -> Indices:
    pairs = np.empty((len(first), len(second), 2), np.int64)
    pairs[:, :, 0] = first[:, None]
    pairs[:, :, 1] = second
    return pairs.reshape(-1, 2)


Prior: TypeAlias = dict[tuple[str, str], list[str]]


def read_prior(path: Location, matcher: Matcher, *, verbatim: bool = False) -> Prior:
    """Collect the prior from a Visual Genome JSON file, one image at a time.

    All of VG's layouts are accepted: `scene_graphs.json` and RLIP's preprocessed files (objects, and relationships
    with `subject_id` and `object_id`), or `relationships.json` (subject and object within the relationship).

    Raises:
        UserError: the file cannot be read, is not JSON or not in a VG layout, or relates none of the classes.
    """
    try:
        prior = collect_prior((item for _, item in JsonStream(path)), matcher, verbatim=verbatim)
    except ValueError as error:
        raise UserError(f"prior {path} is not a Visual Genome scene graph file: {error}") from None
    if not prior:
        raise UserError(f"prior {path}: no relationship is between classes of the dataset")
    return prior


def collect_prior(graphs: Iterable[Any], matcher: Matcher, *, verbatim: bool = False) -> Prior:
    """For each (subject class, object class) the distinct predicates of the graphs, in order of appearance.

    If a name matches several classes, its relationships count for each of them. Unless `verbatim`, predicates are
    lower-cased with single spaces, and empty ones are dropped.

    Raises:
        ValueError: a graph is not in a VG layout; the message says which and why.
    """
    predicates: dict[tuple[str, str], dict[str, None]] = {}
    for graph in graphs:
        for subject, predicate, object_ in _relationships(graph):
            text = predicate if verbatim else normalise_predicate(predicate)
            if not text and not verbatim:
                continue
            for pair in product(matcher.classes(subject), matcher.classes(object_)):
                predicates.setdefault(pair, {})[text] = None
    return {pair: list(texts) for pair, texts in predicates.items()}


def _relationships(graph: Any) -> list[tuple[str, str, str]]:
    """(subject name, predicate, object name) of every relationship of an image."""
    if not isinstance(graph, dict) or not isinstance(graph.get("relationships"), list):
        raise ValueError("expected images with relationships")
    try:
        names = {item["object_id"]: _name(item) for item in graph.get("objects", ())}
        return [
            (_entity(relation, "subject", names), str(relation["predicate"]), _entity(relation, "object", names))
            for relation in graph["relationships"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"image {graph.get('image_id')!r} has a malformed relationship ({error})") from None


def _entity(relation: Mapping[str, Any], role: str, names: Mapping[Any, str]) -> str:
    """The name of a relationship's subject or object, given inline or by the id of an object of the image."""
    return _name(relation[role]) if role in relation else names[relation[f"{role}_id"]]


def _name(item: Mapping[str, Any]) -> str:
    """VG names an object by `name` or by `names`: a list, or a single string in RLIP's preprocessed files."""
    value = item["names"] if "names" in item else item["name"]
    return str(value if isinstance(value, str) else next(iter(value), ""))
