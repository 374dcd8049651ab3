"""Label quality: the relations of shards compared with the truth about the same images.

    from sgpipe.evaluation.labels import label_quality

    found = label_quality(Path("run"), Path("truth"), wanted=Path("composed"), threshold=0.2)
    found.at_threshold.precision, found.at_threshold.recall, found.average_precision
    label_report(found).print(Console())               # of label_report.py; also .write_json, _csv and _plot

    everything = label_quality(Path("run"), Path("truth"), source="candidates")   # all matching pairs, as a baseline

* A relation is right if the truth has it: the same subject, predicate and object. Objects are the same if they have
  the same class (or, in the truth, a synonym of it) and the same box; predicates if their verbs' lemmas are.
* `wanted` decides what must be found: recall counts its relations. By default it is the truth. What is true but not
  wanted ("on", of a man riding a horse) is right, and left out of average precision, as a mistake as well as a find.
* Average precision needs everything that was scored: make the run with `tag.threshold=0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality.arrays import Graphs, Source, class_names, iter_graphs
from sgpipe.evaluation.label_quality.ground_truth import NO_IMAGE, Truth, read_coco_ids
from sgpipe.evaluation.label_quality.measures import (
    BANDS,
    NO_MATCH,
    Band,
    Quality,
    Relations,
    area,
    frequency_bands,
    mean,
    precision_recall,
    quality,
)
from sgpipe.evaluation.label_quality.synonyms import ClassTable, PredicateSynonyms, Vocabulary, predicate_vocabulary
from sgpipe.stages.pair.matching import normalise_predicate

CURVE = tuple(round(0.05 * step, 2) for step in range(20))


@dataclass(frozen=True)
class PredicateQuality:
    """One predicate at the threshold, and its average precision; band is None where it is never wanted.

    curve: recall and monotone precision, `[points]` each.
    """

    predicate: str
    band: Band | None
    quality: Quality
    average_precision: float
    curve: tuple[Array, Array]


@dataclass(frozen=True)
class BandQuality:
    """The predicates of one frequency band together, and the mean of their average precisions."""

    band: Band
    predicates: int
    quality: Quality
    mean_average_precision: float


@dataclass(frozen=True)
class LabelQuality:
    """What the labels of a run are worth.

    counts: images, objects and relations, also of what could not be compared.
    at_threshold: all predicates together, at the threshold; average_precision: of all relations in one ranking;
    mean_average_precision: over the wanted predicates, each by itself.
    related_precision: of the relations at the threshold whose pair the truth relates in some way, so many are right;
    it says more than precision where the truth leaves pairs out, as Visual Genome does.
    reachable: so many of the wanted relations have both their objects among the run's.
    curve: by threshold, from 0 up. relations, wanted: what all is computed from; wanted `[predicates]`, whose names
    are `names`.
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
    wanted: Array
    names: tuple[str, ...]


def label_quality(
    pred: Path,
    truth: Path,
    *,
    wanted: Path | None = None,
    source: Source = "relations",
    threshold: float = 0.2,
    synonyms: PredicateSynonyms | None = None,
    iou: float = 0.5,
    image_data: Path | None = None,
) -> LabelQuality:
    """Compare the relations of a run with the truth.

    Args:
        pred, truth, wanted: folders of shards.
        source: the run's relations, or all its candidates: every pair with each of its predicates, confidence 1.
        synonyms: `{predicate: [other texts]}` that count as the same.
        iou: the least overlap of two boxes of one object.
        image_data: Visual Genome's image_data.json, where the truth is Visual Genome's and `pred` COCO's: it knows
            which images are the same.

    Raises:
        UserError: a folder is no run, or damaged, they have no image in common, or an option is out of range.
    """
    if not 0 <= threshold <= 1 or not 0 < iou <= 1:
        raise UserError(f"threshold {threshold} and iou {iou}: expected numbers up to 1, iou above 0")
    labels, predicates = Vocabulary(normalise_predicate), predicate_vocabulary(synonyms)
    coco_ids = None if image_data is None else read_coco_ids(image_data)
    truths = [Truth(root, labels, predicates, coco_ids) for root in (truth, wanted) if root is not None]
    comparison = _Comparison(truths[0], truths[-1], ClassTable(labels, class_names(pred)), iou)
    for graphs in iter_graphs(pred, labels, predicates, source):
        comparison.add(graphs)
    if not comparison.images["images"]:
        raise UserError(f"{pred} holds no images; is the run finished?")
    if not comparison.images["images compared"]:
        raise UserError(comparison.strangers(pred, truth))
    return comparison.result(predicates.names, threshold, source)


