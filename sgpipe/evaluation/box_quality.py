"""COCO's box AP of detected boxes, by pycocotools, and their precision and recall at a score.

Classes are matched by name, images by id or file name.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import coco_point
from rlip_model.evaluation.scores import ClassScores, Tally
from sgpipe.errors import UserError, check_share
from sgpipe.evaluation.boxes import ImageBoxes, is_run, listed, read_detected, read_truth
from sgpipe.evaluation.label_quality.arrays import NO_IMAGE, ImageFinder
from sgpipe.evaluation.label_quality.comparison import NOTES
from sgpipe.evaluation.result import RECALLS, EvaluationResult, Resampling, count_notes
from sgpipe.files.locations import Location, text_of
from sgpipe.recipe import DetectConfig
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

_MEASURES = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large"),
)  # in the order of `COCOeval.stats`
_IOU_50, _IOU_75 = 0, 5  # of 0.50, 0.55, … 0.95
_ALL = 0  # areas


class OperatingPoint(NamedTuple):
    """Boxes with at least a score, at an IoU of 0.5, all classes together."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class BoxScores:
    """What pycocotools finds.

    names: of the classes. measures: COCO's twelve. precision `[ious, recalls, classes]` and recall `[ious, classes]`,
    -1 for classes without ground truth. matches: the best 100 boxes of an image and class, whose class numbers are
    IoU * classes + class. scores, correct, images: `[boxes]`, of boxes at an IoU of 0.5 by falling score; targets:
    `[images]`, how many boxes there are to detect.
    """

    names: tuple[str, ...]
    measures: Mapping[str, float]
    precision: Array
    recall: Array
    matches: ClassScores
    scores: Array
    correct: Array
    images: Array
    targets: Array

    def resampled(self, counts: Array) -> dict[str, float]:
        """Return the AP of a dataset in which each image occurs `counts[image]` times."""
        own, classes = self.matches.resampled(counts), len(self.names)
        ious = {"AP": None, "AP50": _IOU_50, "AP75": _IOU_75}
        return {
            name: own.mean(None if iou is None else np.arange(iou * classes, (iou + 1) * classes))
            for name, iou in ious.items()
        }

    def at(self, threshold: float, counts: Array | None = None) -> OperatingPoint:
        """Precision, recall and F1 of the boxes with at least this score; NaN over nothing."""
        weights, targets = self._weights(counts)
        kept = self.scores >= min(threshold, float(np.float32(threshold)))  # shards have float32, other files float64
        predicted, matched = int(weights[kept].sum()), int(weights[kept & self.correct].sum())
        precision = matched / predicted if predicted else math.nan
        recall = matched / targets if targets else math.nan
        return OperatingPoint(threshold, precision, recall, 2 * matched / max(predicted + targets, 1))

    def best(self, counts: Array | None = None) -> OperatingPoint:
        """Return the score with the highest F1; of equal ones the highest."""
        weights, targets = self._weights(counts)
        predicted, matched = np.cumsum(weights), np.cumsum(weights * self.correct)
        last = np.append(self.scores[1:] != self.scores[:-1], True)[: len(self.scores)]  # of equal scores
        f1 = np.where(last, 2 * matched / np.maximum(predicted + targets, 1), -1)
        return self.at(float(self.scores[f1.argmax()]) if len(f1) else math.nan, counts)

    def _weights(self, counts: Array | None) -> tuple[Array, int]:
        counts = np.ones(len(self.targets), dtype=int) if counts is None else counts
        return counts[self.images], int((counts * self.targets).sum())

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """One row for each class that the ground truth has."""
        at_50 = self.matches.classes < len(self.names)  # IoU 0.5
        counts = (self.matches.targets, self.matches.detections, self.matches.true_positives)
        rows = []
        for number, *own in zip(*(each[at_50].tolist() for each in (self.matches.classes, *counts)), strict=True):
            precision = self.precision[:, :, number].mean(1)
            rows.append(
                {
                    "class": self.names[number],
                    **dict(zip(("ground_truth", "detections", "hits"), own, strict=True)),
                    "AP": float(precision.mean()),
                    "AP50": float(precision[_IOU_50]),
                    "AP75": float(precision[_IOU_75]),
                    "AR@100": float(self.recall[:, number].mean()),
                }
            )
        return rows

    def curve(self, iou: int) -> Array:
        """Return the precision `[101]` at `RECALLS`, the mean over the classes that the ground truth has."""
        known = self.precision[iou][:, self.recall[iou] >= 0]
        return known.mean(1) if known.size else np.zeros(len(RECALLS))


