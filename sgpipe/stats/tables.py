"""The audit as tables, also on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sgpipe.stats.audit import Audit, Comparison, error_text, name_text, percent, share_text
from sgpipe.stats.ground_truth import GroundTruthMeasures, PredicateThreshold
from sgpipe.stats.judged_precision import JudgementMeasures
from sgpipe.stats.measures import STAGES, TOTALS, Measures
from sgpipe.stats.precision import PrecisionEstimate
from sgpipe.stats.recall import RecallMeasures
from sgpipe.utils.console import count, single_line

if TYPE_CHECKING:
    from sgpipe.stats.doubts import Doubt, Doubts


_TOP = 15
_RAREST = 5
_PRECISION = ">precision (95% interval, judged)"


@dataclass(frozen=True)
class Table:
    """A table of both forms; heads that start with `>` are of numbers.

    `note`: a sentence below it.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(audit: Audit) -> dict[str, list[Table]]:
    """Return what both forms show, by section, without the health checks."""
    measure = audit.measures.threshold_of
    return {
        "counts": list(_counted(audit.measures)),
        "comparison": list(_compared(audit.comparison)),
        "confidence": [
            *_against_truth(audit.ground_truth, measure),
            *_judged(audit.judgements, measure),
            *_doubted(audit.doubts),
        ],
    }


def print_audit(audit: Audit, console: Console) -> None:
    """Print the answers to the four questions of an audit, and then its tables."""
    for question, group in groupby(audit.findings, lambda finding: finding.question):
        console.print(question, style="bold")
        for finding in group:
            console.print(f"  {single_line(finding.text)}", soft_wrap=True)
    for table in chain(*tables(audit).values(), _failed_checks(audit.measures)):
        heads = [head.removeprefix(">") for head in table.heads]
        printed = RichTable(title=Text(single_line(table.title)), show_header=any(heads))
        for head, name in zip(table.heads, heads, strict=True):
            printed.add_column(Text(name), justify="right" if head.startswith(">") else "left")
        for row in table.rows:
            printed.add_row(*(Text(single_line(cell)) for cell in row))
        console.print(printed)
        if table.note:
            console.print(single_line(table.note), soft_wrap=True)


def overview(measures: Measures) -> list[tuple[str, str, str]]:
    """Return the main counts and the yield of each stage, as images become relations."""
    rows = []
    for split, images in sorted(measures.images.items()):
        rows.append((f"images ({split})", f"{images:,}", ""))
    rows.append(("error rows", f"{sum(measures.errors.values()):,}", ""))
    for key, name in TOTALS.items():
        share = measures.yields.get(key)
        lost = measures.in_error_rows[key]
        remark = f"{lost:,} in error rows" if lost else ""
        if key == "described_objects":
            boxes = measures.totals["objects"] or 1
            remark = f"{share_text(measures.totals[key] / boxes)} of the boxes"
        elif share is not None:
            before = STAGES[STAGES.index(key) - 1].removesuffix("s").replace("_", " ")
            remark = f"{share:.2f} per {before}"
        rows.append((name, f"{measures.totals[key]:,}", remark))
    share_of_people = f"{measures.person_subject_share:.1%}"
    rows.append(("relations with a person as subject", share_of_people, ""))
    for name, number in measures.tokens.items():
        if number:
            rows.append((name.replace("_", " "), f"{number:,}", "of served models"))
    return rows


def _long_tail(measures: Measures) -> str:
    tail = measures.tail
    if tail.kinds == 1:
        return "All relations have the same predicate."
    half = count(tail.half, "most frequent predicate accounts", "most frequent predicates account")
    head = f", the 10 most frequent for {share_text(tail.head_share)}" if tail.kinds > 10 else ""
    rarest = ", ".join(map(name_text, list(measures.predicates)[: -_RAREST - 1 : -1]))
    return (
        f"The {half} for half of the relations{head}; {tail.singletons:,} of"
        f" {count(tail.kinds, 'predicate')} {'occurs' if tail.singletons == 1 else 'occur'} once."
        f" Gini {tail.gini:.2f}, entropy {tail.entropy:.1f} bits (like"
        f" {count(round(2**tail.entropy), 'equally frequent predicate')}). Rarest: {rarest}."
    )


