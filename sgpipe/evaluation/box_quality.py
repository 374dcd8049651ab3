"""COCO's box AP of detected boxes, by pycocotools, and their precision and recall at a score.

Boxes come from shards and COCO files. Classes are matched by name, images by id or name.
"""

import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import coco_point
from rlip_model.evaluation.scores import Tally
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
    rows = defaultdict[str, list[Any]](list)
    for key, item in JsonStream(path):
        try:
            if key == "images":
                name = ImageName("coco", _id(item, "id"), image_base_name(fields.text(item, "file_name")))
                images.setdefault(name.image_id, (name, fields.size(item)))
            elif key == "categories":
                found.classes[fields.integer(item, "id")] = fields.text(item, "name")
            elif key == "annotations":
                category, box = fields.integer(item, "category_id"), fields.numbers(fields.required(item, "bbox"), 4)
                crowd, area = bool(item.get("iscrowd")), float(item.get("area", box[2] * box[3]))
                rows[_id(item, "image_id")].append((category, box, None, crowd, area))
        except (FieldError, TypeError, ValueError) as error:
            raise UserError(f"{path}: an item of {key!r}: {error}") from None
    if not (images and found.classes):
        raise UserError(f"{path} has no 'images' and 'categories': expected a run, an import or a COCO instances file")
    return _filled(found, images, rows, "of an annotation is not in its images")


def _coco_results(path: Location, truth: BoxSet) -> BoxSet:
    """Return the boxes of a results file, which has the class and image ids of the ground truth."""
    rows = defaultdict[str, list[Any]](list)
    for _, item in JsonStream(path):
        try:
            category, box = fields.integer(item, "category_id"), fields.numbers(fields.required(item, "bbox"), 4)
            rows[_id(item, "image_id")].append((category, box, *fields.numbers([item.get("score")], 1)))
        except FieldError as error:
            raise UserError(f"{path}: {error}; {_FORMS}") from None
    images = {name.image_id: (name, (0, 0)) for name in truth.images if name.image_id in rows}
    unknown = "is not in the ground truth; pass --truth of the images of the results"
    return _filled(BoxSet(path, truth.classes, lists_images=False), images, rows, unknown)


def _filled(
    found: BoxSet, images: Mapping[str, tuple[ImageName, tuple[int, int]]], rows: Mapping[str, list[Any]], unknown: str
) -> BoxSet:
    """Add images by id with their `rows`: class id, box, then as `ScoredBox`. `unknown`: the message for other ids."""
    if others := rows.keys() - images.keys():
        raise UserError(f"{found.path}: image_id {min(others)} {unknown}")
    if classes := {category for own in rows.values() for category, *_ in own} - found.classes.keys():
        known = _listed(found.classes.values())
        raise UserError(f"{found.path}: category_id {min(classes)} is not a class of the ground truth; it has {known}")
    for number, (name, size) in images.items():
        own = (ScoredBox(box, found.classes[category], *rest) for category, box, *rest in rows.get(number, ()))
        found.add(name, size, own)
    return found


def _id(item: Any, key: str) -> str:
    return fields.identifier(fields.required(item, key)) or ""


def _listed(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(map(repr, first[:8])) + (" …" if len(first) > 8 else "")


_MEASURES = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large"),
)  # in the order of `COCOeval.stats`
_IOUS = 10  # 0.50, 0.55, … 0.95
_IOU_50, _IOU_75 = 0, 5
_CURVES = ((0.5, _IOU_50), (0.75, _IOU_75))


