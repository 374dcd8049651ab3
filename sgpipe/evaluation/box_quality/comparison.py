"""COCO's box AP of detected boxes, by pycocotools, and their precision and recall at a score.

pycocotools matches boxes; its matches also give the AP of any resample of the images.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import coco_point
from rlip_model.evaluation.scores import ClassScores, Tally, mean
from sgpipe.errors import UserError
from sgpipe.evaluation.box_quality.boxes import BoxSet, ImageBoxes, listed, read_detected, read_truth
from sgpipe.evaluation.label_quality.arrays import ImageName
from sgpipe.evaluation.label_quality.ground_truth import NO_IMAGE, ImageFinder

AREAS = ("all", "small", "medium", "large")
_IOUS = 10  # 0.50, 0.55, … 0.95
_IOU_50, _IOU_75 = 0, 5
MOST_BOXES = (1, 10, 100)  # per image and class


@dataclass(frozen=True)
class OperatingPoint:
    """Boxes with at least a score, at an IoU of 0.5, all classes together."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class BoxScores:
    """The matches of pycocotools. Classes of `matches` are numbered by IoU, then by area, then by `names`.

    names: of the classes. matches: of the best 1, 10 and 100 boxes of an image and class. scores, correct, images:
    `[boxes]`, of boxes at an IoU of 0.5 by falling score; targets: `[images]`, how many boxes there are to detect.
    """

    names: tuple[str, ...]
    matches: Mapping[int, ClassScores]
    scores: Array
    correct: Array
    images: Array
    targets: Array

    def numbers(self, ious: slice, area: str = "all") -> Array:
        """The class numbers of these IoUs and this area, `[ious * classes]`."""
        table = np.arange(_IOUS * len(AREAS) * len(self.names)).reshape(_IOUS, len(AREAS), -1)
        return table[ious, AREAS.index(area)].reshape(-1)

    def summary(self, counts: Array | None = None) -> dict[str, float]:
        """COCO's twelve measures; `counts`: how often each image occurs `[images]`."""
        parts = self.matches if counts is None else {most: own.resampled(counts) for most, own in self.matches.items()}
        best = parts[MOST_BOXES[-1]]
        every = slice(None)
        measures = {
            "AP": best.mean(self.numbers(every)),
            "AP50": best.mean(self.numbers(slice(_IOU_50, _IOU_50 + 1))),
            "AP75": best.mean(self.numbers(slice(_IOU_75, _IOU_75 + 1))),
        }
        measures |= {f"AP {area}": best.mean(self.numbers(every, area)) for area in AREAS[1:]}
        recalls = {f"AR@{most}": _max_recall(part, self.numbers(every)) for most, part in parts.items()}
        return measures | recalls | {f"AR {area}": _max_recall(best, self.numbers(every, area)) for area in AREAS[1:]}

    def at(self, threshold: float, counts: Array | None = None) -> OperatingPoint:
        """Precision, recall and F1 of the boxes with at least this score; NaN over nothing."""
        weights, targets = self._weights(counts)
        kept = self.scores >= min(threshold, float(np.float32(threshold)))  # shards have float32, other files float64
        predicted, matched = int(weights[kept].sum()), int(weights[kept & self.correct].sum())
        return _point(threshold, matched, predicted, targets)

    def best(self, counts: Array | None = None) -> OperatingPoint:
        """The score with the highest F1; of equal ones the highest."""
        weights, targets = self._weights(counts)
        predicted, matched = np.cumsum(weights), np.cumsum(weights * self.correct)
        last = np.append(self.scores[1:] != self.scores[:-1], True)[: len(self.scores)]  # of equal scores
        f1 = np.where(last, 2 * matched / np.maximum(predicted + targets, 1), -1)
        if not len(f1):
            return _point(float("nan"), 0, 0, targets)
        place = int(f1.argmax())
        return _point(float(self.scores[place]), int(matched[place]), int(predicted[place]), targets)

    def _weights(self, counts: Array | None) -> tuple[Array, int]:
        counts = np.ones(len(self.targets), dtype=int) if counts is None else counts
        return counts[self.images], int((counts * self.targets).sum())

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """One row for each class that the ground truth has."""
        best = self.matches[MOST_BOXES[-1]]
        shape = (_IOUS, len(AREAS), len(self.names))
        columns = {}
        for name, values in (
            ("ground_truth", best.targets),
            ("detections", best.detections),
            ("hits", best.true_positives),
            ("AP", best.average_precision),
            ("AR", best.max_recall),
        ):
            table = np.full(shape, np.nan)
            table.reshape(-1)[best.classes] = values
            columns[name] = table[:, 0]
        return [
            {
                "class": name,
                **{key: int(columns[key][_IOU_50, row]) for key in ("ground_truth", "detections", "hits")},
                "AP": float(columns["AP"][:, row].mean()),
                "AP50": float(columns["AP"][_IOU_50, row]),
                "AP75": float(columns["AP"][_IOU_75, row]),
                "AR@100": float(columns["AR"][:, row].mean()),
            }
            for row, name in enumerate(self.names)
            if not np.isnan(columns["AP"][0, row])
        ]


