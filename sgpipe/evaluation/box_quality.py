"""COCO's box AP of detected boxes, by pycocotools, and their precision and recall at a score.

Boxes come from shards and COCO files. Classes are matched by name, images by id or name.
"""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import coco_point
from rlip_model.evaluation.scores import ClassScores, Tally
from sgpipe.errors import UserError, check_share
from sgpipe.evaluation.graphs import NO_IMAGE, ImageName, image_base_name, image_finder
from sgpipe.evaluation.result import EvaluationResult, Resampling, Rows, class_curve, count_notes
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.recipe import DetectConfig
from sgpipe.sources import fields
from sgpipe.sources.fields import FieldError
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from sgpipe.utils.console import count

_FORMS = "expected the folder of a run, or a COCO results file: a list of 'image_id', 'category_id', 'bbox' and 'score'"


class ScoredBox(NamedTuple):
    """A box: x, y, width and height in pixels. score: None is certain. area: by which COCO tells small from large."""

    xywh: Sequence[float]
    name: str
    score: float | None = None
    crowd: bool = False
    area: float | None = None


@dataclass
class BoxSet:
    """Boxes, and width and height (0: not known), of images by name. classes: names by COCO's numbers.

    lists_images: whether images without boxes are in it; otherwise it is not known which were looked at.
    """

    path: Location
    classes: dict[int, str] = field(default_factory=dict)
    images: dict[ImageName, tuple[tuple[int, int], list[ScoredBox]]] = field(default_factory=dict)
    lists_images: bool = True
    failed: int = 0
    repeated: int = 0

    def add(self, name: ImageName, size: tuple[int, int], boxes: Iterable[ScoredBox]) -> None:
        """Add an image; of one that occurs twice, the first counts. Raises UserError: a value would falsify figures."""
        own = [box._replace(name=" ".join(box.name.lower().split())) for box in boxes]
        for box in own:
            sound = all(map(math.isfinite, box.xywh)) and min(box.xywh[2:]) >= 0
            if not (sound and (box.score is None or 0 <= box.score <= 1 + 1e-6)):  # a softmax is rounded
                found = f"box {[round(side, 3) for side in box.xywh]} with score {box.score}"
                expected = "x, y, width and height in pixels, and a score from 0 to 1"
                raise UserError(f"{self.path}: image {name.image_id}: {found}; expected {expected}")
        self.repeated += name in self.images
        self.images.setdefault(name, (size, own))

    def resized(self, name: ImageName, size: tuple[int, int]) -> list[ScoredBox]:
        """Return the boxes in pixels of an image of this size, which may differ between datasets."""
        own, boxes = self.images[name]
        if own == size or not all((*own, *size)):
            return boxes
        factors = np.divide(size, own).tolist() * 2
        return [box._replace(xywh=np.multiply(box.xywh, factors).tolist(), area=None) for box in boxes]

    def class_name(self, number: int, path: Location) -> str:
        """Return the name of a class by its number in the file `path`. Raises UserError: there is none."""
        if number not in self.classes:
            known = _listed(self.classes.values())
            raise UserError(f"{path}: category_id {number} is not a class of the ground truth; it has {known}")
        return self.classes[number]


def is_run(path: Location) -> bool:
    """Return whether there are shards: a store is not asked, but the names of files say what they are."""
    return path.is_dir() if isinstance(path, Path) else not path.name.endswith((".json", ".gz"))


def _shard_boxes(root: Location) -> BoxSet:
    found = BoxSet(root)
    for record in iter_records(root):
        if not record.ok:
            found.failed += 1
            continue
        name = ImageName(record.dataset, record.image_id, image_base_name(record.file_name))
        objects = (box for box in record.objects if not box.is_nothing)
        boxes = (ScoredBox(box.bbox, box.category, box.score, box.iscrowd) for box in objects)
        found.classes.update((box.category_id, box.category) for box in record.objects if not box.is_nothing)
        found.add(name, (record.width, record.height), boxes)
    if not found.images:
        raise UserError(f"{root} contains no images with boxes; is the run finished?")
    return found


