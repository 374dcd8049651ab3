"""COCO's box AP of detected boxes, by pycocotools, and their precision and recall at a score.

Classes are matched by name, images by id or name.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import coco_point
from rlip_model.evaluation.scores import ClassScores, Tally
from sgpipe.errors import UserError, check_share
from sgpipe.evaluation.box_sets import (
    BoxSet,
    ScoredBox,
    is_run,
    list_classes,
    read_detections,
    read_truth,
)
from sgpipe.evaluation.graphs import NO_IMAGE, ImageName, image_finder
from sgpipe.evaluation.result import EvaluationResult, Resampling, Rows, class_curve, count_notes
from sgpipe.files.locations import Location
from sgpipe.recipe import DetectConfig
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

_AVERAGE_PRECISION = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
_AVERAGE_RECALL = ("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large")
_MEASURES = (*_AVERAGE_PRECISION, *_AVERAGE_RECALL)  # in the order of `COCOeval.stats`
_IOUS = 10  # 0.50, 0.55, … 0.95
_IOU_50 = 0
_IOU_75 = 5
_LOW_SCORE = 0.01  # a run whose lowest score is above it dropped boxes that AP counts

BoxPair = tuple[list[ScoredBox], list[ScoredBox]]  # ground truth and detected boxes of an image


def evaluate_boxes(
    detected: Location, truth: Location, threshold: float | None = None
) -> EvaluationResult:
    """Return COCO's box AP and AR, and precision and recall at a score.

    Crowds of the ground truth are ignored, as COCO does: boxes inside them are neither correct nor
    wrong.

    Args:
        detected: a run or a COCO results file.
        truth: a run, an import or a COCO instances file.
        threshold: the score, from 0 to 1; None: that of the run, or else of `sgpipe label`.

    Raises:
        UserError: a file is missing, damaged, of another form, or has values that would falsify the
            result; no image or no class in common; nothing to detect.
    """
    min_score = (
        own_threshold(detected) if threshold is None else check_share("threshold", threshold)
    )
    comparison = Comparison.of(read_truth(truth), detected)
    scores = BoxScores(comparison.pairs, comparison.classes)
    counts = comparison.counts(true_boxes=int(scores.targets.sum()))
    curves = {
        "IoU 0.5": class_curve(scores.matches, scores.classes_at(_IOU_50)),
        "IoU 0.75": class_curve(scores.matches, scores.classes_at(_IOU_75)),
    }
    image_names = [
        f"{image.dataset} {image.image_id} {image.base_name}" for image in comparison.images
    ]
    return EvaluationResult(
        "Box quality (COCO)",
        {"pred": str(detected), "truth": str(truth), "threshold": min_score},
        scores.summary(min_score) | scores.best_point(),
        scores.per_class(),
        comparison.notes(counts),
        counts=counts,
        curves=curves,
        resampling=Resampling(
            image_names, lambda occurrences: scores.resampled_summary(min_score, occurrences)
        ),
    )


def own_threshold(detected: Location) -> float:
    """Return the score above which the run kept boxes; else that of `sgpipe label`.

    Raises:
        UserError: no such run.
    """
    identity = Manifest.load(detected).run.get("identity", {}) if is_run(detected) else {}
    detector = identity.get("detect") or {}
    return float(detector.get("threshold", DetectConfig().threshold))


@dataclass(frozen=True)
class Comparison:
    """The images that a ground truth and a detector have in common.

    Attributes:
        truth: the ground truth.
        detections: what the detector found.
        images: names of the compared images, in the order of pycocotools.
        pairs: boxes of each of these images.
        unmatched: number of images of the detector that the ground truth lacks.
    """

    truth: BoxSet
    detections: BoxSet
    images: Sequence[ImageName]
    pairs: Sequence[BoxPair]
    unmatched: int

    @classmethod
    def of(cls, truth: BoxSet, detected: Location) -> Comparison:
        """Match the boxes of a detector with those of the ground truth.

        Raises:
            UserError: the detector found nothing, or has no image or class in common with the
                ground truth.
        """
        detections = read_detections(detected, truth)
        if not any(image.boxes for image in detections.images.values()):
            raise UserError(f"{detected} has no boxes")
        images = sorted(truth.images, key=_coco_order)
        detected_images = _match_images(images, detections)
        if not detected_images:
            names = (
                f"one has {next(iter(detections.images)).base_name!r}, the other"
                f" {images[0].base_name!r}"
            )
            raise UserError(f"{detected} and {truth.path} have no image in common: {names}")
        if detections.lists_images:
            images = [image for image in images if image in detected_images]
        pairs = [_boxes_of(image, truth, detections, detected_images) for image in images]
        unmatched = len(detections.images) - len(detected_images)
        comparison = cls(truth, detections, images, pairs, unmatched)
        comparison._check_classes()
        return comparison

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the ground truth in these images."""
        return tuple(sorted({box.name for box in self.true_boxes}))

    @property
    def true_boxes(self) -> list[ScoredBox]:
        return list(chain.from_iterable(true_boxes for true_boxes, _ in self.pairs))

    @property
    def detected_boxes(self) -> list[ScoredBox]:
        return list(chain.from_iterable(detected_boxes for _, detected_boxes in self.pairs))

    def counts(self, true_boxes: int) -> dict[str, int]:
        """Return what was compared and what was not; `true_boxes`: those of the ground truth
        without crowds.
        """
        crowds = sum(box.crowd for box in self.true_boxes)
        return {
            "images": len(self.images),
            "images failed": self.detections.failed,
            "images repeated": self.detections.repeated,
            "images without ground truth": self.unmatched,
            "ground truth images not in run": len(self.truth.images) - len(self.images),
            "boxes": len(self.detected_boxes),
            "ground truth boxes": true_boxes,
            "ground truth crowds": crowds,
        }

    def _check_classes(self) -> None:
        known = self.classes
        if not known:
            raise UserError(
                f"{self.truth.path} has no boxes in the images that {self.detections.path} has"
            )
        detected = {box.name for box in self.detected_boxes}
        if detected and detected.isdisjoint(known):
            names = f"one has {list_classes(sorted(detected))}, the other {list_classes(known)}"
            places = f"{self.detections.path} and {self.truth.path}"
            raise UserError(
                f"{places} have no class in common: {names}; classes are matched by name"
            )

    def notes(self, counts: Mapping[str, int]) -> list[str]:
        """Return what a reader should know of the figures."""
        boxes = count(counts["boxes"], "box", "boxes")
        images = count(counts["images"], "image")
        truth = f"{counts['ground truth boxes']:,} of the ground truth"
        crowds = f"crowds left out: {counts['ground truth crowds']:,}"
        notes = [f"compared {boxes} in {images} with {truth}; {crowds}", *count_notes(counts)]
        return notes + self._class_notes() + self._score_notes()

    def _class_notes(self) -> list[str]:
        notes = []
        detected = Counter(box.name for box in self.detected_boxes)
        known = self.classes
        other_classes = sorted(detected.keys() - known)
        if other_classes:
            boxes = count(sum(detected[name] for name in other_classes), "box", "boxes")
            notes.append(
                f"left out {boxes} of classes without ground truth here:"
                f" {list_classes(other_classes)}"
            )
        missed_classes = sorted(set(known).difference(detected))
        if missed_classes:
            notes.append(
                f"nothing was detected of {list_classes(missed_classes)}; classes are matched by"
                " name"
            )
        return notes

    def _score_notes(self) -> list[str]:
        boxes = self.detected_boxes
        scores = [box.score for box in boxes if box.score is not None]
        if len(scores) < len(boxes) or not scores:
            kept_by = "runs that detect boxes keep their scores"
            return [f"the boxes have no scores, so AP has one step; {kept_by}"]
        lowest = min(scores)
        if lowest < _LOW_SCORE:
            return []
        hint = "runs with --set detect.threshold=0 keep them"
        return [f"the lowest score is {lowest:.3f}: AP counts boxes below it as missed; {hint}"]


