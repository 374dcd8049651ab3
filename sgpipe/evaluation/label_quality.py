"""Label quality: the relations of a run compared with ground truth for the same images.

A relation is a true positive if the ground truth has it: objects of the same class (or a synonym of
it there) and box, and a predicate whose verb has the same lemma. Targets are the relations that
recall counts: those of `GroundTruth.required`, by default all. Average precision ignores a true
positive that is not a target ("on", for a man riding a horse). It needs everything that was scored:
make the run with `tag.threshold=0`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.precision import monotone
from rlip_model.evaluation.scores import mean
from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.evaluation import graphs
from sgpipe.evaluation.graphs import (
    NO_IMAGE,
    NO_MATCH,
    Graphs,
    GroundTruthIndex,
    ImageName,
    Source,
    Vocabulary,
)
from sgpipe.evaluation.result import (
    EvaluationResult,
    Resampling,
    count_notes,
    mean_curve,
    precision_at,
)
from sgpipe.files.locations import Location
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.sources.vocabulary import PredicateSynonyms
from sgpipe.stages.matching import normalise_predicate
from sgpipe.storage.run_folder import GroundTruth, ground_truth_of
from sgpipe.utils.console import count, single_line

FrequencyBand = Literal["head", "body", "tail"]
BANDS: tuple[FrequencyBand, ...] = get_args(FrequencyBand)
# the most frequent predicates with 80% of all targets are the head, up to 95% the body
_BAND_ENDS = (0.8, 0.95)
LABELS = "labels"
ALL_PAIRS = "all matching pairs"
_SOURCES: dict[str, Source] = {LABELS: "relations", ALL_PAIRS: "candidates"}


@dataclass(frozen=True)
class Relations:
    """Predicted relations of images with ground truth, all arrays `[relations]`.

    matched: those that are targets. image: numbers in the ground truth. annotated: without
    confidence, which is 1 then.
    """

    predicate: Array
    confidence: Array
    true_positive: Array
    matched: Array
    image: Array
    annotated: Array

    def __len__(self) -> int:
        return len(self.predicate)

    def __getitem__(self, rows: Array | slice) -> Relations:
        return Relations(*(column[rows] for column in vars(self).values()))

    def above(self, threshold: float) -> Relations:
        """Return those with at least this confidence, compared in float32, the type of shards."""
        return self[self.confidence >= np.float32(threshold)]


@dataclass(frozen=True)
class Quality:
    """Counts of relations, and the measures that follow; a ratio over nothing is NaN. matched:
    targets predicted.
    """

    predicted: int
    true_positives: int
    matched: int
    targets: int

    @classmethod
    def of(cls, relations: Relations, targets: int) -> Quality:
        return cls(
            len(relations),
            int(relations.true_positive.sum()),
            int(relations.matched.sum()),
            targets,
        )

    @property
    def precision(self) -> float:
        return self.true_positives / self.predicted if self.predicted else math.nan

    @property
    def recall(self) -> float:
        return self.matched / self.targets if self.targets else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if either is 0."""
        precision = self.precision
        recall = self.recall
        total = precision + recall
        return 2 * precision * recall / total if total else 0.0


def precision_recall(relations: Relations, targets: int) -> tuple[Array, Array]:
    """Recall and monotone precision at each distinct confidence, in falling order; recall is 0
    without targets.

    True positives that are not targets are neither mistakes nor matches: they are left out.
    """
    ranked = relations[relations.matched | ~relations.true_positive]
    order = np.argsort(-ranked.confidence, kind="stable")
    confidence = ranked.confidence[order]
    matched = np.cumsum(ranked.matched[order])
    is_last = np.append(confidence[1:] != confidence[:-1], True)[: len(order)]
    steps = np.flatnonzero(is_last)
    return matched[steps] / max(targets, 1), monotone(matched[steps] / (steps + 1))


def area(recall: Array, precision: Array, targets: int) -> float:
    """Average precision: the area under monotone precision over recall (PASCAL VOC 2010); NaN
    without targets.
    """
    return float((precision * np.diff(recall, prepend=0.0)).sum()) if targets else math.nan


@dataclass(frozen=True)
class PredicateQuality:
    """One predicate at the threshold; band is None without targets. curve: recall and monotone
    precision `[points]`.
    """

    predicate: str
    band: FrequencyBand | None
    quality: Quality
    average_precision: float
    curve: tuple[Array, Array]