def _counted(measures: Measures) -> Iterator[Table]:
    yield Table(f"run {measures.run or '(unnamed)'}", ["", ">", ""], overview(measures))
    if measures.confidence.scored:
        yield _by_threshold(measures)
    predicates = ("predicate", "predicates", "relations")
    yield from _most_frequent(measures.predicates, predicates, note=_long_tail(measures))
    yield from _most_frequent(measures.categories, ("class", "classes", "boxes"))
    attributes = ("attribute", "attributes", "boxes")
    yield from _most_frequent(measures.attributes, attributes, measures.totals["objects"])
    reasons = ("reason", "reasons", "images without relations")
    yield from _most_frequent(measures.without_relations, reasons)
    errors = {}
    for kind, number in measures.errors.items():
        errors[f"{kind}, such as {measures.error_examples[kind]}"] = number
    yield from _most_frequent(errors, ("error", "errors", "images"))
    if measures.triplets:
        yield _triplets(measures)


def _by_threshold(measures: Measures) -> Table:
    rows = []
    for level in measures.thresholds:
        numbers = (level.relations, level.predicate_kinds, level.images)
        means = ("–", "–")
        if level.relations:
            means = (f"{level.per_image:.2f}", f"{level.per_pair:.2f}")
        rows.append((f"{level.threshold:.2f}", *(f"{number:,}" for number in numbers), *means))
    heads = [">relations", ">predicate kinds", ">images", ">per image", ">per pair"]
    return Table("relations by threshold", [f"{measures.threshold_of} ≥", *heads], rows)


def _most_frequent(
    counts: Mapping[str, int],
    nouns: tuple[str, str, str],
    total: int | None = None,
    note: str = "",
) -> Iterator[Table]:
    """Yield a table of the most frequent names, if there are any.

    Args:
        counts: of each name, the most frequent first.
        nouns: what is counted, its plural, and what it is counted in.
        total: which shares are of; None: the sum of all counts.
        note: of the table.
    """
    if not counts:
        return
    singular, plural, unit = nouns
    total = total or sum(counts.values())
    rows = []
    for name, number in islice(counts.items(), _TOP):
        rows.append((name, f"{number:,}", f"{number / total:.1%}"))
    title = f"most frequent of {count(len(counts), singular, plural)}"
    yield Table(title, [singular, f">{unit}", ">share"], rows, note)


def _triplets(measures: Measures) -> Table:
    rows = []
    for triplet in measures.triplets[:_TOP]:
        names = (triplet.subject or "(missing)", triplet.predicate, triplet.object or "(missing)")
        mean = "–" if triplet.confidence is None else f"{triplet.confidence:.2f}"
        rows.append((*names, f"{triplet.relations:,}", mean))
    heads = ["subject", "predicate", "object", ">relations", ">mean confidence"]
    return Table(f"most frequent of {count(measures.triplet_kinds, 'triplet')}", heads, rows)


def _failed_checks(measures: Measures) -> Iterator[Table]:
    """For the terminal; the page shows all checks, with advice."""
    failed = [check for check in measures.health if check.count]
    if failed:
        rows = []
        for check in failed:
            share = f"{check.share:.1%} of {check.of}"
            text = ""
            for example in check.examples[:1]:
                text = f"{example.text} (image {example.image_id})"
            rows.append((check.title, f"{check.count:,}", share, text))
        title = f"health: {len(failed)} of {len(measures.health)} checks found problems"
        yield Table(title, ["problem", ">count", ">share", "example"], rows)


def _compared(comparison: Comparison | None) -> Iterator[Table]:
    if comparison is None:
        return
    heads = [f">{comparison.other}", ">this run"]
    rows: list[tuple[str, ...]] = []
    for name, (before, after) in comparison.counts.items():
        rows.append((name, f"{before:,}", f"{after:,}", _change(before, after)))
    yield Table("what changed", ["", *heads, ">change"], rows)
    only = f"{comparison.gained:,} only in this run, {comparison.lost:,} only in the other"
    title = f"predicates whose share changed most; {only}"
    yield Table(title, ["predicate", *heads], _share_rows(comparison.predicates))
    if comparison.health:
        rows = _share_rows(comparison.health)
        yield Table("health of both runs", ["check", *heads], rows)


def _change(before: int, after: int) -> str:
    if after == before:
        return "–"
    relative = f" ({(after - before) / before:+.0%})" if before else ""
    return f"{after - before:+,}{relative}"


