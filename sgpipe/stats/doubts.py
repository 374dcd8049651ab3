"""Annotations that the layout model doubts: relations that it finds improbable, and pairs that it
finds probable and that nobody annotated.
"""

from __future__ import annotations

import heapq
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.records import Record, Relation
from sgpipe.stages.tag.layout.candidates import image_layout
from sgpipe.stages.tag.layout.equivalents import actions_of
from sgpipe.stages.tag.layout.model import LayoutModel, PairScores
from sgpipe.stages.tag.layout.scene import ImageLayout, IntArray
from sgpipe.storage.judgement_lines import PlannedQuestion, PlanStratum, SamplingPlan, utc_now
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.boxes import iou
from sgpipe.utils.console import count as counted
from sgpipe.utils.lemmas import predicate_lemma

IMPROBABLE = 0.1  # annotated relations below are doubted
PROBABLE = 0.8  # pairs above that nobody annotated are doubted
STRATA = ("improbable annotations", "likely missing")
SAME_OBJECT = 0.5  # IoU from which two boxes of a class are of one object
TRAINED_ON = "vcoco"  # dataset whose images, but those of its test split, the model has seen
GAZE = "look at"  # where a person looks does not show in boxes
_BATCH = 256  # images that are scored together


@dataclass(frozen=True)
class Doubt:
    """A relation that the model doubts, or a pair that it misses.

    Attributes:
        subject, object: positions among the objects of the image
        predicate: of a missing pair, the likeliest
        subject_box, object_box: pixel xywh
        probability: of an annotated relation, that it holds; of a missing pair, that it interacts
    """

    split: str
    image_id: str
    file_name: str
    subject: int
    object: int
    predicate: str
    subject_category: str
    object_category: str
    subject_box: Sequence[float]
    object_box: Sequence[float]
    probability: float


@dataclass(frozen=True)
class Doubts:
    """What the layout model doubts in a run.

    Attributes:
        images: with annotated relations whose subject the model knows
        relations: annotated, with such a subject
        unrelated_pairs: of such a subject, in these images
        improbable: annotated relations of probability below 0.1, the least probable first
        missing: unrelated pairs of probability above 0.8, the most probable first
        improbable_count, missing_count: how many there are, listed or not
        notes: what weakens the doubts
    """

    images: int
    relations: int
    unrelated_pairs: int
    improbable_count: int
    missing_count: int
    improbable: list[Doubt]
    missing: list[Doubt]
    notes: list[str]


def find_doubts(root: Location, limit: int) -> Doubts:
    """Ask the packaged layout model about the annotated relations of a run.

    Images without annotated relations are left out, as nobody may have annotated them.

    Args:
        root: the run
        limit: how many doubts of each kind are listed

    Raises:
        UserError: the run has no annotated relations, or none whose subject the model knows
    """
    search = _Search(LayoutModel.load(), limit)
    for records in _batches(iter_records(root, "objects", "relations")):
        search.add(records)
    search.refuse_nothing(root)
    return search.doubts()


