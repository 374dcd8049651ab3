"""Label quality: the relations of a run compared with ground truth for the same images.

    from sgpipe.evaluation.label_quality.comparison import label_quality
    from sgpipe.evaluation.label_quality.comparison import label_report
    from sgpipe.storage.run_folder import GroundTruth

    ground_truth = GroundTruth(relations=Path("truth"), required=Path("targets"))
    result = label_quality(Path("run"), ground_truth, threshold=0.2)
    result.at_threshold.precision, result.at_threshold.recall, result.average_precision
    label_report(result).print(Console())  # also .write_json, .write_csv and .write_plot

    baseline = label_quality(Path("run"), ground_truth, source="candidates")  # all candidate pairs

* A relation is a true positive if the ground truth has it: same subject, predicate and object. Objects are the same
  if they have the same class (or, in the ground truth, a synonym of it) and the same box; predicates if their verbs
  have the same lemma.
* Targets are the relations that recall counts: those of `GroundTruth.required`, by default the whole ground truth.
  A true positive that is not a target ("on", for a man riding a horse) counts for precision, and is ignored by average
  precision.
* Average precision needs everything that was scored: make the run with `tag.threshold=0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.inputs import Array
from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality.arrays import (
    NO_IMAGE,
    Graphs,
    GroundTruthIndex,
    ImageName,
    Source,
    class_names,
    iter_graphs,
    read_coco_ids,
)
from sgpipe.evaluation.label_quality.measures import (
    BANDS,
    NO_MATCH,
    FrequencyBand,
    Quality,
    Relations,
    Targets,
    area,
    frequency_bands,
    mean,
    precision_recall,
    quality,
)
from sgpipe.evaluation.label_quality.synonyms import ClassTable, PredicateSynonyms, Vocabulary, predicate_vocabulary
from sgpipe.evaluation.result import EvaluationResult, Resampling, Rows, count_notes, mean_curve, precision_at
from sgpipe.files.locations import Location
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stages.pair import normalise_predicate
from sgpipe.storage.run_folder import GroundTruth, ground_truth_of
from sgpipe.utils.console import count, single_line

CURVE = tuple(round(0.05 * step, 2) for step in range(20))


@dataclass(frozen=True)
class PredicateQuality:
    """One predicate at the threshold, and its average precision; band is None without targets.

    curve: recall and monotone precision, `[points]` each.
    """

    predicate: str
    band: FrequencyBand | None
    quality: Quality
    average_precision: float
    curve: tuple[Array, Array]


@dataclass(frozen=True)
class BandQuality:
    """The predicates of one frequency band together, and the mean of their average precisions."""

    band: FrequencyBand
    predicates: int
    quality: Quality
    mean_average_precision: float


@dataclass(frozen=True)
class LabelQuality:
    """How good the relations of a run are.

    counts: images, objects and relations, including those that could not be compared.
    at_threshold: all predicates together, at the threshold. curve: the same by threshold, from 0 up.
    average_precision: all relations in one ranking. mean_average_precision: over the predicates with targets.
    related_precision: precision over the pairs that the ground truth relates in some way; it is more telling where
    the ground truth is incomplete, as Visual Genome's is.
    reachable: share of the targets whose two objects the run has.
    relations, required: what all of this is computed from. targets `[predicates]`, named by `names`; `wordings`: the
    texts of each. images: the images of the ground truth; compared: the numbers of those that were compared.
    """

    threshold: float
    source: Source
    counts: dict[str, int]
    at_threshold: Quality
    average_precision: float
    mean_average_precision: float
    related_precision: float
    reachable: float
    curve: dict[float, Quality]
    predicates: tuple[PredicateQuality, ...]
    bands: tuple[BandQuality, ...]
    relations: Relations
    targets: Array
    names: tuple[str, ...]
    wordings: tuple[tuple[str, ...], ...]
    images: Sequence[ImageName]
    required: Targets
    compared: Array

    def resampled(self, counts: Array) -> LabelQuality:
        """The quality in a dataset in which each of the `compared` images occurs `counts[image]` times."""
        occurrences = np.zeros(len(self.images), dtype=int)
        occurrences[self.compared] = counts
        relations = self.relations[np.repeat(np.arange(len(self.relations)), occurrences[self.relations.image])]
        required = self.required[np.repeat(np.arange(len(self.required.image)), occurrences[self.required.image])]
        return replace(self, **_measures(relations, required, self.names, self.threshold))


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
        source: the run's relations; its candidates: every pair with each of its predicates, confidence 1; or its
            relations with the probability of the second opinion as confidence.
        synonyms: `{predicate: [other texts]}` that count as the same predicate.
        iou: minimum overlap of two boxes of the same object.
        calibration: of the tagger; the confidences of relations are its probabilities then.

    Raises:
        UserError: a folder is not a run or is damaged, the two have no image in common, or an option is out of range.
    """
    if not 0 <= threshold <= 1 or not 0 < iou <= 1:
        raise UserError(f"threshold {threshold} and iou {iou}: expected numbers up to 1, iou above 0")
    classes, predicates = Vocabulary(normalise_predicate), predicate_vocabulary(synonyms)
    coco_ids = None if ground_truth.image_data is None else read_coco_ids(ground_truth.image_data)
    folders = [root for root in (ground_truth.relations, ground_truth.required) if root is not None]
    indexes = [GroundTruthIndex(root, classes, predicates, coco_ids) for root in folders]
    comparison = _Comparison(indexes[0], indexes[-1], ClassTable(classes, class_names(run)), iou)
    for graphs in iter_graphs(run, classes, predicates, source, calibration):
        comparison.add(graphs)
    if not comparison.images["images"]:
        raise UserError(f"{run} contains no images; is the run finished?")
    if not comparison.images["images compared"]:
        raise UserError(comparison.why_nothing_was_compared(run, ground_truth.relations))
    return comparison.result(predicates, threshold, source)