class BoxScores:
    """COCO's measures, by pycocotools, and its matches of the best 100 boxes of an image and class.

    matches: of class IoU * classes + class. scores, correct, images: `[boxes]`, at an IoU of 0.5 by falling score.
    targets: `[images]`, boxes to detect.
    """

    def __init__(self, pairs: Sequence[tuple[list[ScoredBox], list[ScoredBox]]], names: tuple[str, ...]) -> None:
        """pairs: ground truth and detected boxes of each image."""
        from pycocotools.cocoeval import COCOeval

        with redirect_stdout(io.StringIO()):  # it prints its progress
            evaluation = COCOeval(*(_coco(boxes, names) for boxes in zip(*pairs, strict=True)), "bbox")
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
        stats = np.where(evaluation.stats < 0, math.nan, evaluation.stats)
        self.names, self.measures = names, dict(zip(_MEASURES, stats.tolist(), strict=True))
        self.matches = tally.class_scores(coco_point)
        occurrences, at_50 = self.matches.occurrences, self.matches.classes < len(names)
        assert occurrences is not None
        order = np.argsort(-self.matches.scores[: int(self.matches.detections[at_50].sum())], kind="stable")
        self.scores, self.correct = self.matches.scores[order], self.matches.correct[order]
        self.images = occurrences.detections[order]
        self.targets = np.bincount(occurrences.targets[occurrences.target_rows < at_50.sum()], minlength=len(pairs))

    def summary(self, threshold: float, counts: Array | None = None) -> dict[str, float]:
        """Return the measures; with `counts`, of a dataset in which each image occurs `counts[image]` times."""
        measures = self.measures
        if counts is not None:
            own = self.matches.resampled(counts)
            averages = own.mean(None), own.mean(self.classes(_IOU_50)), own.mean(self.classes(_IOU_75))
            measures = dict(zip(_MEASURES, averages, strict=False))
        _, precision, recall, f1 = self.at(threshold, counts)
        at = {"precision": precision, "recall": recall, "F1": f1}
        best_f1 = self.at(None, counts)[3]
        return {**measures, **{f"{name} at {threshold:g}": each for name, each in at.items()}, "best F1": best_f1}

    def classes(self, iou: int) -> Array:
        return np.arange(iou * len(self.names), (iou + 1) * len(self.names))

    def at(self, threshold: float | None, counts: Array | None = None) -> tuple[float, float, float, float]:
        """Return a score, and precision, recall and F1 at an IoU of 0.5 of boxes with at least it; NaN over nothing.

        threshold: the score; None: that with the highest F1, of equal ones the highest.
        """
        counts = np.ones(len(self.targets), dtype=int) if counts is None else counts
        weights, targets = counts[self.images], int((counts * self.targets).sum())
        predicted, matched = (np.append(0, np.cumsum(each)) for each in (weights, weights * self.correct))
        f1 = 2 * matched / np.maximum(predicted + targets, 1)
        if threshold is None:
            last = np.append(self.scores[1:] != self.scores[:-1], True)[: len(self.scores)]  # of equal scores
            place = 1 + int(np.where(last, f1[1:], -1).argmax()) if len(last) else 0
            threshold = float(self.scores[place - 1]) if place else math.nan
        else:  # shards have float32, other files float64
            place = int((self.scores >= min(threshold, float(np.float32(threshold)))).sum())
        precision = matched[place] / predicted[place] if predicted[place] else math.nan
        recall = matched[place] / targets if targets else math.nan
        return threshold, float(precision), float(recall), float(f1[place])

    @property
    def per_class(self) -> Rows:
        own = self.matches
        average, recall = (values.reshape(_IOUS, -1) for values in (own.average_precision, own.max_recall))
        columns = {
            "class": np.array(self.names)[own.classes[: average.shape[1]]],
            **{"ground_truth": own.targets, "detections": own.detections, "hits": own.true_positives},  # at IoU 0.5
            **{"AP": average.mean(0), "AP50": average[_IOU_50], "AP75": average[_IOU_75], "AR@100": recall.mean(0)},
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=False)
        return [dict(zip(columns, values, strict=True)) for values in rows]


def _coco(images: Sequence[list[ScoredBox]], names: Sequence[str]) -> Any:
    """As pycocotools' COCO. Ids count from 1, as it takes a match with annotation 0 for none."""
    from pycocotools.coco import COCO

    numbers = {name: number for number, name in enumerate(names, 1)}
    boxes = [(image, box) for image, own in enumerate(images, 1) for box in own if box.name in numbers]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [
            {
                **{"id": number, "image_id": image, "category_id": numbers[box.name]},
                **{"bbox": [*box.xywh], "area": box.xywh[2] * box.xywh[3] if box.area is None else box.area},
                **{"iscrowd": box.crowd, "score": 1.0 if box.score is None else box.score},
            }
            for number, (image, box) in enumerate(boxes, 1)
        ],
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
    if not any(boxes for _, boxes in found.images.values()):
        raise UserError(f"{detected} has no boxes")
    # Sorted as by pycocotools, by whose order of images boxes of equal scores count.
    numbers = {name: int(name.image_id) if name.image_id.isdecimal() else math.inf for name in target.images}
    names = sorted(target.images, key=lambda name: (numbers[name], name.image_id))
    finder = image_finder(names)
    own = {names[place]: name for name in found.images if (place := finder(name)) != NO_IMAGE}
    if not own:
        both = f"one has {next(iter(found.images)).base_name!r}, the other {names[0].base_name!r}"
        raise UserError(f"{detected} and {truth} have no image in common: {both}")
    compared = [name for name in names if name in own or not found.lists_images]
    images = ((target.images[name], own.get(name)) for name in compared)
    pairs = [(boxes, found.resized(there, size) if there else []) for (size, boxes), there in images]
    known = tuple(sorted({box.name for boxes, _ in pairs for box in boxes}))
    seen = Counter(box.name for _, boxes in pairs for box in boxes)
    if not known:
        raise UserError(f"{truth} has no boxes in the images that {detected} has")
    if seen and not seen.keys() & {*known}:
        both = f"one has {_listed(sorted(seen))}, the other {_listed(known)}"
        raise UserError(f"{detected} and {truth} have no class in common: {both}; classes are matched by name")
    scores = BoxScores(pairs, known)
    best, precision, recall, _ = scores.at(None)
    there = {"threshold of best F1": best, "precision there": precision, "recall there": recall}
    counts = {
        **{"images": len(compared), "images failed": found.failed, "images repeated": found.repeated},
        "images without ground truth": len(found.images) - len(own),
        "ground truth images not in run": len(target.images) - len(compared),
        **{"boxes": seen.total(), "ground truth boxes": int(scores.targets.sum())},
        "ground truth crowds": sum(box.crowd for boxes, _ in pairs for box in boxes),
    }
    named = [f"{name.dataset} {name.image_id} {name.base_name}" for name in compared]
    return EvaluationResult(
        "Box quality (COCO)",
        {"pred": str(detected), "truth": str(truth), "threshold": level},
        {**scores.summary(level), **there},
        scores.per_class,
        _notes(counts, seen, known, [box.score for _, boxes in pairs for box in boxes]),
        counts=counts,
        curves={f"IoU {iou}": class_curve(scores.matches, scores.classes(at)) for iou, at in _CURVES},
        resampling=Resampling(named, lambda counts: scores.summary(level, counts)),
    )


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