class _Search:
    """The doubts among the images so far."""

    def __init__(self, model: LayoutModel, limit: int) -> None:
        self._model = model
        self._limit = limit
        self._actions = lru_cache(1 << 16)(lambda text: actions_of(text, model.actions))
        self._improbable: list[Doubt] = []
        self._missing: list[Doubt] = []
        self._predicates = Counter[str]()
        self._counts = Counter[str]()

    def add(self, records: Iterable[Record]) -> None:
        """Look at the images of some records that have annotated relations."""
        annotated = list(filter(_annotated, records))
        layouts = [image_layout(record, ()) for record in annotated]
        pairs = [_pairs(layout, self._model) for layout in layouts]
        self._counts["annotated images"] += len(annotated)
        improbable: list[Doubt] = []
        missing: list[Doubt] = []
        scored = zip(annotated, pairs, self._model.score_many(layouts, pairs), strict=True)
        for record, of_image, scores in scored:
            improbable += self._find_improbable(record, of_image, scores)
            missing += self._find_missing(record, of_image, scores)
        self._improbable = heapq.nsmallest(
            self._limit, chain(self._improbable, improbable), key=lambda doubt: doubt.probability
        )
        self._missing = heapq.nlargest(
            self._limit, chain(self._missing, missing), key=lambda doubt: doubt.probability
        )
        self._counts["improbable"] += len(improbable)
        self._counts["missing"] += len(missing)

    def _find_improbable(
        self, record: Record, pairs: IntArray, scores: PairScores
    ) -> Iterator[Doubt]:
        """Yield the annotated relations that the model finds improbable."""
        rows = {(subject, thing): row for row, (subject, thing) in enumerate(pairs.tolist())}
        known = 0
        for relation in _annotated(record):
            row = rows.get((relation.subject, relation.object))
            if row is None:
                continue
            known += 1
            self._predicates[relation.predicate] += 1
            probability = self._probability(relation.predicate, scores, row)
            if probability < IMPROBABLE and not self._is_gaze(relation.predicate):
                ends = (relation.subject, relation.object)
                yield _doubt(record, ends, relation.predicate, probability)
        self._counts["relations"] += known
        self._counts["images"] += known > 0
        self._counts["images seen in training"] += (
            known > 0 and record.dataset == TRAINED_ON and record.split != "test"
        )

    def _probability(self, predicate: str, scores: PairScores, row: int) -> float:
        """Return how probable a relation is: the pair's probability times that of the predicate, if
        the model knows it.
        """
        interacts = float(scores.interacts[row])
        actions = self._actions(predicate)
        return interacts * float(scores.actions[row, actions].max()) if actions else interacts

    def _is_gaze(self, predicate: str) -> bool:
        """Return whether all that a predicate says is where somebody looks."""
        return {self._model.actions[action] for action in self._actions(predicate)} == {GAZE}

    def _find_missing(self, record: Record, pairs: IntArray, scores: PairScores) -> Iterator[Doubt]:
        """Yield the pairs that nobody annotated and that the model finds probable."""
        unrelated = _unrelated(record, pairs)
        self._counts["unrelated pairs"] += int(unrelated.sum())
        for row in np.flatnonzero(unrelated & (scores.interacts > PROBABLE)).tolist():
            ends = tuple(pairs[row].tolist())
            action = self._model.actions[int(scores.actions[row].argmax())]
            yield _doubt(record, ends, action, float(scores.interacts[row]))

    def refuse_nothing(self, root: Location) -> None:
        """Raise UserError if no annotated relation has a subject that the model knows."""
        if not self._counts["annotated images"]:
            raise UserError(
                f"{root} has no annotated relations, which are what the layout model doubts: pass"
                " an import"
            )
        if not self._counts["relations"]:
            subjects = ", ".join(self._model.subject_classes)
            raise UserError(
                f"{root} has no annotated relation whose subject is a {subjects}: the layout model"
                " knows no other subjects"
            )

    def doubts(self) -> Doubts:
        """Return what was found; missing pairs have the run's own word for an action."""
        words: dict[str, str] = {}
        for predicate, _ in self._predicates.most_common():
            words.setdefault(predicate_lemma(predicate), predicate)
        missing = []
        for doubt in self._missing:
            word = words.get(predicate_lemma(doubt.predicate), doubt.predicate)
            missing.append(replace(doubt, predicate=word))
        return Doubts(
            images=self._counts["images"],
            relations=self._counts["relations"],
            unrelated_pairs=self._counts["unrelated pairs"],
            improbable_count=self._counts["improbable"],
            missing_count=self._counts["missing"],
            improbable=self._improbable,
            missing=missing,
            notes=self._notes(),
        )

    def _notes(self) -> list[str]:
        seen = self._counts["images seen in training"]
        if not seen:
            return []
        images = f"{counted(seen, 'image')} of V-COCO's train and val splits"
        learned = (
            "the layout model has learned from their annotations, so it doubts too few of them"
        )
        return [f"{images}: {learned}"]


