"""How good the labels of a run are whose truth is known because its pictures were drawn."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from sgpipe.evaluation.label_measures import Quality
from sgpipe.evaluation.label_shards import Source
from sgpipe.evaluation.labels import LabelQuality, label_quality
from sgpipe.relations import TRAINED_ON
from sgpipe.shards.folder import RunFolder

LABELS, ALL_PAIRS = "labels", "all matching pairs"
_SOURCES: dict[str, Source] = {LABELS: "relations", ALL_PAIRS: "candidates"}


def known_quality(run: Path, threshold: float = TRAINED_ON) -> dict[str, LabelQuality]:
    """The run's labels and, as a baseline, all its candidates, compared with the truth; empty if it is not known.

    threshold: least confidence of a label.

    Raises UserError: as `label_quality`.
    """
    truth = RunFolder(run).truth
    if truth is None:
        return {}
    return {
        name: label_quality(run, truth.true, wanted=truth.composed, source=source, threshold=threshold)
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