@dataclass(frozen=True)
class BoxQuality:
    """What `compare_boxes` finds.

    scores: of the images named `images`. counts: images and boxes, including those that could not be compared.
    lowest: the lowest score; NaN if the boxes have none. other_classes: of the boxes, which the ground truth does not
    have, by name: how many boxes. missed_classes: of the ground truth, of which nothing was detected.
    """

    scores: BoxScores
    images: list[str]
    counts: dict[str, int]
    lowest: float
    other_classes: dict[str, int]
    missed_classes: list[str]


def compare_boxes(detected: Location, truth: Location) -> BoxQuality:
    """Compare the boxes of a run, a COCO results file or predictions with ground truth.

    Args:
        truth: a run or import, or a COCO instances file. Its crowds are ignored, as COCO does: boxes inside them are
            neither correct nor wrong.

    Raises UserError: as `read_truth` and `read_detected`; no image or no class in common; nothing to detect.
    """
    target = read_truth(truth)
    found = read_detected(detected, target)
    # As pycocotools, by whose order of images boxes of equal scores count.
    numbers = {name: int(name.image_id) if name.image_id.isdecimal() else math.inf for name in target.images}
    names = sorted(target.images, key=lambda name: (numbers[name], name.image_id))
    finder = ImageFinder(names)
    if not any(len(each.classes) for each in found.images.values()):
        raise UserError(f"{detected} has no boxes")
    places = {names[place]: image for name, image in found.images.items() if (place := finder(name)) != NO_IMAGE}
    if not places:
        raise UserError(
            f"{detected} and {truth} have no image in common: one has {next(iter(found.images)).base_name!r}, the "
            f"other {names[0].base_name!r}"
        )
    compared = [name for name in names if name in places or not found.lists_images]
    nothing = ImageBoxes.of((0, 0), [], [])
    pairs = [(target.images[name], places.get(name, nothing).resized(target.images[name].size)) for name in compared]
    known = tuple(sorted({name for own, _ in pairs for name in own.classes}))
    detected_classes = Counter(name for _, own in pairs for name in own.classes)
    if not known:
        raise UserError(f"{truth} has no boxes in the images that {detected} has")
    if detected_classes and not detected_classes.keys() & {*known}:
        raise UserError(
            f"{detected} and {truth} have no class in common: one has {listed(sorted(detected_classes))}, the other "
            f"{listed(known)}; classes are matched by name, so rename those of one of them"
        )
    scores = _scores(pairs, known)
    counts = {
        **{"images": len(compared), "images failed": found.failed, "images repeated": found.repeated},
        "images without ground truth": len(found.images) - len(places),
        "ground truth images not in run": len(names) - len(compared),
        **{"boxes": detected_classes.total(), "ground truth boxes": int(scores.targets.sum())},
        "ground truth crowds": sum(int(own.crowd.sum()) for own, _ in pairs),
    }
    lowest = min((float(own.scores.min()) for _, own in pairs if len(own.scores)), default=math.nan)
    return BoxQuality(
        scores,
        [f"{name.dataset} {name.image_id} {name.base_name}" for name in compared],
        counts,
        lowest if found.scored else math.nan,
        {name: detected_classes[name] for name in sorted(detected_classes) if name not in known},
        [name for name in known if name not in detected_classes],
    )


def _scores(pairs: Sequence[tuple[ImageBoxes, ImageBoxes]], names: tuple[str, ...]) -> BoxScores:
    """Match by pycocotools. pairs: ground truth and detected boxes of each image."""
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_coco([own for own, _ in pairs], names), _coco([own for _, own in pairs], names), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [math.nan if value < 0 else float(value) for value in evaluation.stats]
    precision, recall = (evaluation.eval[name][..., _ALL, -1] for name in ("precision", "recall"))
    tally, per_class = Tally(), len(evaluation.params.areaRng) * len(pairs)
    for row in range(len(names)):
        numbers = row + len(names) * np.arange(len(precision))  # of the class at all IoUs
        for image, matched in enumerate(evaluation.evalImgs[row * per_class :][: len(pairs)]):  # of all areas
            if matched is None:
                continue
            ious, places = np.nonzero(~matched["dtIgnore"].astype(bool))
            correct = matched["dtMatches"][ious, places] > 0
            targets = np.repeat(numbers, int((~matched["gtIgnore"].astype(bool)).sum()))
            tally.add(
                targets,
                numbers[ious],
                np.array(matched["dtScores"], dtype=np.float64)[places],
                np.where(correct, np.cumsum(correct) - 1, -1),  # pycocotools matches no target twice
                (np.full(len(targets), image), np.full(len(ious), image)),
            )
    matches = tally.class_scores(coco_point)
    at_50 = matches.classes < len(names)
    boxes = int(matches.detections[at_50].sum())
    order = np.argsort(-matches.scores[:boxes], kind="stable")
    occurrences = matches.occurrences
    assert occurrences is not None
    return BoxScores(
        names,
        dict(zip(_MEASURES, values, strict=True)),
        precision,
        recall,
        matches,
        matches.scores[:boxes][order],
        matches.correct[:boxes][order],
        occurrences.detections[:boxes][order],
        np.bincount(occurrences.targets[occurrences.target_rows < at_50.sum()], minlength=len(pairs)),
    )


