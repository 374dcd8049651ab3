"""Precision, recall and average precision of relations that are right, wanted, both or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import monotone

Band = Literal["head", "body", "tail"]

BANDS: tuple[Band, ...] = ("head", "body", "tail")
_BAND_ENDS = (0.8, 0.95)  # of all wanted relations: where the head ends, and the body


@dataclass(frozen=True)
class Relations:
    """Relations that were said of images whose truth is known, all `[relations]`.

    right: it is true; found: it is wanted, too; related: something is true of this pair.
    """

    predicate: Array
    confidence: Array
    right: Array
    found: Array
    related: Array

    def __len__(self) -> int:
        return len(self.predicate)

    def __getitem__(self, rows: Array | slice) -> Relations:
        columns = (self.predicate, self.confidence, self.right, self.found, self.related)
        return Relations(*(column[rows] for column in columns))

    def above(self, threshold: float) -> Relations:
        """Those of this confidence or a higher one, compared in float32, as shards have it."""
        return self[self.confidence >= np.float32(threshold)]


@dataclass(frozen=True)
class Quality:
    """Of `said` relations `right` ones are true and `found` ones wanted; `wanted` ones there are. NaN: of nothing."""

    said: int
    right: int
    found: int
    wanted: int

    @property
    def precision(self) -> float:
        return _share(self.right, self.said)

    @property
    def recall(self) -> float:
        return _share(self.found, self.wanted)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if one of them is."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0 * (precision + recall)


def quality(relations: Relations, wanted: int) -> Quality:
    return Quality(len(relations), int(relations.right.sum()), int(relations.found.sum()), wanted)


def precision_recall(relations: Relations, wanted: int) -> tuple[Array, Array]:
    """Recall and monotone precision at every confidence that occurs, falling; recall 0 if nothing is wanted.

    Relations that are right but not wanted are left out: they are no mistakes, nor can they be found. Equal
    confidences are one step, so the order of relations doesn't matter.
    """
    ranked = relations[relations.found | ~relations.right]
    order = np.argsort(-ranked.confidence, kind="stable")
    confidence, found = ranked.confidence[order], np.cumsum(ranked.found[order])
    steps = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)) if len(order) else order
    return found[steps] / max(wanted, 1), monotone(found[steps] / (steps + 1))


def area(recall: Array, precision: Array, wanted: int) -> float:
    """Average precision: the area under monotone precision over recall (PASCAL VOC 2010); NaN if nothing is wanted."""
    return float((precision * np.diff(recall, prepend=0.0)).sum()) if wanted else float("nan")


def frequency_bands(wanted: Array) -> list[Band | None]:
    """The band of each predicate, `wanted` `[predicates]` times; None if never.

    The head are the most frequent predicates up to 80 % of all wanted relations, the body those up to 95 %, the
    tail the others; a predicate belongs where its first relation falls. Equally frequent ones count in their order.
    """
    order = np.argsort(-wanted, kind="stable")
    before = np.cumsum(wanted[order]) - wanted[order]
    bands: list[Band | None] = [None] * len(wanted)
    for number, start in zip(order.tolist(), before.tolist(), strict=True):
        if wanted[number]:
            bands[number] = BANDS[sum(start >= end * wanted.sum() for end in _BAND_ENDS)]
    return bands


def mean(values: Sequence[float] | Array) -> float:
    """NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
