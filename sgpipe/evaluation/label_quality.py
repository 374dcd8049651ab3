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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

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
from sgpipe.stages.pair import normalise_predicate
from sgpipe.storage.run_folder import GroundTruth, ground_truth_of
from sgpipe.utils.console import count, single_line

FrequencyBand = Literal["head", "body", "tail"]
BANDS: tuple[FrequencyBand, ...] = get_args(FrequencyBand)
_BAND_ENDS = (
    0.8,
    0.95,
)  # the most frequent predicates with 80% of all targets are the head, up to 95% the body


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
        return (
            2 * precision * recall / (precision + recall)
            if precision + recall
            else 0.0 * (precision + recall)
        )


def precision_recall(relations: Relations, targets: int) -> tuple[Array, Array]:
    """Recall and monotone precision at each distinct confidence, in falling order; recall is 0
    without targets.

    True positives that are not targets are neither mistakes nor matches: they are left out.
    """
    ranked = relations[relations.matched | ~relations.true_positive]
    order = np.argsort(-ranked.confidence, kind="stable")
    confidence = ranked.confidence[order]
    matched = np.cumsum(ranked.matched[order])
    steps = (
        np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)) if len(order) else order
    )
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
        relations = self.relations[
            np.repeat(np.arange(len(self.relations)), occurrences[self.relations.image])
        ]
        columns = (self.target_predicates, self.target_images)
        predicates, images = (
            np.repeat(column, occurrences[self.target_images]) for column in columns
        )
        return replace(
            self, relations=relations, target_predicates=predicates, target_images=images
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
        before = (
            np.cumsum(targets[order]) - targets[order]
        )  # its first target decides the band of a predicate
        places = (before[:, None] >= np.array(_BAND_ENDS) * targets.sum()).sum(1)
        bands = {
            number: BANDS[place]
            for number, place in zip(order, places, strict=True)
            if targets[number]
        }
        by_predicate = self.relations[np.argsort(self.relations.predicate, kind="stable")]
        ends = np.searchsorted(by_predicate.predicate, np.arange(len(self.names) + 1))
        rows = []
        for number in np.lexsort((-np.diff(ends), -targets)).tolist():
            own = by_predicate[ends[number] : ends[number + 1]]
            count = int(targets[number])
            if count or len(own):
                curve = precision_recall(own, count)
                at_threshold = Quality.of(own.above(self.threshold), count)
                average = area(*curve, count)
                rows.append(
                    PredicateQuality(
                        self.names[number], bands.get(number), at_threshold, average, curve
                    )
                )
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
    """Compare the relations of a run with ground truth. source, calibration: as for `iter_graphs`.

    synonyms: `{predicate: [other texts]}` that count as the same predicate. iou: least of two boxes
    of the same object.

    Raises UserError: a folder is not a run or is damaged, they have no image in common, or a number
    is out of range.
    """
    if not 0 <= threshold <= 1 or not 0 < iou <= 1:
        raise UserError(
            f"threshold {threshold} and iou {iou}: expected numbers up to 1, iou above 0"
        )
    words = Vocabulary(normalise_predicate)
    predicates = graphs.predicate_vocabulary(synonyms)
    coco_ids = (
        None if ground_truth.image_data is None else graphs.read_coco_ids(ground_truth.image_data)
    )
    folders = [root for root in (ground_truth.relations, ground_truth.required) if root is not None]
    indexes = [GroundTruthIndex(root, words, predicates, coco_ids) for root in folders]
    truth = indexes[0]
    targets = indexes[-1]
    classes = graphs.class_meanings(words, graphs.class_names(run))
    seen = np.zeros(len(truth.graphs.names), dtype=bool)
    image_of_target = np.full(len(targets.graphs.names), NO_IMAGE)
    counts = Counter[str]()
    parts = list[Relations]()
    compared = list[Array]()
    for shard in graphs.iter_graphs(run, words, predicates, source, calibration):
        images = _images_to_compare(shard, truth, seen, counts)
        target_images = np.where(images == NO_IMAGE, NO_IMAGE, targets.find(shard.names))
        has_targets = target_images != NO_IMAGE
        image_of_target[target_images[has_targets]] = images[has_targets]
        compared.append(images[images != NO_IMAGE])
        matches = truth.match(shard, images, classes, iou)
        target_matches = (
            matches if targets is truth else targets.match(shard, target_images, classes, iou)
        )
        usable = images[shard.relation_image] != NO_IMAGE
        rows = _distinct(shard, np.flatnonzero(usable))
        subject = shard.subject[rows]
        object_ = shard.object[rows]
        predicate = shard.predicate[rows]
        true = truth.has(matches[subject], matches[object_], predicate)
        matched = targets.has(target_matches[subject], target_matches[object_], predicate)
        image = images[shard.relation_image[rows]]
        annotated = shard.annotated[rows]
        parts.append(
            Relations(predicate, shard.confidence[rows], true | matched, matched, image, annotated)
        )
        counts["objects"] += int((images[shard.image] != NO_IMAGE).sum())
        counts["objects matched"] += int((matches != NO_MATCH).sum())
        counts["relations"] += len(rows)
        counts["relations not compared"] += int((~usable).sum())
    if counts["images failed"] == counts["images"]:
        why = (
            "only failed images; `sgpipe stats` shows why they failed"
            if parts
            else "no images; is the run finished?"
        )
        raise UserError(f"{run} contains {why}")
    if not counts["images compared"]:
        both = (
            f"one has {shard.names[0].base_name!r}, the other {truth.graphs.names[0].base_name!r}"
        )
        hint = "if they are COCO and Visual Genome, pass --image-data"
        raise UserError(
            f"{run} and {ground_truth.relations} have no image in common: {both}; {hint}"
        )
    counts["ground truth images not in run"] = len({*truth.graphs.names}) - int(seen.sum())
    columns = [
        np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Relations)
    ]
    image = image_of_target[targets.graphs.relation_image[targets.statements]]
    known = image != NO_IMAGE
    return LabelQuality(
        threshold,
        source,
        counts,
        Relations(*columns),
        targets.graphs.predicate[targets.statements][known],
        image[known],
        tuple(predicates.names),
        truth.graphs.names,
        np.concatenate(compared),
    )


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