def _coco(images: Sequence[ImageBoxes], names: Sequence[str]) -> Any:
    """As pycocotools' COCO. Ids count from 1, as it takes a match with annotation 0 for none."""
    from pycocotools.coco import COCO

    numbers = {name: number for number, name in enumerate(names, 1)}
    keys = ("bbox", "score", "iscrowd", "area")
    annotations = [
        {"image_id": number, "category_id": numbers[name], **dict(zip(keys, values, strict=True))}
        for number, image in enumerate(images, 1)
        for name, *values in zip(
            image.classes,
            *(each.tolist() for each in (image.boxes, image.scores, image.crowd, image.areas)),
            strict=True,
        )
        if name in numbers
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco


def evaluate_boxes(detected: Location, truth: Location, threshold: float | None = None) -> EvaluationResult:
    """COCO's box AP and AR, and precision and recall at a score.

    Args:
        detected, truth: as for `compare_boxes`.
        threshold: minimum score of boxes for precision and recall; None: that of the run, or else of `sgpipe label`.

    Raises UserError: as `compare_boxes`.
    """
    if threshold is not None:
        check_share("threshold", threshold)
    quality = compare_boxes(detected, truth)
    level = own_threshold(detected) if threshold is None else threshold
    scores = quality.scores

    def summary(counts: Array | None = None) -> dict[str, float]:
        point, best = scores.at(level, counts), scores.best(counts)
        return {
            **(scores.measures if counts is None else scores.resampled(counts)),
            f"precision at {level:g}": point.precision,
            f"recall at {level:g}": point.recall,
            f"F1 at {level:g}": point.f1,
            "best F1": best.f1,
        }

    best = scores.best()
    curves = {"IoU 0.5": scores.curve(_IOU_50), "IoU 0.75": scores.curve(_IOU_75)}
    there = {"threshold of best F1": best.threshold, "precision there": best.precision, "recall there": best.recall}
    return EvaluationResult(
        "Box quality (COCO)",
        {"pred": text_of(detected), "truth": text_of(truth), "threshold": level},
        {**summary(), **there},
        scores.per_class,
        _notes(quality),
        counts=quality.counts,
        curves=curves,
        resampling=Resampling(quality.images, summary),
    )


def own_threshold(detected: Location) -> float:
    """Return the score above which the run kept boxes; of other files that of `sgpipe label`.

    Raises UserError: there is no such run.
    """
    made = Manifest.load(detected).run.get("identity", {}) if is_run(detected) else {}
    return float((made.get("detect") or {}).get("threshold", DetectConfig().threshold))


def _notes(quality: BoxQuality) -> list[str]:
    counts = quality.counts
    notes = [
        f"compared {count(counts['boxes'], 'box', 'boxes')} in {count(counts['images'], 'image')} with "
        f"{counts['ground truth boxes']:,} of the ground truth; crowds left out: {counts['ground truth crowds']:,}"
    ]
    notes += count_notes(counts, NOTES)
    if quality.other_classes:
        boxes = count(sum(quality.other_classes.values()), "box", "boxes")
        notes.append(f"left out {boxes} of classes without ground truth here: {listed(quality.other_classes)}")
    if quality.missed_classes:
        notes.append(f"nothing was detected of {listed(quality.missed_classes)}; classes are matched by name")
    if np.isnan(quality.lowest):
        notes.append("the boxes have no scores, so AP has one step; runs that detect boxes keep their scores")
    elif quality.lowest >= 0.01:
        notes.append(
            f"the lowest score is {quality.lowest:.3f}: AP counts boxes below it as missed; runs with "
            "--set detect.threshold=0 keep them"
        )
    return notes
