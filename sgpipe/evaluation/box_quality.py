"""COCO's box AP of detected boxes, by pycocotools, and their precision and recall at a score.

Boxes come from shards, COCO files, and predictions of relations. Classes are matched by name, images by id or name.
"""

from __future__ import annotations

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
from sgpipe.evaluation.graphs import NO_IMAGE, ImageFinder, ImageName, image_base_name
from sgpipe.evaluation.inputs import read_triplets
from sgpipe.evaluation.label_quality import NOTES
from sgpipe.evaluation.result import RECALLS, EvaluationResult, Resampling, count_notes
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.recipe import DetectConfig
from sgpipe.sources import fields
from sgpipe.sources.fields import FieldError
from sgpipe.sources.hoi import HICO, OPEN_IMAGES
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from sgpipe.utils.console import count

_RESULT = {"image_id", "category_id", "bbox", "score"}
_FORMS = (
    "expected the folder of a run, a COCO results file (a list of 'image_id', 'category_id', 'bbox' and 'score'), or "
    "predictions in the formats of `sgpipe predict --form hico`, `--form openimages` or .parquet"
)


class ScoredBox(NamedTuple):
    """A box: x, y, width and height in pixels. score: None is certain. area: by which COCO tells small from large."""

    xywh: Sequence[float]
    name: str
    score: float | None = None
    crowd: bool = False
    area: float | None = None


@dataclass
class BoxSet:
    """The boxes of many images.

    sizes: width and height of each image, 0 if not known. classes: names by COCO's numbers. lists_images: whether
    images without boxes are in it; otherwise it is not known which were looked at. failed: images that were not usable.
    """

    sizes: dict[ImageName, tuple[int, int]] = field(default_factory=dict)
    boxes: dict[ImageName, list[ScoredBox]] = field(default_factory=dict)
    classes: dict[int, str] = field(default_factory=dict)
    lists_images: bool = True
    failed: int = 0
    repeated: int = 0

    def add(self, name: ImageName, size: tuple[int, int], boxes: Iterable[ScoredBox]) -> None:
        """Add an image; of an image that occurs twice, the first counts."""
        self.repeated += name in self.sizes
        if name not in self.sizes:
            self.sizes[name] = size
            self.boxes[name] = [box._replace(name=" ".join(box.name.lower().split())) for box in boxes]

    def resized(self, name: ImageName, size: tuple[int, int]) -> list[ScoredBox]:
        """Return the boxes in pixels of an image of this size, which may differ between datasets."""
        own, boxes = self.sizes.get(name, size), self.boxes.get(name, [])
        if own == size or not all((*own, *size)):
            return boxes
        factors = (size[0] / own[0], size[1] / own[1]) * 2
        return [
            box._replace(xywh=[side * factor for side, factor in zip(box.xywh, factors, strict=True)], area=None)
            for box in boxes
        ]


def _read_detected(path: Location, truth: BoxSet) -> BoxSet:
    """Return the boxes to evaluate; COCO results have the class numbers of the ground truth."""
    if is_run(path):
        return _shard_boxes(path)
    if not (isinstance(path, Path) and path.suffix == ".parquet"):
        first = next((item for _, item in JsonStream(path)), None)
        if isinstance(first, dict) and first.keys() >= _RESULT:
            return _coco_results(path, truth)
        if not (isinstance(first, dict) and "predictions" in first):
            raise UserError(f"{path} has no boxes to evaluate: {_FORMS}")
    return _ends_of_relations(path)


def _checked(path: Location, found: BoxSet) -> BoxSet:
    """Raises UserError: a value would falsify the result."""
    for name, boxes in found.boxes.items():
        for box in boxes:
            sound = all(map(math.isfinite, box.xywh)) and min(box.xywh[2:]) >= 0
            if not (sound and (box.score is None or 0 <= box.score <= 1 + 1e-6)):  # a softmax is rounded
                place = f"{path}: image {name.image_id or name.base_name}"
                raise UserError(
                    f"{place}: box {[round(side, 3) for side in box.xywh]} with score {box.score}; expected x, y, "
                    "width and height in pixels, and a score from 0 to 1"
                )
    return found


def is_run(path: Location) -> bool:
    """Return whether there are shards: a store is not asked, but the names of files say what they are."""
    return path.is_dir() if isinstance(path, Path) else not path.name.endswith((".json", ".gz", ".parquet"))


def _shard_boxes(root: Location) -> BoxSet:
    found = BoxSet()
    for record in iter_records(root):
        if not record.ok:
            found.failed += 1
            continue
        objects = [box for box in record.objects if not box.is_nothing]
        found.classes.update((box.category_id, box.category) for box in objects)
        name = ImageName(record.dataset, record.image_id, image_base_name(record.file_name))
        boxes = (ScoredBox(box.bbox, box.category, box.score, box.iscrowd) for box in objects)
        found.add(name, (record.width, record.height), boxes)
    if not found.sizes:
        raise UserError(f"{root} contains no images with boxes; is the run finished?")
    return found