@dataclass(frozen=True)
class LabelQuality:
    """How good the relations of a run are.

    counts: also of what could not be compared. names: of predicates. images: of the ground truth;
    compared: numbers of these.
    """

    threshold: float
    source: Source
    counts: dict[str, int]
    relations: Relations
    target_predicates: Array
    target_images: Array
    names: tuple[str, ...]
    images: Sequence[ImageName]
    compared: Array

    def resampled(self, counts: Array) -> LabelQuality:
        """Return the quality in a dataset in which each of the `compared` images occurs
        `counts[image]` times.
        """
        occurrences = np.zeros(len(self.images), dtype=int)
        occurrences[self.compared] = counts
        rows = np.repeat(np.arange(len(self.relations)), occurrences[self.relations.image])
        times = occurrences[self.target_images]
        return replace(
            self,
            relations=self.relations[rows],
            target_predicates=np.repeat(self.target_predicates, times),
            target_images=np.repeat(self.target_images, times),
        )

    def at(self, threshold: float) -> Quality:
        return Quality.of(self.relations.above(threshold), len(self.target_images))

    @property
    def at_threshold(self) -> Quality:
        return self.at(self.threshold)

    @property
    def average_precision(self) -> float:
        targets = len(self.target_images)
        return area(*precision_recall(self.relations, targets), targets)

    @property
    def mean_average_precision(self) -> float:
        return mean(np.array([row.average_precision for row in self.predicates if row.band]))

    @cached_property
    def predicates(self) -> tuple[PredicateQuality, ...]:
        """Every predicate that is predicted or has targets, that with the most targets first."""
        targets = np.bincount(self.target_predicates, minlength=len(self.names))
        order = np.argsort(-targets, kind="stable")
        # its first target decides the band of a predicate
        before = np.cumsum(targets[order]) - targets[order]
        places = (before[:, None] >= np.array(_BAND_ENDS) * targets.sum()).sum(1)
        bands = {}
        for number, place in zip(order, places, strict=True):
            if targets[number]:
                bands[number] = BANDS[place]
        by_predicate = self.relations[np.argsort(self.relations.predicate, kind="stable")]
        ends = np.searchsorted(by_predicate.predicate, np.arange(len(self.names) + 1))
        rows = []
        for number in np.lexsort((-np.diff(ends), -targets)).tolist():
            relations = by_predicate[ends[number] : ends[number + 1]]
            count = int(targets[number])
            if count or len(relations):
                curve = precision_recall(relations, count)
                row = PredicateQuality(
                    predicate=self.names[number],
                    band=bands.get(number),
                    quality=Quality.of(relations.above(self.threshold), count),
                    average_precision=area(*curve, count),
                    curve=curve,
                )
                rows.append(row)
        return tuple(rows)


def label_quality(
    run: Location,
    ground_truth: GroundTruth,
    *,
    source: Source = "relations",
    threshold: float = 0.2,
    synonyms: PredicateSynonyms | None = None,
    iou: float = 0.5,
    calibration: Calibration | None = None,
) -> LabelQuality:
    """Compare the relations of a run with ground truth.

    Args:
        source, calibration: as for `iter_graphs`.
        synonyms: `{predicate: [other texts]}` that count as the same predicate.
        iou: from which two boxes are the same object.

    Raises:
        UserError: a folder is not a run or is damaged, they have no image in common, or a number is
            out of range.
    """
    if not 0 <= threshold <= 1 or not 0 < iou <= 1:
        raise UserError(
            f"threshold {threshold} and iou {iou}: expected numbers up to 1, iou above 0"
        )
    words = Vocabulary(normalise_predicate)
    predicates = graphs.predicate_vocabulary(synonyms)
    coco_ids = None
    if ground_truth.image_data is not None:
        coco_ids = graphs.read_coco_ids(ground_truth.image_data)
    truth = GroundTruthIndex(ground_truth.relations, words, predicates, coco_ids)
    targets = truth
    if ground_truth.required is not None:
        targets = GroundTruthIndex(ground_truth.required, words, predicates, coco_ids)
    classes = graphs.class_meanings(words, graphs.class_names(run))
    comparison = _Comparison(truth, targets, classes, iou)
    for shard in graphs.iter_graphs(run, words, predicates, source, calibration):
        comparison.add(shard)
    comparison.check(run, ground_truth.relations)

    counts = comparison.counts
    counts["ground truth images not in run"] = comparison.images_not_in_run()
    target_predicates, target_images = comparison.targets_of_compared_images()
    return LabelQuality(
        threshold,
        source,
        counts,
        comparison.relations(),
        target_predicates,
        target_images,
        tuple(predicates.names),
        truth.graphs.names,
        np.concatenate(comparison.compared),
    )