def _max_recall(scores: ClassScores, classes: Array) -> float:
    return mean(scores.max_recall[np.isin(scores.classes, classes)])


def _point(threshold: float, matched: int, predicted: int, targets: int) -> OperatingPoint:
    nothing = float("nan")
    precision = matched / predicted if predicted else nothing
    recall = matched / targets if targets else nothing
    f1 = 2 * matched / (predicted + targets) if predicted + targets else nothing
    return OperatingPoint(threshold, precision, recall, f1)


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


def compare_boxes(detected: Path, truth: Path) -> BoxQuality:
    """Compare the boxes of a run, a COCO results file or predictions with ground truth.

    Args:
        truth: a run or import, or a COCO instances file. Its crowds are ignored, as COCO does: boxes inside them are
            neither correct nor wrong.

    Raises:
        UserError: as `read_truth` and `read_detected`; no image or no class in common; nothing to detect.
    """
    target = read_truth(truth)
    found = read_detected(detected, target)
    names = sorted(target.images, key=_by_number)
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
    pairs = [(target.images[name], _resized(places.get(name, nothing), target.images[name].size)) for name in compared]
    known, others = _classes(detected, truth, target, pairs)
    scores = _scores(pairs, known)
    counts = {
        "images": len(compared),
        "images failed": found.failed,
        "images without ground truth": len(found.images) - len(places),
        "images repeated": found.repeated,
        "ground truth images not in run": len(names) - len(compared),
        "boxes": sum(len(own.classes) for _, own in pairs),
        "ground truth boxes": int(scores.targets.sum()),
        "ground truth crowds": sum(int(own.crowd.sum()) for own, _ in pairs),
    }
    detected_classes = {name for _, own in pairs for name in own.classes}
    lowest = min((float(own.scores.min()) for _, own in pairs if len(own.scores)), default=float("nan"))
    return BoxQuality(
        scores,
        [f"{name.dataset} {name.image_id} {name.base_name}" for name in compared],
        counts,
        lowest if found.scored else float("nan"),
        others,
        [name for name in known if name not in detected_classes],
    )


def _by_number(name: ImageName) -> tuple[bool, int, str]:
    """The order of pycocotools, in which boxes of equal scores count."""
    number = int(name.image_id) if name.image_id.isdecimal() else 0
    return not name.image_id.isdecimal(), number, name.image_id


def _resized(image: ImageBoxes, size: tuple[int, int]) -> ImageBoxes:
    """The boxes in pixels of an image of this size, which may differ between datasets."""
    if image.size == size or not all((*image.size, *size)):
        return image
    factors = np.tile(np.array(size) / np.array(image.size), 2)
    return ImageBoxes.of(size, image.boxes * factors, image.classes, image.scores, image.crowd)


