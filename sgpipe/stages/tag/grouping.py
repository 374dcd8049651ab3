"""Split the candidate pairs of an image into groups, because the tagger scores a limited number of pairs at once."""

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