def _share_rows(changes: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    return [(name, f"{before:.1%}", f"{after:.1%}") for name, (before, after) in changes.items()]


def _against_truth(truth: GroundTruthMeasures | None, measure: str) -> Iterator[Table]:
    if truth is None:
        return
    everything = PredicateThreshold("all", truth.relations, truth.precision, truth.suggested)
    rows: list[tuple[str, ...]] = []
    for row in (everything, *truth.predicates[:_TOP]):
        choice = ("not shown", "0")
        if row.suggested is not None:
            choice = (row.suggested.text, f"{row.suggested.kept:,}")
        rows.append((row.predicate, f"{row.relations:,}", str(row.at_threshold), *choice))
    heads = [
        "predicate",
        ">relations",
        f">precision at {truth.threshold:.2f}",
        ">threshold",
        ">keeps",
    ]
    title = f"thresholds for a precision of {percent(truth.target)}, by the ground truth of "
    note = "Each threshold is shown with 95% confidence by itself, not all of them together."
    yield Table(title + count(truth.images, "image"), heads, rows, note)
    title = "calibration"
    if truth.calibration_error is not None:
        title += f" (calibration error {error_text(truth.calibration_error, truth.perfect_error)})"
    rows = []
    for part in truth.reliability:
        span = f"{part.start:.1f} to {part.stop:.1f}"
        rows.append((span, f"{part.confidence:.2f}", str(part.precision)))
    yield Table(title, [measure, ">mean", _PRECISION], rows)


def _judged(judged: JudgementMeasures | None, measure: str) -> Iterator[Table]:
    if judged is None:
        return
    if judged.recall is not None and judged.recall.recall.value is not None:
        yield _recall(judged.recall)
    if not judged.precision.judged:
        return
    by_predicate = judged.strata == "predicates"
    strata = [(row.name, f"{row.relations:,}", str(row.precision)) for row in judged.bands]
    title = f"people judged {count(judged.precision.judged, 'relation')}"
    first = "predicate" if by_predicate else "confidence"
    yield Table(title, [first, ">relations", _PRECISION], strata)
    if not by_predicate:
        title = "precision by predicate, weighted by its relations in each band"
        yield Table(title, ["predicate", _PRECISION], _estimate_rows(judged.predicates))
    rows = []
    for choice in judged.curve:
        relations = f"{choice.relations or 0:,}"
        rows.append((f"{choice.threshold:.2f}", relations, str(choice.precision)))
    title = f"precision by threshold, weighted by the relations of {judged.strata}"
    yield Table(title, [f"{measure} ≥", ">relations", _PRECISION], rows)


def _recall(recall: RecallMeasures) -> Table:
    pairs = ("pairs of boxes, any predicate", str(recall.pairs))
    rows = [("all", str(recall.recall)), pairs, *_estimate_rows(recall.predicates)]
    heads = ["relations", ">recall (95% interval, named)"]
    return Table("recall of what people name", heads, rows)


def _estimate_rows(estimates: Mapping[str, PrecisionEstimate]) -> list[tuple[str, str]]:
    return [(name, str(estimate)) for name, estimate in islice(estimates.items(), _TOP)]


def _doubted(doubts: Doubts | None) -> Iterator[Table]:
    if doubts is None:
        return
    relations = count(doubts.relations, "annotated relation")
    title = f"the most improbable of {relations} of persons, by the layout model"
    yield _doubt_table(title, doubts.improbable)
    pairs = count(doubts.missing_count, "pair")
    note = "Probability: that the two boxes interact. The predicate is the likeliest."
    title = f"likely missing: {pairs} that nobody annotated"
    yield _doubt_table(title, doubts.missing, note)


def _doubt_table(title: str, doubts: Sequence[Doubt], note: str = "") -> Table:
    rows = []
    for doubt in doubts:
        subject = f"{doubt.subject_category} {_box_text(doubt.subject_box)}"
        thing = f"{doubt.object_category} {_box_text(doubt.object_box)}"
        image = f"{doubt.image_id} ({doubt.split})"
        rows.append((f"{doubt.probability:.4f}", image, subject, doubt.predicate, thing))
    heads = [">probability", "image", "subject (x, y, width, height)", "predicate", "object"]
    return Table(title, heads, rows, note)


def _box_text(box: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.0f}' for value in box)})"