def _coco_instances(path: Location) -> BoxSet:
    found = BoxSet()
    images: dict[str, tuple[ImageName, tuple[int, int]]] = {}
    rows: dict[str, list[Any]] = {}
    for key, item in JsonStream(path):
        try:
            if key == "images":
                name = ImageName("coco", _id(item, "id"), image_base_name(fields.text(item, "file_name")))
                size = fields.side(item.get("width")), fields.side(item.get("height"))
                images.setdefault(name.image_id, (name, size))
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
        own = rows.get(number, [])
        found.add(name, size, (ScoredBox(box, _name(path, found.classes, each), *rest) for box, each, *rest in own))
    return found


def _id(item: Any, key: str) -> str:
    return fields.identifier(fields.required(item, key)) or ""


def _name(path: Location, names: Mapping[int, str], number: int) -> str:
    if number not in names:
        classes = listed(names.values())
        raise UserError(f"{path}: category_id {number} is not a class of the ground truth; it has {classes}")
    return names[number]


def listed(names: Iterable[str]) -> str:
    """Return the first names, for messages."""
    first = list(names)
    return ", ".join(map(repr, first[:8])) + (" …" if len(first) > 8 else "")


def _coco_results(path: Location, truth: BoxSet) -> BoxSet:
    rows: dict[str, list[ScoredBox]] = {}
    for _, item in JsonStream(path):
        try:
            name = _name(path, truth.classes, fields.integer(item, "category_id"))
            box, [score] = fields.numbers(fields.required(item, "bbox"), 4), fields.numbers([item.get("score")], 1)
            rows.setdefault(_id(item, "image_id"), []).append(ScoredBox(box, name, score))
        except FieldError as error:
            raise UserError(f"{path}: {error}; {_FORMS}") from None
    by_number = {name.image_id: name for name in truth.sizes}
    if unknown := rows.keys() - by_number.keys():
        raise UserError(
            f"{path}: image_id {min(unknown)} is not in the ground truth; pass --truth of the images of the results"
        )
    found = BoxSet(classes=truth.classes, lists_images=False)
    for number, own in rows.items():
        found.add(by_number[number], (0, 0), own)
    return found


def _ends_of_relations(path: Location) -> BoxSet:
    """Read subjects and objects of predicted relations; those of one class suppress each other, as a detector's do."""
    import torch
    from torchvision.ops import batched_nms

    found, forms = BoxSet(), {"hoi_prediction": HICO, "rel_prediction": OPEN_IMAGES}
    for name, triplets in read_triplets(path, forms, [], predicates=False):
        if triplets is None:
            found.failed += 1
            continue
        corners = np.concatenate((triplets.subject_box, triplets.object_box)).astype(float)
        numbers, scores = np.concatenate((triplets.subject, triplets.object)), np.tile(triplets.score.astype(float), 2)
        tensors = (torch.from_numpy(each) for each in (corners, scores, numbers))
        kept = batched_nms(*tensors, DetectConfig().overlap).numpy()
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
        rows = zip(boxes[kept].tolist(), numbers[kept], scores[kept].tolist(), strict=True)
        own = (ScoredBox(box, triplets.objects[number], score) for box, number, score in rows)
        found.add(ImageName("", "", image_base_name(name)), (0, 0), own)
    return found


_MEASURES = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large"),
)  # in the order of `COCOeval.stats`
_PER_CLASS = ("class", "ground_truth", "detections", "hits", "AP", "AP50", "AP75", "AR@100")
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

    measures: COCO's twelve. precision `[ious, recalls, classes]` and recall `[ious, classes]`, -1 for classes without
    ground truth. matches: the best 100 boxes of an image and class, whose class numbers are IoU * classes + class.
    scores, correct, images: `[boxes]`, at an IoU of 0.5 by falling score. targets: `[images]`, boxes to detect.
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
        of_iou = (np.arange(iou * classes, (iou + 1) * classes) for iou in (_IOU_50, _IOU_75))
        return dict(zip(_MEASURES[:3], (own.mean(None), *map(own.mean, of_iou)), strict=True))

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
        columns = (self.matches.classes, self.matches.targets, self.matches.detections, self.matches.true_positives)
        rows = []
        for number, *own in zip(*(each[at_50].tolist() for each in columns), strict=True):
            precision = self.precision[:, :, number].mean(1)
            average = [float(each) for each in (precision.mean(), precision[_IOU_50], precision[_IOU_75])]
            values = (self.names[number], *own, *average, float(self.recall[:, number].mean()))
            rows.append(dict(zip(_PER_CLASS, values, strict=True)))
        return rows

    def curve(self, iou: int) -> Array:
        """Return the precision `[101]` at `RECALLS`, the mean over the classes that the ground truth has."""
        known = self.precision[iou][:, self.recall[iou] >= 0]
        return known.mean(1) if known.size else np.zeros(len(RECALLS))