class _Comparison:
    """Compares a run with ground truth, shard by shard."""

    def __init__(self, truth: GroundTruthIndex, targets: GroundTruthIndex, classes: ClassTable, iou: float) -> None:
        self._truth, self._targets, self._classes, self._iou = truth, targets, classes, iou
        self._seen = np.zeros(len(truth.graphs.names), dtype=bool)
        self._image_of_target = np.full(len(targets.graphs.names), NO_IMAGE)
        self._covered = np.zeros(len(targets.graphs.image), dtype=bool)
        self._parts: list[Relations] = []
        self._compared: list[Array] = []
        self._example = ""
        names = (
            "images",
            "images compared",
            "images without ground truth",
            "images failed",
            "images failed in ground truth",
        )
        self.images = dict.fromkeys((*names, "images repeated"), 0)
        self._others = dict.fromkeys(("objects", "objects matched", "relations", "relations not compared"), 0)

    def add(self, graphs: Graphs) -> None:
        images = self._choose(graphs)
        target_images = np.where(images == NO_IMAGE, NO_IMAGE, self._targets.find(graphs.names))
        has_targets = target_images != NO_IMAGE
        self._image_of_target[target_images[has_targets]] = images[has_targets]
        self._compared.append(images[images != NO_IMAGE])
        matches = self._truth.match(graphs, images, self._classes, self._iou)
        target_matches = matches
        if self._targets is not self._truth:
            target_matches = self._targets.match(graphs, target_images, self._classes, self._iou)
        self._covered[target_matches[target_matches != NO_MATCH]] = True
        compared = images[graphs.relation_image] != NO_IMAGE
        rows = _distinct(graphs, np.flatnonzero(compared))
        subject, object_, predicate = graphs.subject[rows], graphs.object[rows], graphs.predicate[rows]
        true, related = self._truth.judge(matches[subject], matches[object_], predicate)
        matched, _ = self._targets.judge(target_matches[subject], target_matches[object_], predicate)
        facts = (true | matched, matched, related | matched)
        image, annotated = images[graphs.relation_image[rows]], graphs.annotated[rows]
        self._parts.append(Relations(predicate, graphs.confidence[rows], *facts, image, annotated))
        self._others["objects"] += int((images[graphs.image] != NO_IMAGE).sum())
        self._others["objects matched"] += int((matches != NO_MATCH).sum())
        self._others["relations"] += len(rows)
        self._others["relations not compared"] += int((~compared).sum())

    def _choose(self, graphs: Graphs) -> Array:
        """`[images]` of the ground truth, or `NO_IMAGE` for those that cannot be compared, which are counted."""
        images = self._truth.find(graphs.names)
        known = images != NO_IMAGE
        sound = self._truth.graphs.ok[images]
        first = np.zeros(len(images), dtype=bool)
        first[np.unique(images, return_index=True)[1]] = True
        new = first & ~self._seen[images]
        usable = graphs.ok & known & sound & new
        self._seen[images[known]] = True
        self._example = self._example or graphs.names[0].base_name
        counts = {
            "images": len(images),
            "images failed": (~graphs.ok).sum(),
            "images without ground truth": (graphs.ok & ~known).sum(),
            "images failed in ground truth": (graphs.ok & known & ~sound).sum(),
            "images repeated": (graphs.ok & known & sound & ~new).sum(),
            "images compared": usable.sum(),
        }
        for name, number in counts.items():
            self.images[name] += int(number)
        return np.where(usable, images, NO_IMAGE)

    def why_nothing_was_compared(self, run: Location, truth: Location) -> str:
        if self.images["images failed"] == self.images["images"]:
            return f"{run} contains only failed images; `sgpipe stats` shows why they failed"
        return (
            f"{run} and {truth} have no image in common: one has {self._example!r}, the other "
            f"{self._truth.graphs.names[0].base_name!r}; if they are COCO and Visual Genome, pass --image-data"
        )

    def result(self, predicates: Vocabulary, threshold: float, source: Source) -> LabelQuality:
        names, columns = predicates.names, [each.name for each in fields(Relations)]
        relations = Relations(*(np.concatenate([getattr(part, name) for part in self._parts]) for name in columns))
        graphs, statements = self._targets.graphs, self._targets.statements
        image = self._image_of_target[graphs.relation_image[statements]]
        statements, image = statements[image != NO_IMAGE], image[image != NO_IMAGE]
        reachable = self._covered[graphs.subject[statements]] & self._covered[graphs.object[statements]]
        required = Targets(graphs.predicate[statements], image, reachable)
        return LabelQuality(
            threshold=threshold,
            source=source,
            counts=self._counts(relations),
            names=tuple(names),
            wordings=predicates.wordings,
            images=self._truth.graphs.names,
            compared=np.concatenate(self._compared),
            **_measures(relations, required, names, threshold),
        )

    def _counts(self, relations: Relations) -> dict[str, int]:
        truth = self._truth
        unseen = ~self._seen
        lost = unseen[truth.graphs.relation_image[truth.statements]]
        return {
            **self.images,
            "ground truth images not in run": int((unseen & truth.graphs.ok).sum()) - truth.repeated,
            "ground truth images failed": int((~truth.graphs.ok).sum()),
            "ground truth images repeated": truth.repeated,
            **self._others,
            "ground truth relations not in run": int(lost.sum()),
        }