class _Comparison:
    """The relations of the shards of a run beside ground truth.

    Attributes:
        counts: of images, objects and relations.
        compared: of each shard, the ground truth's images that it has.
    """

    def __init__(
        self,
        truth: GroundTruthIndex,
        targets: GroundTruthIndex,
        classes: Callable[[int], list[int]],
        iou: float,
    ) -> None:
        self.counts = Counter[str]()
        self.compared: list[Array] = []
        self._truth = truth
        self._targets = targets
        self._classes = classes
        self._iou = iou
        self._seen = np.zeros(len(truth.graphs.names), dtype=bool)
        self._image_of_target = np.full(len(targets.graphs.names), NO_IMAGE)
        self._parts: list[Relations] = []
        self._example: ImageName | None = None  # an image of the run

    def add(self, shard: Graphs) -> None:
        """Match the objects of a shard, and tell which of its relations are true positives."""
        if len(shard.names):
            self._example = shard.names[0]
        images = _images_to_compare(shard, self._truth, self._seen, self.counts)
        is_compared = images != NO_IMAGE
        self.compared.append(images[is_compared])
        target_images = np.where(is_compared, self._targets.find(shard.names), NO_IMAGE)
        has_targets = target_images != NO_IMAGE
        self._image_of_target[target_images[has_targets]] = images[has_targets]
        matches = self._truth.match(shard, images, self._classes, self._iou)
        target_matches = matches
        if self._targets is not self._truth:
            target_matches = self._targets.match(shard, target_images, self._classes, self._iou)

        is_usable = images[shard.relation_image] != NO_IMAGE
        rows = _distinct(shard, np.flatnonzero(is_usable))
        subject = shard.subject[rows]
        object_ = shard.object[rows]
        predicate = shard.predicate[rows]
        is_true = self._truth.has(matches[subject], matches[object_], predicate)
        is_target = self._targets.has(target_matches[subject], target_matches[object_], predicate)
        relations = Relations(
            predicate,
            shard.confidence[rows],
            is_true | is_target,
            is_target,
            images[shard.relation_image[rows]],
            shard.annotated[rows],
        )
        self._parts.append(relations)
        self.counts["objects"] += int((images[shard.image] != NO_IMAGE).sum())
        self.counts["objects matched"] += int((matches != NO_MATCH).sum())
        self.counts["relations"] += len(rows)
        self.counts["relations not compared"] += int((~is_usable).sum())

    def check(self, run: Location, truth: Location) -> None:
        """Check that images could be compared.

        Raises:
            UserError: no image could be compared.
        """
        counts = self.counts
        if counts["images failed"] == counts["images"]:
            problem = "no images; is the run finished?"
            if self._parts:
                problem = "only failed images; `sgpipe stats` shows why they failed"
            raise UserError(f"{run} contains {problem}")
        if not counts["images compared"]:
            assert self._example is not None
            first = self._truth.graphs.names[0]
            raise UserError(
                f"{run} and {truth} have no image in common: one has"
                f" {self._example.base_name!r}, the other {first.base_name!r}; if they are COCO and"
                " Visual Genome, pass --image-data"
            )

    def images_not_in_run(self) -> int:
        return len({*self._truth.graphs.names}) - int(self._seen.sum())

    def relations(self) -> Relations:
        columns = []
        for field in fields(Relations):
            columns.append(np.concatenate([getattr(part, field.name) for part in self._parts]))
        return Relations(*columns)

    def targets_of_compared_images(self) -> tuple[Array, Array]:
        """Return the predicates and images of the targets of images that were compared."""
        graphs = self._targets.graphs
        statements = self._targets.statements
        images = self._image_of_target[graphs.relation_image[statements]]
        is_compared = images != NO_IMAGE
        return graphs.predicate[statements][is_compared], images[is_compared]


def _images_to_compare(
    shard: Graphs, truth: GroundTruthIndex, seen: Array, counts: Counter[str]
) -> Array:
    """`[images]` of the ground truth, or `NO_IMAGE` for those that cannot be compared; updates
    `seen` and `counts`.
    """
    images = truth.find(shard.names)
    known = images != NO_IMAGE
    first = np.zeros(len(images), dtype=bool)
    first[np.unique(images, return_index=True)[1]] = True
    usable = np.ones(len(images), dtype=bool)
    new = first & ~seen[images]
    for name, which in (("failed", shard.ok), ("without ground truth", known), ("repeated", new)):
        counts[f"images {name}"] += int((usable & ~which).sum())
        usable &= which
    seen[images[known]] = True
    counts["images"] += len(images)
    counts["images compared"] += int(usable.sum())
    return np.where(usable, images, NO_IMAGE)


def _distinct(shard: Graphs, rows: Array) -> Array:
    """Return the rows without repeated relations, of which the most confident remains."""
    keys = (shard.predicate[rows], shard.object[rows], shard.subject[rows])
    rows = rows[np.lexsort((-shard.confidence[rows], *keys))]
    statements = np.stack((shard.subject[rows], shard.object[rows], shard.predicate[rows]), axis=1)
    return rows[np.append(True, (statements[1:] != statements[:-1]).any(1))[: len(rows)]]


