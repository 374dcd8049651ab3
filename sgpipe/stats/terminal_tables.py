"""Terminal tables of what is only sometimes known: another run, the truth, people's verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from sgpipe.sources.fields import line
from sgpipe.stats.compare import Comparison
from sgpipe.stats.judged import Choice
from sgpipe.stats.truth import TruthMeasures
from sgpipe.stats.verdicts import Verdicts

_TOP = 15


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text; a column whose name starts with `>` is aligned to the right, and no names: no header."""
    names = [name.removeprefix(">") for name in columns]
    made = Table(title=Text(line(title)), show_header=any(names))
    for column, name in zip(columns, names, strict=True):
        made.add_column(Text(name), justify="right" if column.startswith(">") else "left")
    for row in rows:
        made.add_row(*(Text(line(cell)) for cell in row))
    return made


def comparison_tables(comparison: Comparison | None) -> Iterator[Table]:
    """What changed since another run."""
    if comparison is None:
        return
    columns = [f">{comparison.other}", ">this run"]
    counts = [(row.name, f"{row.before:,}", f"{row.after:,}", row.text) for row in comparison.counts]
    yield table("what changed", ["", *columns, ">change"], counts)
    title = (
        f"predicates whose share changed most; {comparison.gained:,} only in this run, {comparison.lost:,} not in it"
    )
    shares = [(row.name, f"{row.before:.1%}", f"{row.after:.1%}") for row in comparison.predicates]
    yield table(title, ["predicate", *columns], shares)
    if comparison.health:
        shares = [(row.name, f"{row.before:.1%}", f"{row.after:.1%}") for row in comparison.health]
        yield table("health of both", ["check", *columns], shares)


def truth_tables(truth: TruthMeasures | None) -> Iterator[Table]:
    """Thresholds that reach a precision, and how far confidences are from it."""
    if truth is None:
        return
    choices = [("all", truth.relations, truth.precision, truth.suggested)]
    choices += [(row.predicate, row.relations, row.at_threshold, row.suggested) for row in truth.predicates[:_TOP]]
    rows = []
    for predicate, relations, precision, suggested in choices:
        choice = ("none", "0") if suggested is None else (f"{suggested.threshold:.3f}", f"{suggested.kept:,}")
        rows.append((predicate, f"{relations:,}", str(precision), *choice))
    names = ["predicate", ">relations", f">precision at {truth.threshold:.2f}", ">threshold", ">keeps"]
    yield table(
        f"thresholds for a precision of {truth.target:.0%}, by the truth of {truth.images:,} images", names, rows
    )
    error = "" if truth.calibration_error is None else f" (calibration error {truth.calibration_error:.3f})"
    title = f"are confidences what they claim?{error}"
    bins = [
        (f"{part.start:.1f} to {part.stop:.1f}", f"{part.confidence:.2f}", str(part.precision))
        for part in truth.reliability
    ]
    yield table(title, ["confidence", ">mean", ">right (95 %, of judged)"], bins)


def verdict_tables(verdicts: Verdicts | None) -> Iterator[Table]:
    """What people's verdicts say by confidence, and what thresholds would keep."""
    if verdicts is None:
        return
    title = f"verdicts of people on {verdicts.judged:,} relations"
    bands = [(row.band.name, f"{row.band.relations:,}", str(row.precision)) for row in verdicts.bands]
    yield table(title, ["confidence", ">relations", ">right (95 %, of judged)"], bands)
    yield _curve("judged relations by threshold", verdicts.curve)


def _curve(title: str, curve: Sequence[Choice]) -> Table:
    rows = [(f"{choice.threshold:.2f}", f"{choice.kept:,}", str(choice.precision)) for choice in curve]
    return table(title, ["confidence ≥", ">kept", ">right (95 %, of kept)"], rows)