class _Comparison:
    """Collects a run shard by shard."""

    def __init__(self, truth: Truth, wanted: Truth, classes: ClassTable, iou: float) -> None:
        self._truth, self._wanted, self._classes, self._iou = truth, wanted, classes, iou
        self._seen = np.zeros(len(truth.graphs.names), dtype=bool)
        self._wanted_seen = np.zeros(len(wanted.graphs.names), dtype=bool)
        self._covered = np.zeros(len(wanted.graphs.image), dtype=bool)
        self._parts: list[Relations] = []
        self._example = ""
        names = ("images", "images compared", "images without truth", "images failed", "images of failed truth")
        self.images = dict.fromkeys((*names, "images repeated"), 0)
        self._others = dict.fromkeys(("objects", "objects matched", "relations", "relations not compared"), 0)

    def add(self, graphs: Graphs) -> None:
        images = self._choose(graphs)
        wanted_images = np.where(images == NO_IMAGE, NO_IMAGE, self._wanted.find(graphs.names))
        self._wanted_seen[wanted_images[wanted_images != NO_IMAGE]] = True
        matches = self._truth.match(graphs, images, self._classes, self._iou)
        wanted_matches = matches
        if self._wanted is not self._truth:
            wanted_matches = self._wanted.match(graphs, wanted_images, self._classes, self._iou)
        self._covered[wanted_matches[wanted_matches != NO_MATCH]] = True
        compared = images[graphs.relation_image] != NO_IMAGE
        rows = _distinct(graphs, np.flatnonzero(compared))
        subject, object_, predicate = graphs.subject[rows], graphs.object[rows], graphs.predicate[rows]
        right, related = self._truth.judge(matches[subject], matches[object_], predicate)
        found, _ = self._wanted.judge(wanted_matches[subject], wanted_matches[object_], predicate)
        self._parts.append(Relations(predicate, graphs.confidence[rows], right | found, found, related | found))
        self._others["objects"] += int((images[graphs.image] != NO_IMAGE).sum())
        self._others["objects matched"] += int((matches != NO_MATCH).sum())
        self._others["relations"] += len(rows)
        self._others["relations not compared"] += int((~compared).sum())

    def _choose(self, graphs: Graphs) -> Array:
        """`[images]` of the truth; `NO_IMAGE` for those that cannot be compared, which are counted."""
        images = self._truth.find(graphs.names)
        there = images != NO_IMAGE
        sound = self._truth.graphs.ok[images]
        first = np.zeros(len(images), dtype=bool)
        first[np.unique(images, return_index=True)[1]] = True
        fresh = first & ~self._seen[images]
        usable = graphs.ok & there & sound & fresh
        self._seen[images[there]] = True
        self._example = self._example or graphs.names[0].base_name
        counts = {
            "images": len(images),
            "images failed": (~graphs.ok).sum(),
            "images without truth": (graphs.ok & ~there).sum(),
            "images of failed truth": (graphs.ok & there & ~sound).sum(),
            "images repeated": (graphs.ok & there & sound & ~fresh).sum(),
            "images compared": usable.sum(),
        }
        for name, count in counts.items():
            self.images[name] += int(count)
        return np.where(usable, images, NO_IMAGE)

    def strangers(self, pred: Path, truth: Path) -> str:
        """Why nothing was compared."""
        if self.images["images failed"] == self.images["images"]:
            return f"{pred} holds failed images only; see `sgpipe stats`"
        return (
            f"{pred} and {truth} have no image in common: one has {self._example!r}, the other "
            f"{self._truth.graphs.names[0].base_name!r}; if they are COCO and Visual Genome, give --image-data"
        )

    def result(self, names: list[str], threshold: float, source: Source) -> LabelQuality:
        columns = ("predicate", "confidence", "right", "found", "related")
        relations = Relations(*(np.concatenate([getattr(part, name) for part in self._parts]) for name in columns))
        graphs, statements = self._wanted.graphs, self._wanted.statements
        statements = statements[self._wanted_seen[graphs.relation_image[statements]]]
        wanted = np.bincount(graphs.predicate[statements], minlength=len(names))
        reachable = self._covered[graphs.subject[statements]] & self._covered[graphs.object[statements]]
        rows = _by_predicate(relations, wanted, names, threshold)
        total, kept = int(wanted.sum()), relations.above(threshold)
        return LabelQuality(
            threshold=threshold,
            source=source,
            counts=self._counts(relations),
            at_threshold=quality(kept, total),
            average_precision=area(*precision_recall(relations, total), total),
            mean_average_precision=mean([row.average_precision for row in rows if row.band]),
            related_precision=mean(kept.right[kept.related]),
            reachable=mean(reachable),
            curve={level: quality(relations.above(level), total) for level in sorted({*CURVE, threshold})},
            predicates=rows,
            bands=tuple(_band(name, rows) for name in BANDS),
            relations=relations,
            wanted=wanted,
            names=tuple(names),
        )

    def _counts(self, relations: Relations) -> dict[str, int]:
        truth = self._truth
        unseen = ~self._seen
        lost = unseen[truth.graphs.relation_image[truth.statements]]
        return {
            **self.images,
            "true images without run": int((unseen & truth.graphs.ok).sum()) - truth.repeated,
            "true images failed": int((~truth.graphs.ok).sum()),
            "true images repeated": truth.repeated,
            **self._others,
            "true relations without run": int(lost.sum()),
        }