def plan_doubts(doubts: Doubts, fingerprint: str, by: str, plan: str | None = None) -> SamplingPlan:
    """Return the doubts as questions: the most doubtful first, of both kinds in turn.

    Args:
        doubts: of the run
        fingerprint: of the run
        by: who asks
        plan: name of the plan; None: a new one

    Raises:
        UserError: there are no doubts
    """
    kinds = (doubts.improbable, doubts.missing)
    if not any(kinds):
        raise UserError("the layout model doubts nothing in this run")
    ranked = []
    for stratum, listed in enumerate(kinds):
        for rank, doubt in enumerate(listed):
            ranked.append((rank, stratum, _question(doubt, stratum)))
    ranked.sort(key=lambda entry: entry[:2])
    strata = [
        PlanStratum(name=name, relations=len(listed), sampled=len(listed))
        for name, listed in zip(STRATA, kinds, strict=True)
    ]
    return SamplingPlan(
        plan=plan or uuid.uuid4().hex,
        at=utc_now(),
        by=by,
        run=fingerprint,
        seed=0,
        kind="doubts",
        strata=strata,
        questions=[question for _, _, question in ranked],
    )


def _question(doubt: Doubt, stratum: int) -> PlannedQuestion:
    return PlannedQuestion(
        doubt.split,
        doubt.image_id,
        doubt.subject,
        doubt.object,
        doubt.predicate,
        doubt.subject_category,
        doubt.object_category,
        doubt.probability,
        stratum,
    )


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    left = iter(records)
    batch = list(islice(left, _BATCH))
    while batch:
        yield batch
        batch = list(islice(left, _BATCH))


def _annotated(record: Record) -> list[Relation]:
    """Return the relations of a record that people annotated: those without a confidence."""
    return [relation for relation in record.relations if relation.confidence is None]


def _pairs(layout: ImageLayout, model: LayoutModel) -> IntArray:
    """Return `[pairs, 2]`: every box that can be a subject with every other box of a class."""
    boxes = [index for index, name in enumerate(layout.classes) if name]
    pairs = []
    for subject in boxes:
        if model.is_subject(layout.classes[subject]):
            pairs += [(subject, box) for box in boxes if box != subject]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _unrelated(record: Record, pairs: IntArray) -> NDArray[np.bool_]:
    """Return which pairs have no relation, in either direction, nor other boxes of the same two
    objects.
    """
    boxes = np.array([box.bbox for box in record.objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    is_same = _same_objects(boxes, [box.category for box in record.objects])
    unrelated = np.ones(len(pairs), np.bool_)
    for relation in record.relations:
        subjects = is_same[relation.subject]
        objects = is_same[relation.object]
        unrelated &= ~(subjects[pairs[:, 0]] & objects[pairs[:, 1]])
        unrelated &= ~(objects[pairs[:, 0]] & subjects[pairs[:, 1]])
    return unrelated


def _same_objects(boxes: NDArray[np.float64], classes: Sequence[str]) -> NDArray[np.bool_]:
    """Return `[boxes, boxes]`: whether two boxes (pixel xyxy) are of one object."""
    number = len(boxes)
    overlaps = iou(np.repeat(boxes, number, axis=0), np.tile(boxes, (number, 1)))
    names = np.array(classes, object)
    same_class = names[:, None] == names[None, :]
    overlap = overlaps.reshape(number, number) >= SAME_OBJECT
    return (overlap & same_class) | np.eye(number, dtype=np.bool_)


def _doubt(record: Record, ends: tuple[int, int], predicate: str, probability: float) -> Doubt:
    subject, thing = (record.objects[end] for end in ends)
    return Doubt(
        split=record.split,
        image_id=record.image_id,
        file_name=record.file_name,
        subject=ends[0],
        object=ends[1],
        predicate=predicate,
        subject_category=subject.category,
        object_category=thing.category,
        subject_box=[*subject.bbox],
        object_box=[*thing.bbox],
        probability=probability,
    )