def _coco_order(image: ImageName) -> tuple[float, str]:
    """Return a key that sorts images as pycocotools does, by whose order boxes of equal scores
    count.
    """
    number = int(image.image_id) if image.image_id.isdecimal() else math.inf
    return number, image.image_id


def _match_images(images: Sequence[ImageName], detections: BoxSet) -> dict[ImageName, ImageName]:
    """Return, by the name of a ground-truth image, the detector's name of it."""
    finder = image_finder(images)
    places = {image: finder(image) for image in detections.images}
    return {images[place]: image for image, place in places.items() if place != NO_IMAGE}


def _boxes_of(
    image: ImageName,
    truth: BoxSet,
    detections: BoxSet,
    detected_images: Mapping[ImageName, ImageName],
) -> BoxPair:
    size, true_boxes = truth.images[image]
    if image not in detected_images:
        return true_boxes, []
    return true_boxes, detections.images[detected_images[image]].resized(size)


class Totals(NamedTuple):
    """How many of the best 0, 1, 2, … boxes there are and are correct, `[boxes + 1]`; number of
    targets.
    """

    predicted: Array
    correct: Array
    targets: int

    def f1(self) -> Array:
        """`[boxes + 1]`, of the best 0, 1, 2, … boxes."""
        f1: Array = 2 * self.correct / np.maximum(self.predicted + self.targets, 1)
        return f1


