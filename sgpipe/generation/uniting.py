"""One record from those of several runs about the same image."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache, lru_cache
from itertools import chain, product
from typing import Generic, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from sgpipe.records import (
    Attribute,
    Box,
    BoxOrigin,
    Caption,
    Pair,
    Record,
    Relation,
    RelationOrigin,
    Triplet,
)
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.matching import HeadMatcher, normalise_predicate, noun_lemmas
from sgpipe.storage.health_rules import CLAIMS
from sgpipe.utils.boxes import iou, xywh_to_xyxy

Item = TypeVar("Item")
BoxPair: TypeAlias = tuple[int, int]

_PIXEL = 1.0  # boxes of which no edge differs by more are the same, however small they are
_ORIGIN_RANKS = {
    name: rank for kind in (BoxOrigin, RelationOrigin) for rank, name in enumerate(get_args(kind))
}
# Axis and side of a predicate.
_SIDES = {text: claim for claim, texts in CLAIMS.items() if claim[1] for text in texts}
_SYNONYM_TABLES = ("coco", "objects365")
_CACHED_CLASS_PAIRS = 1 << 16

Ends = TypeVar("Ends", Pair, Relation)


@dataclass(frozen=True)
class Precedence:
    """Which runs have a say about relations, by the ids of runs.

    Attributes:
        overrules: the runs whose relations of an image are left out where this run has the image.
        corrects: the runs of which this one is a correction.
    """

    overrules: Mapping[str, Collection[str]]
    corrects: Mapping[str, Collection[str]]


NO_PRECEDENCE = Precedence({}, {})


class UnitedItems(Generic[Item]):
    """The items of several runs, once each, in the order in which they first come.

    What one run has twice stays there twice.

    Attributes:
        groups: the equal items of all runs.
        runs: the runs that have each of the groups.
        numbers: by run, the number of the group of each of its items.
    """

    def __init__(
        self, key: Callable[[Item], Hashable], items_by_run: Sequence[Iterable[Item]]
    ) -> None:
        """`key`: tells which items are equal."""
        self.groups: list[list[Item]] = []
        self.runs: list[set[int]] = []
        self._number_of: dict[tuple[Hashable, int], int] = {}
        self.numbers = [self._add(run, key, items) for run, items in enumerate(items_by_run)]

    def _add(self, run: int, key: Callable[[Item], Hashable], items: Iterable[Item]) -> list[int]:
        occurrences = Counter[Hashable]()
        numbers: list[int] = []
        for item in items:
            item_key = key(item)
            occurrences[item_key] += 1
            number = self._number_of.setdefault((item_key, occurrences[item_key]), len(self.groups))
            if number == len(self.groups):
                self.groups.append([])
                self.runs.append(set())
            self.groups[number].append(item)
            self.runs[number].add(run)
            numbers.append(number)
        return numbers

    @property
    def shared(self) -> int:
        """How many groups are of several runs."""
        return sum(len(runs) > 1 for runs in self.runs)


def unite(
    records: Sequence[Record],
    min_iou: float,
    runs: Sequence[str] = (),
    precedence: Precedence = NO_PRECEDENCE,
) -> tuple[Record, Counter[str]]:
    """Return one record with what several say of an image, one of each run, and counts of what was
    united.

    Boxes are one object if each two of them are of different runs, overlap by `min_iou`, and have
    the same class or synonyms; those that overlap most come first. An object has the box and class
    of its strongest member: annotated before detected before grounded, then by score and size. A
    relation is there as often as in the run that has it most often, as its strongest origin has it,
    with all origins. All else is united where it is equal.

    Args:
        runs: the id of the run of each record, if `precedence` names some.
        precedence: the runs whose relations are left out, since another one has the image.
    """
    boxes: list[Box] = []
    run_of_box: list[int] = []
    for run, record in enumerate(records):
        boxes += record.objects
        run_of_box += [run] * len(record.objects)
    objects, counts = _match_boxes(run_of_box, boxes, min_iou)
    object_numbers = _object_numbers(records, objects)
    captions = UnitedItems(_caption_key, _renumbered(records, object_numbers, _renumber_captions))
    triplets = UnitedItems(_triplet_key, _renumbered(records, captions.numbers, _renumber_triplets))
    pairs = UnitedItems(_pair_key, _renumbered(records, object_numbers, _renumber_pairs))
    relations_by_run = _renumbered(records, object_numbers, _renumber_relations)
    relations, relation_counts = _unite_relations(relations_by_run, runs, precedence)
    united_boxes: list[Box] = []
    for members in objects:
        united_boxes.append(
            _join_boxes([(boxes[box], captions.numbers[run_of_box[box]]) for box in members])
        )
    united = replace(
        records[0],
        objects=united_boxes,
        captions=[group[0] for group in captions.groups],
        triplets=[_most_complete(group) for group in triplets.groups],
        pairs=[_join_pairs(group) for group in pairs.groups],
        relations=[_join_relations(group) for group in relations.groups],
        left_out=_largest_counts(record.left_out for record in records),
    )
    return united, counts | relation_counts


def _object_numbers(records: Sequence[Record], objects: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the number of the object of each box of each run; `objects`: the boxes of each,
    counted over all runs.
    """
    number_of_box = {box: number for number, members in enumerate(objects) for box in members}
    numbers_by_run: list[list[int]] = []
    first_box = 0
    for record in records:
        stop = first_box + len(record.objects)
        numbers_by_run.append([number_of_box[box] for box in range(first_box, stop)])
        first_box = stop
    return numbers_by_run