def _coco_instances(path: Location) -> BoxSet:
    found = BoxSet(path)
    images: dict[str, tuple[ImageName, tuple[int, int]]] = {}
    rows: dict[str, list[Any]] = {}
    for key, item in JsonStream(path):
        try:
            if key == "images":
                name = ImageName("coco", _id(item, "id"), image_base_name(fields.text(item, "file_name")))
                images.setdefault(name.image_id, (name, fields.size(item)))
            elif key == "categories":
                found.classes[fields.integer(item, "id")] = fields.text(item, "name")
            elif key == "annotations":
                box, category = fields.numbers(fields.required(item, "bbox"), 4), fields.integer(item, "category_id")
                crowd, area = bool(item.get("iscrowd")), float(item.get("area", box[2] * box[3]))
                rows.setdefault(_id(item, "image_id"), []).append((box, category, None, crowd, area))
        except (FieldError, TypeError, ValueError) as error:
            raise UserError(f"{path}: an item of {key!r}: {error}") from None
    if not images or not found.classes:
        raise UserError(f"{path} has no 'images' and 'categories': expected a run, an import or a COCO instances file")
    if unknown := rows.keys() - images.keys():
        raise UserError(f"{path}: image_id {min(unknown)} of an annotation is not in its images")
    for number, (name, size) in images.items():
        own = ((box, found.class_name(category, path), *rest) for box, category, *rest in rows.get(number, []))
        found.add(name, size, (ScoredBox(*each) for each in own))
    return found


def _id(item: Any, key: str) -> str:
    return fields.identifier(fields.required(item, key)) or ""


def _listed(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(map(repr, first[:8])) + (" …" if len(first) > 8 else "")


def _coco_results(path: Location, truth: BoxSet) -> BoxSet:
    """Return the boxes of a file that has the numbers of classes and images of the ground truth."""
    rows: dict[str, list[ScoredBox]] = {}
    for _, item in JsonStream(path):
        try:
            name = truth.class_name(fields.integer(item, "category_id"), path)
            box, [score] = fields.numbers(fields.required(item, "bbox"), 4), fields.numbers([item.get("score")], 1)
            rows.setdefault(_id(item, "image_id"), []).append(ScoredBox(box, name, score))
        except FieldError as error:
            raise UserError(f"{path}: {error}; {_FORMS}") from None
    by_number = {name.image_id: name for name in truth.images}
    if unknown := rows.keys() - by_number.keys():
        hint = "pass --truth of the images of the results"
        raise UserError(f"{path}: image_id {min(unknown)} is not in the ground truth; {hint}")
    found = BoxSet(path, truth.classes, lists_images=False)
    for number, own in rows.items():
        found.add(by_number[number], (0, 0), own)
    return found


_MEASURES = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large"),
)  # in the order of `COCOeval.stats`
_PER_CLASS = ("class", "ground_truth", "detections", "hits", "AP", "AP50", "AP75", "AR@100")
_AT = ("precision", "recall", "F1")
_IOUS = 10  # 0.50, 0.55, … 0.95
_IOU_50, _IOU_75 = 0, 5
_CURVES = {"IoU 0.5": _IOU_50, "IoU 0.75": _IOU_75}


