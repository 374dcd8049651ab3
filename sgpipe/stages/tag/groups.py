"""Which pairs of an image the R-Tagger scores together, and against which predicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgpipe.records import Pair

REFERENCE_SIZE = 100


@dataclass(frozen=True, slots=True)
class PairGroup:
    """A group as in RLIPv2: one box pair per entry, and the distinct predicates of all entries.

    Which pair had which predicate is lost: the tagger scores every pair with every predicate.
    """

    pairs: list[tuple[int, int]]
    predicates: list[str]


def group_pairs(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Consecutive groups of at most `size` pairs; no group is empty."""
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def reference_groups(pairs: Sequence[Pair], size: int = REFERENCE_SIZE) -> list[PairGroup]:
    """RLIPv2's groups of caption candidates: an entry is a pair with one of its predicates.

    N entries form N // size + 1 groups, so the last group is empty if `size` divides N.
    """
    entries = [((pair.subject, pair.object), [text]) for pair in pairs for text in pair.predicates]
    return _cut(entries, len(entries) // size + 1, size)


def reference_prior_groups(pairs: Sequence[Pair], boxes: int, size: int = REFERENCE_SIZE) -> list[PairGroup]:
    """RLIPv2's groups of prior candidates: an entry is a pair with all of its predicates.

    The number of groups follows from all ordered pairs of the non-crowd `boxes`, whether or not they are candidates,
    so the last groups are often empty.
    """
    entries = [((pair.subject, pair.object), pair.predicates) for pair in pairs]
    return _cut(entries, boxes * (boxes - 1) // size + 1, size)


def _cut(entries: list[tuple[tuple[int, int], list[str]]], groups: int, size: int) -> list[PairGroup]:
    chunks = [entries[size * index : size * (index + 1)] for index in range(groups)]
    return [
        PairGroup([pair for pair, _ in chunk], list(dict.fromkeys(text for _, texts in chunk for text in texts)))
        for chunk in chunks
    ]


@dataclass(frozen=True)
class Batch:
    """Groups of pairs of one image that are scored together against the same predicates."""

    groups: list[list[tuple[int, int]]]
    predicates: list[str]


def own_batches(pairs: Sequence[Pair], size: int, chunk: int) -> list[Batch]:
    """`restrict: pair`: groups of at most `size` pairs, each against the predicates of its own pairs.

    Groups with the same predicates share a batch, up to `chunk` of them.
    """
    by_predicates: dict[tuple[str, ...], list[list[tuple[int, int]]]] = {}
    with_predicates = [pair for pair in pairs if pair.predicates]
    for group in group_pairs(with_predicates, size):
        predicates = tuple(sorted({text for pair in group for text in pair.predicates}))
        by_predicates.setdefault(predicates, []).append([(pair.subject, pair.object) for pair in group])
    return [
        Batch(groups[start : start + chunk], list(predicates))
        for predicates, groups in by_predicates.items()
        for start in range(0, len(groups), chunk)
    ]


def reference_batches(groups: Sequence[PairGroup], chunk: int) -> list[Batch]:
    """`restrict: group`: each `chunk` of groups against all of their predicates, as in RLIPv2.

    Groups without pairs count towards a chunk but are not scored.
    """
    batches = []
    for start in range(0, len(groups), chunk):
        part = groups[start : start + chunk]
        predicates = list(dict.fromkeys(text for group in part for text in group.predicates))
        if predicates:
            batches.append(Batch([group.pairs for group in part if group.pairs], predicates))
    return batches