def _distinct(graphs: Graphs, rows: Array) -> Array:
    """The rows without repeated relations; of those with the same ends and predicate, the most confident remains."""
    keys = (graphs.predicate[rows], graphs.object[rows], graphs.subject[rows])
    rows = rows[np.lexsort((-graphs.confidence[rows], *keys))]
    statements = np.stack((graphs.subject[rows], graphs.object[rows], graphs.predicate[rows]), axis=1)
    return rows[np.append(True, (statements[1:] != statements[:-1]).any(1))[: len(rows)]]


def _measures(relations: Relations, required: Targets, names: Sequence[str], threshold: float) -> dict[str, Any]:
    """What a `LabelQuality` says of relations and targets, and these themselves."""
    targets = np.bincount(required.predicate, minlength=len(names))
    rows = _by_predicate(relations, targets, names, threshold)
    total, kept = len(required.predicate), relations.above(threshold)
    return {
        "at_threshold": quality(kept, total),
        "average_precision": area(*precision_recall(relations, total), total),
        "mean_average_precision": mean([row.average_precision for row in rows if row.band]),
        "related_precision": mean(kept.true_positive[kept.related]),
        "reachable": mean(required.reachable),
        "curve": {level: quality(relations.above(level), total) for level in sorted({*CURVE, threshold})},
        "predicates": rows,
        "bands": tuple(_band(name, rows) for name in BANDS),
        "relations": relations,
        "targets": targets,
        "required": required,
    }