def _renumbered(
    records: Sequence[Record],
    numbers_by_run: Sequence[Sequence[int]],
    renumber: Callable[[Record, Sequence[int]], list[Item]],
) -> list[list[Item]]:
    """Return items of each run, which point to what has these new numbers."""
    by_run = zip(records, numbers_by_run, strict=True)
    return [renumber(record, numbers) for record, numbers in by_run]


def _renumber_captions(record: Record, numbers: Sequence[int]) -> list[Caption]:
    return [
        replace(caption, boxes=[numbers[box] for box in caption.boxes])
        for caption in record.captions
    ]


def _renumber_triplets(record: Record, caption_numbers: Sequence[int]) -> list[Triplet]:
    return [
        replace(triplet, caption=caption_numbers[triplet.caption]) for triplet in record.triplets
    ]


def _renumber_pairs(record: Record, numbers: Sequence[int]) -> list[Pair]:
    return [_renumber_ends(pair, numbers) for pair in record.pairs]


def _renumber_relations(record: Record, numbers: Sequence[int]) -> list[Relation]:
    return [_renumber_ends(relation, numbers) for relation in record.relations]


def _renumber_ends(item: Ends, numbers: Sequence[int]) -> Ends:
    return replace(item, subject=numbers[item.subject], object=numbers[item.object])


def _caption_key(caption: Caption) -> Hashable:
    return caption.text, caption.scope, *caption.boxes


def _triplet_key(triplet: Triplet) -> Hashable:
    return astuple(triplet)[:7]


def _pair_key(pair: Pair) -> Hashable:
    return pair.subject, pair.object


def _relation_key(relation: Relation) -> Hashable:
    return relation.subject, relation.object, normalise_predicate(relation.predicate)


def _unite_relations(
    relations_by_run: Sequence[Sequence[Relation]], runs: Sequence[str], precedence: Precedence
) -> tuple[UnitedItems[Relation], Counter[str]]:
    """Return the relations of the runs that no other one overrules, and counts."""
    overruled = _overruled(runs, precedence)
    heard = [
        () if run in overruled else relations for run, relations in enumerate(relations_by_run)
    ]
    united = UnitedItems(_relation_key, heard)
    unheard = [relations_by_run[run] for run in sorted(overruled)]
    counts = Counter(
        united_relations=united.shared,
        contradictory_relations=_count_contradictions(heard),
        returned_relations=_count_returned(united, runs, precedence),
        overruled_relations=_count_missing(united, unheard),
    )
    return united, counts