@dataclass(frozen=True)
class BoxScores:
    """COCO's twelve measures, and the matches of the best 100 boxes of an image and class: class IoU * classes + class.

    scores, correct, images: `[boxes]`, at an IoU of 0.5 by falling score. targets: `[images]`, boxes to detect.
    """

    names: tuple[str, ...]
    measures: Mapping[str, float]
    matches: ClassScores
    scores: Array
    correct: Array
    images: Array
    targets: Array

    def summary(self, threshold: float, counts: Array | None = None) -> dict[str, float]:
        """Return the measures; with `counts`, of a dataset in which each image occurs `counts[image]` times."""
        measures = self.measures
        if counts is not None:
            own = self.matches.resampled(counts)
            averages = own.mean(None), own.mean(self.classes(_IOU_50)), own.mean(self.classes(_IOU_75))
            measures = dict(zip(_MEASURES, averages, strict=False))
        at = {f"{name} at {threshold:g}": value for name, value in zip(_AT, self.at(threshold, counts), strict=True)}
        return {**measures, **at, "best F1": self.at(self.best(counts), counts)[2]}

    def classes(self, iou: int) -> Array:
        return np.arange(iou * len(self.names), (iou + 1) * len(self.names))

    def at(self, threshold: float, counts: Array | None = None) -> tuple[float, float, float]:
        """Precision, recall and F1 at an IoU of 0.5 of all boxes with at least this score; NaN over nothing."""
        weights, targets = self._weights(counts)
        kept = self.scores >= min(threshold, float(np.float32(threshold)))  # shards have float32, other files float64
        predicted, matched = int(weights[kept].sum()), int(weights[kept & self.correct].sum())
        precision = matched / predicted if predicted else math.nan
        recall = matched / targets if targets else math.nan
        return precision, recall, 2 * matched / max(predicted + targets, 1)

    def best(self, counts: Array | None = None) -> float:
        """Return the score with the highest F1; of equal ones the highest."""
        weights, targets = self._weights(counts)
        predicted, matched = np.cumsum(weights), np.cumsum(weights * self.correct)
        last = np.append(self.scores[1:] != self.scores[:-1], True)[: len(self.scores)]  # of equal scores
        f1 = np.where(last, 2 * matched / np.maximum(predicted + targets, 1), -1)
        return float(self.scores[f1.argmax()]) if len(f1) else math.nan

    def _weights(self, counts: Array | None) -> tuple[Array, int]:
        counts = np.ones(len(self.targets), dtype=int) if counts is None else counts
        return counts[self.images], int((counts * self.targets).sum())

    @property
    def per_class(self) -> Rows:
        own = self.matches
        average, recall = (values.reshape(_IOUS, -1) for values in (own.average_precision, own.max_recall))
        counts = (column.tolist() for column in (own.targets, own.detections, own.true_positives))  # first of IoU 0.5
        names = [self.names[number] for number in own.classes[: average.shape[1]].tolist()]
        averages = average.mean(0), average[_IOU_50], average[_IOU_75], recall.mean(0)
        rows = zip(names, *counts, *(column.tolist() for column in averages), strict=False)
        return [dict(zip(_PER_CLASS, values, strict=True)) for values in rows]


def _match(pairs: Sequence[tuple[list[ScoredBox], list[ScoredBox]]], names: tuple[str, ...]) -> BoxScores:
    """Match by pycocotools. pairs: ground truth and detected boxes of each image."""
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_coco([own for own, _ in pairs], names), _coco([own for _, own in pairs], names), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    tally, per_class = Tally(), len(evaluation.params.areaRng) * len(pairs)
    for row in range(len(names)):
        numbers = row + len(names) * np.arange(_IOUS)  # of the class at all IoUs
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
        dict(zip(_MEASURES, np.where(evaluation.stats < 0, math.nan, evaluation.stats).tolist(), strict=True)),
        matches,
        matches.scores[:boxes][order],
        matches.correct[:boxes][order],
        occurrences.detections[:boxes][order],
        np.bincount(occurrences.targets[occurrences.target_rows < at_50.sum()], minlength=len(pairs)),
    )