class ScorePoint(NamedTuple):
    """Precision, recall and F1 at an IoU of 0.5 of boxes with at least a score; NaN of nothing."""

    threshold: float
    precision: float
    recall: float
    f1: float


class BoxScores:
    """COCO's measures, by pycocotools, and its matches of the best 100 boxes of an image and class.

    Attributes:
        names: of the classes.
        measures: COCO's twelve, by name.
        matches: of class IoU * classes + class.
        scores, correct, images: `[boxes]`, at an IoU of 0.5 by falling score.
        targets: `[images]`, number of boxes to detect.
    """

    def __init__(self, pairs: Sequence[BoxPair], names: tuple[str, ...]) -> None:
        evaluation = _run_pycocotools(pairs, names)
        stats = np.where(evaluation.stats < 0, math.nan, evaluation.stats)
        self.names = names
        self.measures = dict(zip(_MEASURES, stats.tolist(), strict=True))
        self.matches = _matches(evaluation, len(names), len(pairs))
        occurrences = self.matches.occurrences
        assert occurrences is not None
        at_50 = self.matches.classes < len(names)
        boxes_at_50 = int(self.matches.detections[at_50].sum())
        order = np.argsort(-self.matches.scores[:boxes_at_50], kind="stable")
        self.scores = self.matches.scores[order]
        self.correct = self.matches.correct[order]
        self.images = occurrences.detections[order]
        targets_at_50 = occurrences.targets[occurrences.target_rows < at_50.sum()]
        self.targets = np.bincount(targets_at_50, minlength=len(pairs))

    def summary(self, threshold: float) -> dict[str, float]:
        """Return COCO's measures, precision, recall and F1 at the score, and the best F1."""
        return {**self.measures, **self._f1_measures(threshold, self._each_image_once())}

    def best_point(self) -> dict[str, float]:
        """Return the score of the best F1, with precision and recall there."""
        best = self.at_best_f1(self._each_image_once())
        return {
            "threshold of best F1": best.threshold,
            "precision there": best.precision,
            "recall there": best.recall,
        }

    def _each_image_once(self) -> Array:
        """Return how often each image occurs in the dataset as it is: once."""
        return np.ones(len(self.targets), dtype=int)

    def resampled_summary(self, threshold: float, counts: Array) -> dict[str, float]:
        """Return AP, AP50, AP75 and the rest of `summary` of a dataset with each image
        `counts[image]` times.
        """
        matches = self.matches.resampled(counts)
        measures = {
            "AP": matches.mean(None),
            "AP50": matches.mean(self.classes_at(_IOU_50)),
            "AP75": matches.mean(self.classes_at(_IOU_75)),
        }
        return {**measures, **self._f1_measures(threshold, counts)}

    def _f1_measures(self, threshold: float, counts: Array) -> dict[str, float]:
        point = self.at(threshold, counts)
        return {
            f"precision at {threshold:g}": point.precision,
            f"recall at {threshold:g}": point.recall,
            f"F1 at {threshold:g}": point.f1,
            "best F1": self.at_best_f1(counts).f1,
        }

    def classes_at(self, iou: int) -> Array:
        """Return the numbers in `matches` of all classes at an IoU, counted from 0.5."""
        return np.arange(iou * len(self.names), (iou + 1) * len(self.names))

    def at(self, threshold: float, counts: Array) -> ScorePoint:
        """Return precision and recall of boxes with at least the score; `counts[image]`: how often
        it occurs.
        """
        # shards have float32, other files float64
        min_score = min(threshold, float(np.float32(threshold)))
        boxes = int((self.scores >= min_score).sum())
        totals = self._totals(counts)
        return _point(threshold, boxes, totals, totals.f1())

    def at_best_f1(self, counts: Array) -> ScorePoint:
        """Return the score with the highest F1, of equal ones the highest; `counts`: as in `at`."""
        totals = self._totals(counts)
        f1 = totals.f1()
        if not len(self.scores):
            return _point(math.nan, 0, totals, f1)
        ends = np.append(self.scores[1:] != self.scores[:-1], True)  # the last of equal scores
        boxes = 1 + int(np.where(ends, f1[1:], -1).argmax())
        return _point(float(self.scores[boxes - 1]), boxes, totals, f1)

    def _totals(self, counts: Array) -> Totals:
        weights = counts[self.images]
        predicted = np.append(0, np.cumsum(weights))
        correct = np.append(0, np.cumsum(weights * self.correct))
        return Totals(predicted, correct, int((counts * self.targets).sum()))

    def per_class(self) -> Rows:
        """Return a row for each class: how many boxes at an IoU of 0.5, AP and AR."""
        matches = self.matches
        average_precision = matches.average_precision.reshape(_IOUS, -1)
        mean_precision = average_precision.mean(0)
        mean_recall = matches.max_recall.reshape(_IOUS, -1).mean(0)
        rows = []
        for row, number in enumerate(matches.classes[: average_precision.shape[1]].tolist()):
            values = {
                "class": self.names[number],
                "ground_truth": int(matches.targets[row]),
                "detections": int(matches.detections[row]),
                "hits": int(matches.true_positives[row]),
                "AP": float(mean_precision[row]),
                "AP50": float(average_precision[_IOU_50, row]),
                "AP75": float(average_precision[_IOU_75, row]),
                "AR@100": float(mean_recall[row]),
            }
            rows.append(values)
        return rows