def _overruled(runs: Sequence[str], precedence: Precedence) -> set[int]:
    """Return the numbers of the runs whose relations do not count, as another one of them overrules
    these.
    """
    losers: set[str] = set()
    for run in runs:
        losers.update(precedence.overrules.get(run, ()))
    return {number for number, run in enumerate(runs) if run in losers}


def _count_returned(
    relations: UnitedItems[Relation], runs: Sequence[str], precedence: Precedence
) -> int:
    """Count relations that a corrected run has no more, and that come back with the run that it
    corrects.
    """
    corrections: list[tuple[int, set[int]]] = []
    for number, run in enumerate(runs):
        originals = precedence.corrects.get(run, ())
        corrections.append(
            (number, {other for other, name in enumerate(runs) if name in originals})
        )
    return sum(_has_returned(stating, corrections) for stating in relations.runs)


def _has_returned(stating: set[int], corrections: Iterable[tuple[int, set[int]]]) -> bool:
    """Return whether runs state what a correction of one of them does not."""
    return any(
        correction not in stating and not stating.isdisjoint(originals)
        for correction, originals in corrections
    )


def _count_missing(relations: UnitedItems[Relation], stated: Iterable[Iterable[Relation]]) -> int:
    """Count the relations that runs state and that are not among `relations`."""
    united = {_relation_key(group[0]) for group in relations.groups}
    keys = set(map(_relation_key, chain.from_iterable(stated)))
    return len(keys - united)