def _distinct(graphs: Graphs, rows: Array) -> Array:
    """Of relations with the same subject, object and predicate the most confident."""
    keys = (graphs.predicate[rows], graphs.object[rows], graphs.subject[rows])
    rows = rows[np.lexsort((-graphs.confidence[rows], *keys))]
    statements = np.stack((graphs.subject[rows], graphs.object[rows], graphs.predicate[rows]), axis=1)
    return rows[np.append(True, (statements[1:] != statements[:-1]).any(1))[: len(rows)]]


def _by_predicate(
    relations: Relations, wanted: Array, names: list[str], threshold: float
) -> tuple[PredicateQuality, ...]:
    """Every predicate that is wanted or said, the most wanted first."""
    bands = frequency_bands(wanted)
    by_predicate = relations[np.argsort(relations.predicate, kind="stable")]
    ends = np.searchsorted(by_predicate.predicate, np.arange(len(names) + 1))
    said = np.diff(ends)
    rows = []
    for number in np.lexsort((-said, -wanted)).tolist():
        own, count = by_predicate[ends[number] : ends[number + 1]], int(wanted[number])
        if count or len(own):
            at_threshold = quality(own.above(threshold), count)
            curve = precision_recall(own, count)
            rows.append(PredicateQuality(names[number], bands[number], at_threshold, area(*curve, count), curve))
    return tuple(rows)


def _band(name: Band, rows: tuple[PredicateQuality, ...]) -> BandQuality:
    own = [row for row in rows if row.band == name]
    counts = (sum(getattr(row.quality, part) for row in own) for part in ("said", "right", "found", "wanted"))
    return BandQuality(name, len(own), Quality(*counts), mean([row.average_precision for row in own]))