class BoxQuality(NamedTuple):
    """What `compare_boxes` finds: the scores of the `images`, by name; counts, also of what could not be compared."""

    scores: BoxScores
    images: list[str]
    counts: dict[str, int]
    notes: list[str]


def compare_boxes(detected: Location, truth: Location) -> BoxQuality:
    """Compare the boxes of a run, a COCO results file or predictions with a run, an import or a COCO instances file.

    Crowds of the ground truth are ignored, as COCO does: boxes inside them are neither correct nor wrong.

    Raises UserError: a file is missing, damaged, of another form, or has values that would falsify the result; no image
    or no class in common; nothing to detect.
    """
    target = _checked(truth, _shard_boxes(truth) if is_run(truth) else _coco_instances(truth))
    found = _checked(detected, _read_detected(detected, target))
    # As pycocotools, by whose order of images boxes of equal scores count.
    numbers = {name: int(name.image_id) if name.image_id.isdecimal() else math.inf for name in target.sizes}
    names = sorted(target.sizes, key=lambda name: (numbers[name], name.image_id))
    finder = ImageFinder(names)
    if not any(found.boxes.values()):
        raise UserError(f"{detected} has no boxes")
    places = {names[place]: name for name in found.sizes if (place := finder(name)) != NO_IMAGE}
    if not places:
        raise UserError(
            f"{detected} and {truth} have no image in common: one has {next(iter(found.sizes)).base_name!r}, the "
            f"other {names[0].base_name!r}"
        )
    compared = [name for name in names if name in places or not found.lists_images]
    pairs = [
        (target.boxes[name], found.resized(places[name], target.sizes[name]) if name in places else [])
        for name in compared
    ]
    known = tuple(sorted({box.name for own, _ in pairs for box in own}))
    detected_classes = Counter(box.name for _, own in pairs for box in own)
    if not known:
        raise UserError(f"{truth} has no boxes in the images that {detected} has")
    if detected_classes and not detected_classes.keys() & {*known}:
        raise UserError(
            f"{detected} and {truth} have no class in common: one has {listed(sorted(detected_classes))}, the other "
            f"{listed(known)}; classes are matched by name"
        )
    scores = _scores(pairs, known)
    counts = {
        **{"images": len(compared), "images failed": found.failed, "images repeated": found.repeated},
        "images without ground truth": len(found.sizes) - len(places),
        "ground truth images not in run": len(names) - len(compared),
        **{"boxes": detected_classes.total(), "ground truth boxes": int(scores.targets.sum())},
        "ground truth crowds": sum(box.crowd for own, _ in pairs for box in own),
    }
    scored = all(box.score is not None for own in found.boxes.values() for box in own)
    lowest = min((box.score for _, own in pairs for box in own if box.score is not None), default=math.nan)
    images = [f"{name.dataset} {name.image_id} {name.base_name}" for name in compared]
    return BoxQuality(scores, images, counts, _notes(counts, detected_classes, known, lowest if scored else math.nan))


def _scores(pairs: Sequence[tuple[list[ScoredBox], list[ScoredBox]]], names: tuple[str, ...]) -> BoxScores:
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

    detected, truth: as for `compare_boxes`. Raises UserError: as `compare_boxes`.
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
        {"pred": str(detected), "truth": str(truth), "threshold": level},
        {**summary(), **there},
        scores.per_class,
        quality.notes,
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


def _notes(counts: Mapping[str, int], detected: Counter[str], known: Sequence[str], lowest: float) -> list[str]:
    """`detected`: boxes by class; `known`: the classes of the ground truth; `lowest`: the score, NaN without any."""
    notes = [
        f"compared {count(counts['boxes'], 'box', 'boxes')} in {count(counts['images'], 'image')} with "
        f"{counts['ground truth boxes']:,} of the ground truth; crowds left out: {counts['ground truth crowds']:,}"
    ]
    notes += count_notes(counts, NOTES)
    if others := sorted(detected.keys() - known):
        boxes = count(sum(detected[name] for name in others), "box", "boxes")
        notes.append(f"left out {boxes} of classes without ground truth here: {listed(others)}")
    if missed := [name for name in known if name not in detected]:
        notes.append(f"nothing was detected of {listed(missed)}; classes are matched by name")
    if np.isnan(lowest):
        notes.append("the boxes have no scores, so AP has one step; runs that detect boxes keep their scores")
    elif lowest >= 0.01:
        notes.append(
            f"the lowest score is {lowest:.3f}: AP counts boxes below it as missed; runs with "
            "--set detect.threshold=0 keep them"
        )
    return notes
