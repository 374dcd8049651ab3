"""Candidate pairs of boxes."""

import tracemalloc
from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.records import Box, Pair
from sgpipe.stages.pair import candidate_pairs

CLASSES = st.sampled_from(["person", "dog", "kite"])
SIDES = st.integers(1, 12).map(float)
OBJECTS = st.lists(
    st.builds(Box, CLASSES, st.just(1), st.tuples(SIDES, SIDES, SIDES, SIDES), st.sampled_from([False] * 4 + [True])),
    max_size=12,
)
PREDICATES = st.dictionaries(
    st.tuples(CLASSES, CLASSES), st.lists(st.sampled_from(["on", "near", "holding"]), max_size=3, unique=True)
)


def overlap(first: Box, second: Box) -> bool:
    return all(
        first.bbox[side] < second.bbox[side] + second.bbox[side + 2]
        and second.bbox[side] < first.bbox[side] + first.bbox[side + 2]
        for side in (0, 1)
    )


def by_hand(objects: list[Box], predicates: dict[tuple[str, str], list[str]], overlaps: bool) -> list[Pair]:
    """A loop over every ordered pair, as in RLIPv2."""
    return [
        Pair(i, j, predicates[objects[i].category, objects[j].category])
        for i, j in permutations(range(len(objects)), 2)
        if not objects[i].iscrowd
        and not objects[j].iscrowd
        and predicates.get((objects[i].category, objects[j].category))
        and (not overlaps or overlap(objects[i], objects[j]))
    ]


@given(OBJECTS, PREDICATES, st.booleans())
def test_equals_a_loop_over_all_pairs(objects: list[Box], predicates: dict, overlaps: bool) -> None:
    found = candidate_pairs(objects, predicates, require_overlap=overlaps)
    assert found == (by_hand(objects, predicates, overlaps), 0)


@given(OBJECTS, PREDICATES, st.booleans(), st.integers(1, 40))
def test_limit_keeps_pairs_of_the_largest_boxes_and_counts_the_others(
    objects: list[Box], predicates: dict, overlaps: bool, limit: int
) -> None:
    every = by_hand(objects, predicates, overlaps)
    found, beyond = candidate_pairs(objects, predicates, require_overlap=overlaps, limit=limit)
    order = sorted(range(len(objects)), key=lambda i: objects[i].rank)
    rank = {index: position for position, index in enumerate(order)}

    def smaller_box(pair: Pair) -> tuple[int, int, int]:
        first, second = rank[pair.subject], rank[pair.object]
        return max(first, second), min(first, second), first

    kept = sorted(every, key=smaller_box)[:limit]
    assert found == sorted(kept, key=lambda pair: (pair.subject, pair.object))
    assert beyond == len(every) - len(kept) or (overlaps and len(kept) == limit and beyond > len(every) - limit)


@given(st.data(), OBJECTS, PREDICATES, st.integers(1, 40))
def test_the_order_of_boxes_does_not_decide_which_pairs_the_limit_keeps(
    data: st.DataObject, objects: list[Box], predicates: dict, limit: int
) -> None:
    def kept(objects: list[Box]) -> tuple[list[str], int]:
        pairs, beyond = candidate_pairs(objects, predicates, limit=limit)
        return sorted(f"{objects[p.subject]} {p.predicates} {objects[p.object]}" for p in pairs), beyond

    assert kept(data.draw(st.permutations(objects))) == kept(objects)


def test_a_hundred_thousand_boxes_need_little_memory() -> None:
    random = np.random.default_rng(0)
    sides = random.uniform(1, 60, (100_000, 2))
    corners = random.uniform(0, 600, (100_000, 2))
    boxes = enumerate(np.hstack([corners, sides]).tolist())
    objects = [Box("person" if index % 5 else "dog", 1, tuple(box)) for index, box in boxes]
    tracemalloc.start()
    predicates = {("person", "person"): ["near"], ("person", "dog"): ["walking"]}
    pairs, beyond = candidate_pairs(objects, predicates, limit=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({(pair.subject, pair.object) for pair in pairs}) == len(pairs) == 10_000
    assert beyond == 80_000 * 79_999 + 80_000 * 20_000 - 10_000
    assert peak < 300 << 20
