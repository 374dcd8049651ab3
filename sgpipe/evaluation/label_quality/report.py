"""Label quality as tables, JSON and CSV, and the quality of a run with ground truth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.inputs import Array
from sgpipe.calibration import Calibration
from sgpipe.evaluation.bootstrap import Resampling
from sgpipe.evaluation.label_quality.arrays import Source
from sgpipe.evaluation.label_quality.comparison import LabelQuality, label_quality
from sgpipe.evaluation.label_quality.measures import Quality
from sgpipe.evaluation.result import EvaluationResult, Rows, count_notes, mean_curve, precision_at
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.console import count, single_line

_NOTES = {  # by the count they report
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
    notes += count_notes(counts, _NOTES)
    if not counts["relations"]:
        notes.append(f"the run has no {result.source} in these images: precision is undefined")
    elif (lowest := float(result.relations.confidence.min())) >= 0.01 and result.source == "relations":
        notes.append(f"the lowest confidence in the run is {lowest:.3f}: AP counts relations below it as missed")
    return notes


LABELS, ALL_PAIRS = "labels", "all matching pairs"
_SOURCES: dict[str, Source] = {LABELS: "relations", ALL_PAIRS: "candidates"}


def run_quality(
    run: Path, threshold: float = TRAINING_CONFIDENCE, calibration: Calibration | None = None
) -> dict[str, LabelQuality]:
    """Compare a run's relations and, as a baseline, all its candidates with its ground truth; empty if it has none.

    threshold: minimum confidence of a relation, with a calibration: minimum probability.

    Raises UserError: as `label_quality`.
    """
    ground_truth = RunFolder(run).ground_truth
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