def _by_predicate(
    relations: Relations, targets: Array, names: Sequence[str], threshold: float
) -> tuple[PredicateQuality, ...]:
    """Every predicate that is predicted or has targets, the one with the most targets first."""
    bands = frequency_bands(targets)
    by_predicate = relations[np.argsort(relations.predicate, kind="stable")]
    ends = np.searchsorted(by_predicate.predicate, np.arange(len(names) + 1))
    predicted = np.diff(ends)
    rows = []
    for number in np.lexsort((-predicted, -targets)).tolist():
        own, count = by_predicate[ends[number] : ends[number + 1]], int(targets[number])
        if count or len(own):
            at_threshold = quality(own.above(threshold), count)
            curve = precision_recall(own, count)
            rows.append(PredicateQuality(names[number], bands[number], at_threshold, area(*curve, count), curve))
    return tuple(rows)


def _band(name: FrequencyBand, rows: tuple[PredicateQuality, ...]) -> BandQuality:
    own = [row for row in rows if row.band == name]
    total = Quality(*(sum(getattr(row.quality, field.name) for row in own) for field in fields(Quality)))
    return BandQuality(name, len(own), total, mean([row.average_precision for row in own]))


NOTES = {  # by the count they report
    "images failed": ("image failed in the run: left out", "images failed in the run: left out"),
    "images without ground truth": (
        "image of the run has no ground truth: left out",
        "images of the run have no ground truth: left out",
    ),
    "images failed in ground truth": (
        "image of the run failed in the ground truth: left out",
        "images of the run failed in the ground truth: left out",
    ),
    "images repeated": (
        "image occurs again in the run: only its first occurrence counts",
        "images occur again in the run: only their first occurrences count",
    ),
    "relations not compared": (
        "relation is in an image that was left out",
        "relations are in images that were left out",
    ),
    "ground truth images not in run": (
        "image of the ground truth is not in the run: left out, not counted as missed",
        "images of the ground truth are not in the run: left out, not counted as missed",
    ),
    "ground truth images failed": ("image failed in the ground truth", "images failed in the ground truth"),
    "ground truth images repeated": (
        "image occurs again in the ground truth: only its first occurrence counts",
        "images occur again in the ground truth: only their first occurrences count",
    ),
    "ground truth relations not in run": (
        "relation of the ground truth is in an image that is not in the run",
        "relations of the ground truth are in images that are not in the run",
    ),
}


def label_report(result: LabelQuality, **settings: Any) -> EvaluationResult:
    """The full report; `settings` are added to those in the JSON."""
    threshold = result.threshold
    tables: dict[str, Rows] = {
        "by threshold": [{"threshold": f"{level:g}", **_row(own)} for level, own in result.curve.items()],
        "by frequency": [
            {
                "band": band.band,
                "predicates": band.predicates,
                **_row(band.quality),
                "mean_AP": band.mean_average_precision,
            }
            for band in result.bands
        ],
    }
    rows: Rows = [
        {
            "predicate": row.predicate,
            "band": row.band or "no targets",
            **_row(row.quality),
            "average_precision": row.average_precision,
        }
        for row in result.predicates
    ]
    options = {"source": result.source, "threshold": threshold, **settings}
    return EvaluationResult(
        f"Label quality ({result.source})",
        options,
        _summary(result),
        rows,
        _notes(result),
        tables,
        result.counts,
        _curves(result),
        resampling=Resampling(
            [f"{image.dataset} {image.image_id}" for image in (result.images[place] for place in result.compared)],
            lambda counts: _summary(result.resampled(counts)),
        ),
    )


