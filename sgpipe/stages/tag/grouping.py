"""Cutting the candidate pairs of an image into groups for the tagger, which sees so many pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgpipe.records import Pair

REFERENCE_SIZE = 100


@dataclass(frozen=True, slots=True)
class Group:
    """A group as RLIPv2 forms it: box pairs, one per entry, and the distinct predicates of all of them.

    Which pair had which predicate is not kept: the tagger scores every pair with every predicate.
    """

    pairs: list[tuple[int, int]]
    predicates: list[str]


def group_pairs(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Consecutive groups of at most `size` pairs; no group is empty."""
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def reference_groups(pairs: Sequence[Pair], size: int = REFERENCE_SIZE) -> list[Group]:
    """RLIPv2's groups of caption candidates: an entry is a pair with one of its predicates.

    N entries make N // size + 1 groups, so the last one is empty whenever `size` divides N.
    """
    entries = [((pair.subject, pair.object), [text]) for pair in pairs for text in pair.predicates]
    return _cut(entries, len(entries) // size + 1, size)


def reference_prior_groups(pairs: Sequence[Pair], boxes: int, size: int = REFERENCE_SIZE) -> list[Group]:
    """RLIPv2's groups of prior candidates: an entry is a pair with all of its predicates.

    The number of groups is that of all ordered pairs of the `boxes` (crowds aside), whether or not they are
    candidates; the groups at the end are often empty.
    """
    entries = [((pair.subject, pair.object), pair.predicates) for pair in pairs]
    return _cut(entries, boxes * (boxes - 1) // size + 1, size)


def _cut(entries: list[tuple[tuple[int, int], list[str]]], groups: int, size: int) -> list[Group]:
    chunks = [entries[size * index : size * (index + 1)] for index in range(groups)]
    return [
        Group([pair for pair, _ in chunk], list(dict.fromkeys(text for _, texts in chunk for text in texts)))
        for chunk in chunks
    ]
