"""The candidates of images as the layout model and captions see them, before both are weighed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from sgpipe.recipe import PairConfig
from sgpipe.records import Pair, Record
from sgpipe.stages.pair import overlapping, stated_predicates, told_triplets
from sgpipe.stages.tag.layout.equivalents import actions_of
from sgpipe.stages.tag.layout.evidence import CaptionEvidence, Flags, Floats
from sgpipe.stages.tag.layout.model import LayoutModel, PairScores
from sgpipe.stages.tag.layout.scene import ImageLayout, IntArray

# Confidence of a candidate whose subject is of a class that the model does not know as a subject,
# such as a dog: the share that is right of 36 with overlapping boxes and of 24 others, stated by
# human captions of 48 photographs of COCO and looked at one by one.
OVERLAPPING = 0.7
APART = 0.3
MANY_BOXES = 1000  # of an image
_CACHED_PREDICATES = 1 << 16


@dataclass(frozen=True)
class Candidates:
    """The candidates of an image: a pair of boxes and a predicate each.

    Attributes:
        pairs: [candidates, 2] subject and object, positions among the objects of the record
        predicates: [candidates]
        interacts: [candidates] probability that the pair interacts, by the model; 0: it does not
            know such subjects
        says: [candidates] probability of the predicate if the pair interacts; NaN: the model does
            not know it
        overlaps: [candidates] whether the boxes share some area
        related: [candidates] whether a caption relates the classes of the pair
        stated: [candidates] whether a caption states the predicate of them
        proposed: [candidates] whether this pair of classes was related, not only others of the
            image
        captioned: whether the image has captions
    """

    pairs: IntArray
    predicates: Sequence[str]
    interacts: Floats
    says: Floats
    overlaps: Flags
    related: Flags
    stated: Flags
    proposed: Flags
    captioned: bool

    def confidences(self, evidence: CaptionEvidence) -> Floats:
        """Return how probable each candidate is; without captions the model's probabilities as they
        are.
        """
        weighed = evidence if self.captioned else CaptionEvidence()
        interacts = weighed.of_pairs(self.interacts, self.related)
        says = weighed.of_predicates(np.nan_to_num(self.says, nan=1.0), self.stated)
        by_model = np.where(np.isnan(self.says), interacts, interacts * says)
        by_overlap = np.where(self.overlaps, OVERLAPPING, APART) * self.proposed
        return np.where(self.interacts > 0, by_model, by_overlap)


class CandidateScorer:
    """Scores the candidates of images by a layout model."""

    def __init__(self, model: LayoutModel, pair: PairConfig) -> None:
        """pair: of the run: how nouns are matched decides which captions state a candidate."""
        self.model = model
        self._pair = pair
        self._actions = lru_cache(_CACHED_PREDICATES)(self._find_actions)

    def score(self, records: Sequence[Record]) -> Iterator[Candidates]:
        """Yield the candidates of each record, in the order of its pairs and their predicates."""
        layouts = [image_layout(record, record.pairs) for record in records]
        pairs = [pair_positions(record.pairs) for record in records]
        scores = self.model.score_many(layouts, pairs)
        for record, scored in zip(records, scores, strict=True):
            yield self._candidates(record, scored)

    def _find_actions(self, predicate: str) -> tuple[int, ...]:
        return tuple(actions_of(predicate, self.model.actions))

    def _candidates(self, record: Record, scores: PairScores) -> Candidates:
        numbers: list[int] = []
        predicates: list[str] = []
        for number, pair in enumerate(record.pairs):
            numbers += [number] * len(pair.predicates)
            predicates += pair.predicates
        pair_numbers = np.array(numbers, np.int64)
        pairs = pair_positions(record.pairs)[pair_numbers]
        boxes = np.array([box.bbox for box in record.objects], np.float64).reshape(-1, 4)
        related, stated = self._stated(record, pairs, predicates)
        return Candidates(
            pairs=pairs,
            predicates=predicates,
            interacts=scores.interacts.astype(np.float64)[pair_numbers],
            says=self._says(scores, pair_numbers, predicates),
            overlaps=overlapping(boxes, pairs),
            related=related,
            stated=stated,
            proposed=related | (self._pair.candidates != "image"),
            captioned=bool(record.captions),
        )

    def _says(
        self, scores: PairScores, pair_numbers: IntArray, predicates: Sequence[str]
    ) -> Floats:
        """Return the probability of the likeliest action that each predicate says; NaN: it says
        none.
        """
        says = np.full(len(predicates), np.nan)
        rows: dict[str, list[int]] = {}
        for row, predicate in enumerate(predicates):
            rows.setdefault(predicate, []).append(row)
        for predicate, of_predicate in rows.items():
            actions = self._actions(predicate)
            if actions:
                probabilities = scores.actions[pair_numbers[of_predicate]]
                says[of_predicate] = probabilities[:, actions].max(axis=1)
        return says

    def _stated(
        self, record: Record, pairs: IntArray, predicates: Sequence[str]
    ) -> tuple[Flags, Flags]:
        """Return which candidates have classes that captions relate, and of which they state the
        predicate.

        A caption states a predicate in other words, too: "riding" states "ride".
        """
        related = np.zeros(len(predicates), np.bool_)
        stated = np.zeros(len(predicates), np.bool_)
        if not record.captions:
            return related, stated
        triplets = told_triplets(record, self._pair.match, self._pair.loose)
        texts = stated_predicates(triplets, verbatim=self._pair.match == "substring")
        classes = [box.category for box in record.objects]

        @cache
        def is_stated(ends: tuple[str, str], predicate: str) -> bool:
            return any(self._say_the_same(predicate, text) for text in texts[ends])

        for row, (pair, predicate) in enumerate(zip(pairs.tolist(), predicates, strict=True)):
            subject, object_ = pair
            ends = (classes[subject], classes[object_])
            if ends in texts:
                related[row] = True
                stated[row] = is_stated(ends, predicate)
        return related, stated

    def _say_the_same(self, predicate: str, text: str) -> bool:
        return predicate == text or not set(self._actions(predicate)).isdisjoint(
            self._actions(text)
        )


def image_layout(record: Record, pairs: Sequence[Pair]) -> ImageLayout:
    """Return the boxes of a record; crowds and what stands for no object are of no class.

    Of more than 1,000 boxes only those of the pairs have a class, or all persons would be compared
    with all things.
    """
    boxes = np.array([box.bbox for box in record.objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = ["" if box.iscrowd or box.is_nothing else box.category for box in record.objects]
    if len(classes) > MANY_BOXES:
        used = set(pair_positions(pairs).flatten().tolist())
        classes = [name if index in used else "" for index, name in enumerate(classes)]
    return ImageLayout(boxes, classes, record.width, record.height)


def pair_positions(pairs: Sequence[Pair]) -> IntArray:
    """Return `[pairs, 2]` subjects and objects."""
    return np.array([(pair.subject, pair.object) for pair in pairs], np.int64).reshape(-1, 2)