def _count_contradictions(relations_by_run: Iterable[Iterable[Relation]]) -> int:
    """Count pairs of objects that are on different sides for different runs, such as left and
    right.
    """
    claims: dict[Hashable, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for run, relations in enumerate(relations_by_run):
        for relation in relations:
            axis, side = _SIDES.get(relation.predicate.lower(), (None, 0))
            first, second = sorted((relation.subject, relation.object))
            claims[axis, first, second][run].add(side if relation.subject == first else -side)
    return sum(not set.intersection(*sides.values()) for sides in claims.values())


def _most_complete(triplets: Iterable[Triplet]) -> Triplet:
    """Return the first of equal triplets whose classes are known, or the first."""
    return max(triplets, key=lambda triplet: None not in astuple(triplet))


def _largest_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    largest = Counter[str]()
    for count in counts:
        largest |= Counter(count)
    return largest


def _match_boxes(
    runs: Sequence[int], boxes: Sequence[Box], min_iou: float
) -> tuple[list[list[int]], Counter[str]]:
    """Return the boxes of each object, and counts of united objects and of contradictory classes.

    Args:
        runs: the run of each box.
    """
    near = _overlapping_pairs(runs, boxes, min_iou)
    alike = {(i, j) for i, j in near if are_synonyms(boxes[i].category, boxes[j].category)}
    joinable = {(i, j) for i, j in alike if boxes[i].iscrowd == boxes[j].iscrowd}
    members = _group_boxes(len(boxes), near, joinable)
    objects = [sorted(group) for box, group in enumerate(members) if box == min(group)]
    counts = Counter(
        united_objects=sum(len(group) > 1 for group in objects),
        contradictory_classes=_count_contradictory_objects(set(near) - alike, members, runs),
    )
    return objects, counts


def _count_contradictory_objects(
    unlike: Iterable[BoxPair], members: Sequence[Sequence[int]], runs: Sequence[int]
) -> int:
    """Count pairs of objects with boxes of the same thing but unlike classes. No run contradicts
    itself.

    Args:
        unlike: pairs of such boxes.
        members: by box the boxes of its object.
        runs: the run of each box.
    """
    pairs = {(min(members[i]), min(members[j])) for i, j in unlike}
    contradictory = 0
    for first, second in pairs:
        runs_of_first = {runs[box] for box in members[first]}
        contradictory += runs_of_first.isdisjoint(runs[box] for box in members[second])
    return contradictory


def _group_boxes(
    number: int, near: Sequence[BoxPair], joinable: Collection[BoxPair]
) -> list[list[int]]:
    """Return by box the boxes of its object, in one list that they share; each two of them are
    `joinable`.

    Args:
        near: pairs of boxes, in the order in which they are joined.
    """
    members = [[box] for box in range(number)]
    for i, j in near:
        across = ((min(a, b), max(a, b)) for a, b in product(members[i], members[j]))
        if all(pair in joinable for pair in across):
            members[i] += members[j]
            for box in members[j]:
                members[box] = members[i]
    return members


def _overlapping_pairs(runs: Sequence[int], boxes: Sequence[Box], min_iou: float) -> list[BoxPair]:
    """Return pairs of boxes of different runs that overlap, those that overlap most first."""
    xyxy = xywh_to_xyxy(np.array([box.bbox for box in boxes], float).reshape(-1, 4))
    run_of_box = np.array(runs)
    first, second = np.triu_indices(len(boxes), 1)
    is_other_run = run_of_box[first] != run_of_box[second]
    first = first[is_other_run]
    second = second[is_other_run]
    overlap: NDArray[np.float64] = iou(xyxy[first], xyxy[second])
    is_same_box = np.abs(xyxy[first] - xyxy[second]).max(1, initial=0) <= _PIXEL
    overlap[is_same_box] += 1  # before all others
    most_first = np.argsort(-overlap, kind="stable")[: np.count_nonzero(overlap >= min_iou)]
    return list(zip(first[most_first].tolist(), second[most_first].tolist(), strict=True))


@lru_cache(_CACHED_CLASS_PAIRS)
def are_synonyms(first: str, second: str) -> bool:
    """Return whether two classes have one name, in any case and number, or one names the other
    ("man": person).
    """
    first = normalise_predicate(first)
    second = normalise_predicate(second)
    return first == second or _names_class(first, second) or _names_class(second, first)


def _names_class(name: str, noun: str) -> bool:
    return name in noun_lemmas(noun) or name in _class_matcher().classes(noun)


@cache
def _class_matcher() -> HeadMatcher:
    """Return what finds the classes that nouns name, by the synonyms of COCO and Objects365."""
    tables = [packaged_synonyms(dataset) for dataset in _SYNONYM_TABLES]
    names = _distinct(tables)
    return HeadMatcher({name: _distinct(table.get(name, ()) for table in tables) for name in names})


def _distinct(lists: Iterable[Iterable[Item]]) -> list[Item]:
    return list(dict.fromkeys(chain.from_iterable(lists)))


def _join_boxes(members: Sequence[tuple[Box, Sequence[int]]]) -> Box:
    """Return one object of boxes, each with the new numbers of the captions of its run."""
    strongest_first = sorted(members, key=lambda member: _box_strength(member[0]))
    attributes: list[tuple[str, int | None]] = []
    for box, caption_numbers in strongest_first:
        for attribute in box.attributes:
            caption = None if attribute.caption is None else caption_numbers[attribute.caption]
            attributes.append((attribute.name, caption))
    boxes = [box for box, _ in strongest_first]
    return replace(
        boxes[0],
        phrase=next((box.phrase for box in boxes if box.phrase), None),
        segmentation=next((box.segmentation for box in boxes if box.segmentation), None),
        attributes=[Attribute(name, caption) for name, caption in dict.fromkeys(attributes)],
    )


def _join_pairs(group: Sequence[Pair]) -> Pair:
    return replace(group[0], predicates=_distinct(pair.predicates for pair in group))


def _join_relations(group: Sequence[Relation]) -> Relation:
    """Return the relation of the strongest origin, with the origins of all."""
    origins = _distinct(relation.origins for relation in group)
    origin = "+".join(sorted(origins, key=_origin_strength))
    return replace(min(group, key=_relation_strength), origin=origin)


def _box_strength(box: Box) -> tuple[Hashable, ...]:
    return _origin_strength(box.origin), -(box.score or 0), box.rank


def _relation_strength(relation: Relation) -> tuple[Hashable, ...]:
    confidence = 1.0 if relation.confidence is None else relation.confidence
    return _origin_strength(relation.origins[0]), -confidence


def _origin_strength(origin: str) -> tuple[int, str]:
    """Return a key that sorts origins, the strongest first and those of other programs last."""
    return _ORIGIN_RANKS.get(origin, len(_ORIGIN_RANKS)), origin