def label_report(result: LabelQuality, **settings: object) -> EvaluationResult:
    """Return the full report, with more `settings`."""
    levels = sorted({*(round(0.05 * step, 2) for step in range(20)), result.threshold})
    by_threshold = [{"threshold": f"{level:g}", **_row(result.at(level))} for level in levels]
    by_frequency = []
    curves = {}
    for band in BANDS:
        predicates = [predicate for predicate in result.predicates if predicate.band == band]
        by_frequency.append(_band_row(band, predicates))
        if predicates:
            name = f"{band} ({count(len(predicates), 'predicate')})"
            curves[name] = mean_curve(precision_at(*predicate.curve) for predicate in predicates)
    rows = []
    for predicate in result.predicates:
        row = {
            "predicate": predicate.predicate,
            "band": predicate.band or "no targets",
            **_row(predicate.quality),
            "average_precision": predicate.average_precision,
        }
        rows.append(row)
    images = []
    for number in result.compared:
        image = result.images[number]
        images.append(f"{image.dataset} {image.image_id}")
    return EvaluationResult(
        f"Label quality ({result.source})",
        {"source": result.source, "threshold": result.threshold, **settings},
        _summary(result),
        rows,
        _notes(result),
        {"by threshold": by_threshold, "by frequency": by_frequency},
        result.counts,
        curves,
        Resampling(images, lambda counts: _summary(result.resampled(counts))),
    )


def _band_row(band: FrequencyBand, predicates: Sequence[PredicateQuality]) -> dict[str, object]:
    """Return the counts of all predicates of a band, and their mean average precision."""
    qualities = [predicate.quality for predicate in predicates]
    total = Quality(
        predicted=sum(quality.predicted for quality in qualities),
        true_positives=sum(quality.true_positives for quality in qualities),
        matched=sum(quality.matched for quality in qualities),
        targets=sum(quality.targets for quality in qualities),
    )
    average = mean(np.array([predicate.average_precision for predicate in predicates]))
    return {"band": band, "predicates": len(predicates), **_row(total), "mean_AP": average}


def _summary(result: LabelQuality) -> dict[str, float]:
    at = result.at_threshold
    threshold = result.threshold
    return {
        f"precision at {threshold:g}": at.precision,
        f"recall at {threshold:g}": at.recall,
        f"F1 at {threshold:g}": at.f1,
        "recall at 0": result.at(0).recall,
        "AP": result.average_precision,
        "mean AP of predicates": result.mean_average_precision,
    }


def _row(quality: Quality) -> dict[str, object]:
    return {
        **asdict(quality),
        "precision": quality.precision,
        "recall": quality.recall,
        "F1": quality.f1,
    }


def _notes(result: LabelQuality) -> list[str]:
    counts = result.counts
    relations = count(counts["relations"], "relation")
    images = count(counts["images compared"], "image")
    objects = f"{counts['objects matched']:,} of {count(counts['objects'], 'object')}"
    compared = f"compared {relations} in {images}; {objects} match the ground truth"
    notes = [compared, *count_notes(counts)]
    if not counts["relations"]:
        notes.append(f"the run has no {result.source} in these images: precision is undefined")
        return notes
    lowest = float(result.relations.confidence.min())
    if lowest >= 0.01 and result.source == "relations":
        missed = "AP counts relations below it as missed"
        notes.append(f"the lowest confidence in the run is {lowest:.3f}: {missed}")
    return notes


def run_quality(
    run: Location, threshold: float = TRAINING_CONFIDENCE, calibration: Calibration | None = None
) -> dict[str, LabelQuality]:
    """Compare a run's relations and, as a baseline, all its candidates with its ground truth; empty
    if it has none.

    Args:
        threshold: minimum confidence, with a calibration: minimum probability.

    Raises:
        UserError: as `label_quality`.
    """
    ground_truth = ground_truth_of(run)
    if ground_truth is None:
        return {}
    return {
        name: label_quality(
            run, ground_truth, source=source, threshold=threshold, calibration=calibration
        )
        for name, source in _SOURCES.items()
    }


def print_run_quality(
    qualities: dict[str, LabelQuality], console: Console, *, predicates: bool = True
) -> None:
    """Print one row per source of relations, and one for each predicate of the first source."""
    first = next(iter(qualities.values()))
    title = f"Relations of confidence {first.threshold:g} or more"
    table = Table("", "relations", "precision", "recall", title=title)
    rows = [(name, result.at_threshold) for name, result in qualities.items()]
    if predicates:
        rows += [(single_line(row.predicate, 48), row.quality) for row in first.predicates]
    for number, (name, quality) in enumerate(rows, 1):
        precision = f"{quality.precision:.1%}" if quality.predicted else ""
        recall = f"{quality.recall:.1%}" if quality.targets else ""
        is_last = number == len(qualities)
        table.add_row(name, f"{quality.predicted:,}", precision, recall, end_section=is_last)
    console.print(table)