def _summary(result: LabelQuality) -> dict[str, float]:
    at, threshold = result.at_threshold, result.threshold
    return {
        f"precision at {threshold:g}": at.precision,
        f"recall at {threshold:g}": at.recall,
        f"F1 at {threshold:g}": at.f1,
        f"precision at {threshold:g}, related pairs": result.related_precision,
        "recall at 0": result.curve[0].recall,
        "AP": result.average_precision,
        "mean AP of predicates": result.mean_average_precision,
        "share of targets with both objects in the run": result.reachable,
    }


def _curves(result: LabelQuality) -> dict[str, Array]:
    """One curve per frequency band: the mean over its predicates."""
    by_band: dict[str, list[Array]] = {}
    for row in result.predicates:
        if row.band:
            by_band.setdefault(row.band, []).append(precision_at(*row.curve))
    return {f"{band} ({count(len(curves), 'predicate')})": mean_curve(curves) for band, curves in by_band.items()}


def _row(quality: Quality) -> dict[str, Any]:
    return {**asdict(quality), "precision": quality.precision, "recall": quality.recall, "F1": quality.f1}


def _notes(result: LabelQuality) -> list[str]:
    counts = result.counts
    notes = [
        f"compared {count(counts['relations'], 'relation')} in {count(counts['images compared'], 'image')}; "
        f"{counts['objects matched']:,} of {count(counts['objects'], 'object')} match the ground truth"
    ]
    notes += count_notes(counts, NOTES)
    if not counts["relations"]:
        notes.append(f"the run has no {result.source} in these images: precision is undefined")
    elif (lowest := float(result.relations.confidence.min())) >= 0.01 and result.source == "relations":
        notes.append(f"the lowest confidence in the run is {lowest:.3f}: AP counts relations below it as missed")
    return notes


LABELS, ALL_PAIRS = "labels", "all matching pairs"
_SOURCES: dict[str, Source] = {LABELS: "relations", ALL_PAIRS: "candidates"}


def run_quality(
    run: Location, threshold: float = TRAINING_CONFIDENCE, calibration: Calibration | None = None
) -> dict[str, LabelQuality]:
    """Compare a run's relations and, as a baseline, all its candidates with its ground truth; empty if it has none.

    threshold: minimum confidence of a relation, with a calibration: minimum probability.

    Raises UserError: as `label_quality`.
    """
    ground_truth = ground_truth_of(run)
    if ground_truth is None:
        return {}
    return {
        name: label_quality(run, ground_truth, source=source, threshold=threshold, calibration=calibration)
        for name, source in _SOURCES.items()
    }


def print_run_quality(qualities: dict[str, LabelQuality], console: Console, *, predicates: bool = True) -> None:
    """Print one row per source of relations, and one for each predicate of the first source."""
    first = next(iter(qualities.values()))
    title = f"Relations of confidence {first.threshold:g} or more"
    table = Table("", "relations", "precision", "recall", title=title)
    for name, own in qualities.items():
        table.add_row(name, *_cells(own.at_threshold))
    table.add_section()
    for row in sorted(first.predicates if predicates else (), key=lambda row: -row.quality.targets):
        if row.quality.targets or row.quality.predicted:
            table.add_row(single_line(row.predicate, 48), *_cells(row.quality))
    console.print(table)


def _cells(quality: Quality) -> list[str]:
    return [
        f"{quality.predicted:,}",
        f"{quality.precision:.1%}" if quality.predicted else "",
        f"{quality.recall:.1%}" if quality.targets else "",
    ]