def _coco(images: Sequence[list[ScoredBox]], names: Sequence[str]) -> Any:
    """As pycocotools' COCO. Ids count from 1, as it takes a match with annotation 0 for none."""
    from pycocotools.coco import COCO

    numbers = {name: number for number, name in enumerate(names, 1)}
    annotations = [
        {
            **{"image_id": image, "category_id": numbers[box.name], "bbox": [*box.xywh], "iscrowd": box.crowd},
            "score": 1.0 if box.score is None else box.score,
            "area": box.xywh[2] * box.xywh[3] if box.area is None else box.area,
        }
        for image, boxes in enumerate(images, 1)
        for box in boxes
        if box.name in numbers
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
    """COCO's box AP and AR, and precision and recall at a score (None: that of the run, or else of `sgpipe label`).

    detected: a run or a COCO results file. truth: a run, an import or a COCO instances file. Crowds of the ground truth
    are ignored, as COCO does: boxes inside them are neither correct nor wrong.

    Raises UserError: a file is missing, damaged, of another form, or has values that would falsify the result; no image
    or no class in common; nothing to detect.
    """
    level = own_threshold(detected) if threshold is None else check_share("threshold", threshold)
    target = _shard_boxes(truth) if is_run(truth) else _coco_instances(truth)
    found = _shard_boxes(detected) if is_run(detected) else _coco_results(detected, target)
    compared = _compared_images(found, target)
    pairs = [
        (target.images[name][1], found.resized(own, target.images[name][0]) if own else [])
        for name, own in compared.items()
    ]
    known = tuple(sorted({box.name for own, _ in pairs for box in own}))
    seen = Counter(box.name for _, own in pairs for box in own)
    if not known:
        raise UserError(f"{truth} has no boxes in the images that {detected} has")
    if seen and not seen.keys() & {*known}:
        both = f"one has {_listed(sorted(seen))}, the other {_listed(known)}"
        raise UserError(f"{detected} and {truth} have no class in common: {both}; classes are matched by name")
    scores = _match(pairs, known)
    best = scores.best()
    precision, recall, _ = scores.at(best)
    there = {"threshold of best F1": best, "precision there": precision, "recall there": recall}
    counts = {
        **{"images": len(compared), "images failed": found.failed, "images repeated": found.repeated},
        "images without ground truth": len(found.images) - sum(own is not None for own in compared.values()),
        "ground truth images not in run": len(target.images) - len(compared),
        **{"boxes": seen.total(), "ground truth boxes": int(scores.targets.sum())},
        "ground truth crowds": sum(box.crowd for own, _ in pairs for box in own),
    }
    images = [f"{name.dataset} {name.image_id} {name.base_name}" for name in compared]
    return EvaluationResult(
        "Box quality (COCO)",
        {"pred": str(detected), "truth": str(truth), "threshold": level},
        {**scores.summary(level), **there},
        scores.per_class,
        _notes(counts, seen, known, [box.score for _, own in pairs for box in own]),
        counts=counts,
        curves={name: class_curve(scores.matches, scores.classes(iou)) for name, iou in _CURVES.items()},
        resampling=Resampling(images, lambda counts: scores.summary(level, counts)),
    )


def _compared_images(found: BoxSet, target: BoxSet) -> dict[ImageName, ImageName | None]:
    """Return the images of the ground truth to compare, and which of those found each is."""
    # As pycocotools, by whose order of images boxes of equal scores count.
    numbers = {name: int(name.image_id) if name.image_id.isdecimal() else math.inf for name in target.images}
    names = sorted(target.images, key=lambda name: (numbers[name], name.image_id))
    finder = image_finder(names)
    if not any(boxes for _, boxes in found.images.values()):
        raise UserError(f"{found.path} has no boxes")
    own = {names[place]: name for name in found.images if (place := finder(name)) != NO_IMAGE}
    if not own:
        both = f"one has {next(iter(found.images)).base_name!r}, the other {names[0].base_name!r}"
        raise UserError(f"{found.path} and {target.path} have no image in common: {both}")
    return {name: own.get(name) for name in names if name in own or not found.lists_images}


def own_threshold(detected: Location) -> float:
    """Return the score above which the run kept boxes; else that of `sgpipe label`. Raises UserError: no such run."""
    made = Manifest.load(detected).run.get("identity", {}) if is_run(detected) else {}
    return float((made.get("detect") or {}).get("threshold", DetectConfig().threshold))


def _notes(
    counts: Mapping[str, int], seen: Counter[str], known: Sequence[str], scores: Sequence[float | None]
) -> list[str]:
    """seen: boxes by class. known: the classes of the ground truth. scores: of all boxes."""
    notes = [
        f"compared {count(counts['boxes'], 'box', 'boxes')} in {count(counts['images'], 'image')} with "
        f"{counts['ground truth boxes']:,} of the ground truth; crowds left out: {counts['ground truth crowds']:,}"
    ]
    notes += count_notes(counts)
    if others := sorted(seen.keys() - known):
        boxes = count(sum(seen[name] for name in others), "box", "boxes")
        notes.append(f"left out {boxes} of classes without ground truth here: {_listed(others)}")
    if missed := [name for name in known if name not in seen]:
        notes.append(f"nothing was detected of {_listed(missed)}; classes are matched by name")
    given = [score for score in scores if score is not None]
    if len(given) < len(scores) or not given:
        notes.append("the boxes have no scores, so AP has one step; runs that detect boxes keep their scores")
    elif min(given) >= 0.01:
        hint = "runs with --set detect.threshold=0 keep them"
        notes.append(f"the lowest score is {min(given):.3f}: AP counts boxes below it as missed; {hint}")
    return notes
