"""Label quality as tables, JSON and CSV.

How good the labels of a run are whose truth is known because its images were drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlip_model.evaluation.inputs import Array
from sgpipe.evaluation.curves import mean_curve, precision_at
from sgpipe.evaluation.label_quality.arrays import Source
from sgpipe.evaluation.label_quality.comparison import LabelQuality, label_quality
from sgpipe.evaluation.label_quality.measures import Quality
from sgpipe.evaluation.result import EvaluationResult, Rows
from sgpipe.records import TRAINED_ON
from sgpipe.storage.run_folder import RunFolder

_NOTES = {  # what was left out, by its count
    "images failed": "images failed in the run: left out",
    "images without truth": "images of the run are not in the truth: left out",
    "images of failed truth": "images of the run failed in the truth: left out",
    "images repeated": "images are in the run again: only the first of each counts",
    "relations not compared": "relations are of images that were left out",
    "true images without run": "images of the truth are not in the run: left out, not counted as missed",
    "true images failed": "images failed in the truth",
    "true images repeated": "images are in the truth again: only the first of each counts",
    "true relations without run": "true relations are of images that are not in the run",
}


def label_report(found: LabelQuality, **settings: Any) -> EvaluationResult:
    """All of it. `settings`: what else to say in the JSON of how it was found."""
    at, threshold = found.at_threshold, found.threshold
    summary = {
        f"precision at {threshold:g}": at.precision,
        f"recall at {threshold:g}": at.recall,
        f"F1 at {threshold:g}": at.f1,
        f"precision at {threshold:g}, related pairs": found.related_precision,
        "recall at 0": found.curve[0].recall,
        "AP": found.average_precision,
        "mean AP of predicates": found.mean_average_precision,
        "wanted relations whose objects are there": found.reachable,
    }
    tables: dict[str, Rows] = {
        "by threshold": [{"threshold": f"{level:g}", **_row(own)} for level, own in found.curve.items()],
        "by frequency": [
            {
                "band": band.band,
                "predicates": band.predicates,
                **_row(band.quality),
                "mean_AP": band.mean_average_precision,
            }
            for band in found.bands
        ],
    }
    rows: Rows = [
        {
            "predicate": row.predicate,
            "band": row.band or "never wanted",
            **_row(row.quality),
            "average_precision": row.average_precision,
        }
        for row in found.predicates
    ]
    options = {"source": found.source, "threshold": threshold, **settings}
    title = f"Labels ({found.source})"
    return EvaluationResult(title, options, summary, rows, _notes(found), tables, found.counts, _curves(found))


def _curves(found: LabelQuality) -> dict[str, Array]:
    """Of the frequency bands, means over their predicates."""
    by_band: dict[str, list[Array]] = {}
    for row in found.predicates:
        if row.band:
            by_band.setdefault(row.band, []).append(precision_at(*row.curve))
    return {f"{band} ({len(curves)} predicates)": mean_curve(curves) for band, curves in by_band.items()}


def _row(quality: Quality) -> dict[str, Any]:
    return {
        "said": quality.said,
        "right": quality.right,
        "found": quality.found,
        "wanted": quality.wanted,
        "precision": quality.precision,
        "recall": quality.recall,
        "F1": quality.f1,
    }


def _notes(found: LabelQuality) -> list[str]:
    counts = found.counts
    notes = [
        f"compared {counts['relations']:,} relations in {counts['images compared']:,} images; "
        f"{counts['objects matched']:,} of {counts['objects']:,} objects are in the truth"
    ]
    notes += [f"{counts[name]:,} {text}" for name, text in _NOTES.items() if counts[name]]
    if not counts["relations"]:
        notes.append(f"the run has no {found.source} there: precision is undefined")
    elif (least := float(found.relations.confidence.min())) >= 0.01 and found.source == "relations":
        notes.append(f"the least confidence in the run is {least:.3f}: AP counts what is below as not found")
    return notes


LABELS, ALL_PAIRS = "labels", "all matching pairs"
_SOURCES: dict[str, Source] = {LABELS: "relations", ALL_PAIRS: "candidates"}


def known_quality(run: Path, threshold: float = TRAINED_ON) -> dict[str, LabelQuality]:
    """The run's labels and, as a baseline, all its candidates, compared with the truth; empty if it is not known.

    threshold: least confidence of a label.

    Raises UserError: as `label_quality`.
    """
    truth = RunFolder(run).ground_truth
    if truth is None:
        return {}
    return {
        name: label_quality(
            run,
            truth.relations,
            wanted=truth.required,
            source=source,
            threshold=threshold,
            image_data=truth.image_data,
        )
        for name, source in _SOURCES.items()
    }


def print_quality(found: dict[str, LabelQuality], console: Console, *, predicates: bool = True) -> None:
    """A row for each way to label, and one for each predicate of the first."""
    first = next(iter(found.values()))
    table = Table("", "relations", "precision", "recall", title=f"Labels of confidence {first.threshold:g} or more")
    for name, own in found.items():
        table.add_row(name, *_cells(own.at_threshold))
    table.add_section()
    for row in sorted(first.predicates if predicates else (), key=lambda row: -row.quality.wanted):
        if row.quality.wanted or row.quality.said:
            table.add_row(row.predicate, *_cells(row.quality))
    console.print(table)


def _cells(quality: Quality) -> list[str]:
    return [
        f"{quality.said:,}",
        f"{quality.precision:.1%}" if quality.said else "",
        f"{quality.recall:.1%}" if quality.wanted else "",
    ]