def _classes(
    detected: Path, truth: Path, target: BoxSet, pairs: Sequence[tuple[ImageBoxes, ImageBoxes]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes of the ground truth that occur, and the boxes of other classes, counted by name."""
    known = tuple(sorted({name for own, _ in pairs for name in own.classes}))
    if not known:
        raise UserError(f"{truth} has no boxes in the images that {detected} has")
    names, counts = np.unique([name for _, own in pairs for name in own.classes], return_counts=True)
    others = {name: number for name, number in zip(names.tolist(), counts.tolist(), strict=True) if name not in known}
    if len(names) and len(others) == len(names):
        raise UserError(
            f"{detected} and {truth} have no class in common: one has {listed(names.tolist())}, the other "
            f"{listed(known)}; classes are matched by name, so rename those of one of them"
        )
    return known, others


def _scores(pairs: Sequence[tuple[ImageBoxes, ImageBoxes]], names: tuple[str, ...]) -> BoxScores:
    """Match by pycocotools. pairs: ground truth and detected boxes of each image."""
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_coco([own for own, _ in pairs], names), _coco([own for _, own in pairs], names), "bbox")
        evaluation.evaluate()
    tallies = {most: Tally() for most in MOST_BOXES}
    per_image = iter(evaluation.evalImgs)
    numbers = np.arange(_IOUS * len(AREAS) * len(names)).reshape(_IOUS, len(AREAS), -1)
    points: list[tuple[Array, Array, Array]] = []
    targets = np.zeros(len(pairs), dtype=int)
    for row in range(len(names)):
        for area in range(len(AREAS)):
            for image in range(len(pairs)):
                if (matched := next(per_image)) is None:
                    continue
                for most, tally in tallies.items():
                    if area == 0 or most == MOST_BOXES[-1]:
                        _add(tally, matched, numbers[:, area, row], image, most)
                if area == 0:
                    kept = ~matched["dtIgnore"][_IOU_50].astype(bool)
                    correct = matched["dtMatches"][_IOU_50][kept] > 0
                    points.append((np.array(matched["dtScores"])[kept], correct, np.full(len(correct), image)))
                    targets[image] += int((~matched["gtIgnore"].astype(bool)).sum())
    scores, correct, images = (np.concatenate(part) for part in zip(*points, strict=True))
    order = np.argsort(-scores, kind="stable")
    matches = {most: tally.class_scores(coco_point) for most, tally in tallies.items()}
    return BoxScores(names, matches, scores[order], correct[order].astype(bool), images[order], targets)


def _add(tally: Tally, matched: Mapping[str, Any], numbers: Array, image: int, most: int) -> None:
    """Add the boxes of an image, class and area at all IoUs, whose class numbers are `numbers`."""
    kept = ~matched["dtIgnore"].astype(bool)[:, :most]
    ious, places = np.nonzero(kept)
    correct = matched["dtMatches"][:, :most][ious, places] > 0
    matches = np.where(correct, np.cumsum(correct) - 1, -1)  # pycocotools matches no target twice
    targets = int((~matched["gtIgnore"].astype(bool)).sum())
    target_classes = np.repeat(numbers, targets)
    scores = np.array(matched["dtScores"], dtype=np.float64)[places]
    images = np.full(len(target_classes), image), np.full(len(ious), image)
    tally.add(target_classes, numbers[ious], scores, matches, images)


def _coco(images: Sequence[ImageBoxes], names: Sequence[str]) -> Any:
    """As pycocotools' COCO. Ids count from 1, as it takes a match with annotation 0 for none."""
    from pycocotools.coco import COCO

    numbers = {name: number for number, name in enumerate(names, 1)}
    annotations = [
        {
            "image_id": number,
            "category_id": numbers[name],
            "bbox": box,
            "score": score,
            "iscrowd": int(crowd),
            "area": area,
        }
        for number, image in enumerate(images, 1)
        for name, box, score, crowd, area in zip(
            image.classes,
            image.boxes.tolist(),
            image.scores.tolist(),
            image.crowd.tolist(),
            image.areas.tolist(),
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