def _point(threshold: float, boxes: int, totals: Totals, f1: Array) -> ScorePoint:
    """Return the point at which the best `boxes` count."""
    predicted = totals.predicted[boxes]
    correct = totals.correct[boxes]
    precision = correct / predicted if predicted else math.nan
    recall = correct / totals.targets if totals.targets else math.nan
    return ScorePoint(threshold, float(precision), float(recall), float(f1[boxes]))


def _run_pycocotools(pairs: Sequence[BoxPair], names: Sequence[str]) -> COCOeval:
    """Return a `COCOeval` that has evaluated the boxes."""
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it prints its progress
        truth = _coco([true_boxes for true_boxes, _ in pairs], names)
        detections = _coco([detected_boxes for _, detected_boxes in pairs], names)
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _coco(images: Sequence[list[ScoredBox]], names: Sequence[str]) -> COCO:
    """Return boxes of known classes as pycocotools' COCO. Ids count from 1, as it takes annotation
    0 for no match.
    """
    from pycocotools.coco import COCO

    numbers = {name: number for number, name in enumerate(names, 1)}
    annotations: list[dict[str, object]] = []
    for image, boxes in enumerate(images, 1):
        for box in boxes:
            if box.name not in numbers:
                continue
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": numbers[box.name],
                "bbox": [*box.xywh],
                "area": box.xywh[2] * box.xywh[3] if box.area is None else box.area,
                "iscrowd": box.crowd,
                "score": 1.0 if box.score is None else box.score,
            }
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _matches(evaluation: COCOeval, classes: int, images: int) -> ClassScores:
    """Return the matches that pycocotools made, of boxes of all areas."""
    tally = Tally()
    per_class = len(evaluation.params.areaRng) * images  # the first images are those of all areas
    for row in range(classes):
        numbers = row + classes * np.arange(_IOUS)
        matched_images = evaluation.evalImgs[row * per_class : row * per_class + images]
        for image, matched in enumerate(matched_images):
            if matched is not None:
                _add_matches(tally, matched, numbers, image)
    return tally.class_scores(coco_point)


def _add_matches(tally: Tally, matched: Mapping[str, Any], numbers: Array, image: int) -> None:
    """Add an item of `COCOeval.evalImgs`; `numbers` `[IoUs]`: of its class at each IoU."""
    counts = ~matched["dtIgnore"].astype(bool)
    ious, places = np.nonzero(counts)
    correct = matched["dtMatches"][ious, places] > 0
    scores = np.array(matched["dtScores"], dtype=np.float64)[places]
    # pycocotools matches no target twice
    targets_of_boxes = np.where(correct, np.cumsum(correct) - 1, -1)
    number_of_targets = int((~matched["gtIgnore"].astype(bool)).sum())
    targets = np.repeat(numbers, number_of_targets)
    images = (np.full(len(targets), image), np.full(len(ious), image))
    tally.add(targets, numbers[ious], scores, targets_of_boxes, images)
