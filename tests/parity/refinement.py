"""RLIPv2's further steps on pseudo-labels: top K per pair, the filter by a prior, name counts. sgpipe needs none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgpipe.records import Box, Record, Relation


def top_per_pair(relations: Iterable[Relation], k: int) -> list[Relation]:
    """The `k` most confident relations of each ordered pair of boxes.

    Returns:
        the relations kept, pair by pair in first-seen order; a pair that had more than `k` has them by
        falling confidence (the earlier first among equals), any other in its own order.
    """
    pairs: dict[tuple[int, int], list[Relation]] = {}
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    return [relation for group in pairs.values() for relation in _strongest(group, k)]


def keep_known(
    relations: Iterable[Relation], objects: Sequence[Box], known: Mapping[tuple[str, str], Collection[str]]
) -> list[Relation]:
    """The relations whose predicate is known between the classes of their boxes.

    Args:
        objects: the boxes that the relations index.
        known: predicates by (subject class, object class), such as `sgpipe.stages.pair.read_prior` returns.
    """
    return [
        relation
        for relation in relations
        if relation.predicate in known.get((objects[relation.subject].category, objects[relation.object].category), ())
    ]


@dataclass(frozen=True, slots=True)
class NameFrequencies:
    """How often each predicate and each object name occurs, most frequent first, ties in first-seen order."""

    predicates: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)

    @classmethod
    def count(cls, records: Iterable[Record]) -> NameFrequencies:
        """Count the predicates of all relations, and the class names of all objects, related or not."""
        predicates: Counter[str] = Counter()
        objects: Counter[str] = Counter()
        for record in records:
            objects.update(box.category for box in record.objects)
            predicates.update(relation.predicate for relation in record.relations)
        return cls(dict(predicates.most_common()), dict(objects.most_common()))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NameFrequencies:
        """Read RLIPv2's `keep_names_freq` form."""
        return cls(dict(value["relationship_freq"]), dict(value["object_freq"]))

    def to_json(self) -> dict[str, Any]:
        """RLIPv2's `keep_names_freq` form."""
        return {
            "relationship_names": list(self.predicates),
            "object_names": list(self.objects),
            "relationship_freq": self.predicates,
            "object_freq": self.objects,
        }

    def __add__(self, other: NameFrequencies) -> NameFrequencies:
        """The counts of both together; among equals, names of the first come first."""
        return NameFrequencies(_add(self.predicates, other.predicates), _add(self.objects, other.objects))


def _confidence(relation: Relation) -> float:
    return 1.0 if relation.confidence is None else relation.confidence


def _add(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    counts = Counter(first)
    counts.update(second)
    return dict(counts.most_common())


def _strongest(group: list[Relation], k: int) -> list[Relation]:
    return group if len(group) <= k else sorted(group, key=_confidence, reverse=True)[:k]