def label_report(result: LabelQuality, **settings: Any) -> EvaluationResult:
    """Return the full report, with more `settings`."""
    levels = sorted({*(round(0.05 * step, 2) for step in range(20)), result.threshold})
    by_threshold = [{"threshold": f"{level:g}", **_row(result.at(level))} for level in levels]
    by_frequency = []
    curves = {}
    for band in BANDS:
        among = [predicate for predicate in result.predicates if predicate.band == band]
        sums = Quality(
            *(sum(getattr(each.quality, name.name) for each in among) for name in fields(Quality))
        )
        average = mean(np.array([each.average_precision for each in among]))
        by_frequency.append(
            {"band": band, "predicates": len(among), **_row(sums), "mean_AP": average}
        )
        if among:
            name = f"{band} ({count(len(among), 'predicate')})"
            curves[name] = mean_curve(precision_at(*each.curve) for each in among)
    rows = []
    for own in result.predicates:
        names = {"predicate": own.predicate, "band": own.band or "no targets"}
        rows.append({**names, **_row(own.quality), "average_precision": own.average_precision})
    images = [
        f"{image.dataset} {image.image_id}"
        for image in (result.images[place] for place in result.compared)
    ]
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


def _row(quality: Quality) -> dict[str, Any]:
    return {
        **asdict(quality),
        "precision": quality.precision,
        "recall": quality.recall,
        "F1": quality.f1,
    }


def _notes(result: LabelQuality) -> list[str]:
    counts = result.counts
    notes = [
        (
            f"compared {count(counts['relations'], 'relation')} in"
            f" {count(counts['images compared'], 'image')}; {counts['objects matched']:,} of"
            f" {count(counts['objects'], 'object')} match the ground truth"
        ),
        *count_notes(counts),
    ]
    if not counts["relations"]:
        notes.append(f"the run has no {result.source} in these images: precision is undefined")
    elif (
        lowest := float(result.relations.confidence.min())
    ) >= 0.01 and result.source == "relations":
        notes.append(
            f"the lowest confidence in the run is {lowest:.3f}: AP counts relations below it as"
            " missed"
        )
    return notes


def run_quality(
    run: Location, threshold: float = TRAINING_CONFIDENCE, calibration: Calibration | None = None
) -> dict[str, LabelQuality]:
    """Compare a run's relations and, as a baseline, all its candidates with its ground truth; empty
    if it has none.

    threshold: minimum confidence, with a calibration: minimum probability. Raises UserError: as
    `label_quality`.
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
    rows = [(name, own.at_threshold) for name, own in qualities.items()]
    if predicates:
        rows += [(single_line(row.predicate, 48), row.quality) for row in first.predicates]
    for number, (name, own) in enumerate(rows, 1):
        precision = f"{own.precision:.1%}" if own.predicted else ""
        recall = f"{own.recall:.1%}" if own.targets else ""
        table.add_row(
            name, f"{own.predicted:,}", precision, recall, end_section=number == len(qualities)
        )
    console.print(table)
