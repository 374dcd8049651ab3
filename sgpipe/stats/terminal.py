"""Statistics as terminal tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpipe.stats.audit import Audit
from sgpipe.stats.health import Check
from sgpipe.stats.measures import Measures
from sgpipe.stats.truth import TruthMeasures
from sgpipe.stats.verdicts import Verdicts

_TOP, _TAIL, _TRIPLETS = 15, 5, 10


def print_tables(found: Audit, console: Console) -> None:
    """The audit for a person."""
    measures = found.measures
    console.print(_overview(measures))
    console.print(_levels(measures))
    if measures.predicates:
        console.print(_ranking("predicate", "relations", measures.predicates))
        console.print(tail_sentence(measures), soft_wrap=True)
        console.print(_triplets(measures))
    if measures.without_relations:
        console.print(_ranking("reason", "images without relations", measures.without_relations))
    if measures.errors:
        console.print(_ranking("error", "images", measures.errors))
    console.print(_health(measures))
    if found.truth is not None:
        console.print(_truth(found.truth))
    if found.verdicts is not None:
        console.print(_verdicts(found.verdicts))
    for question, group in groupby(found.findings, lambda finding: finding.question):
        console.print(question, style="bold")
        for finding in group:
            console.print(f"  {finding.text}", soft_wrap=True)


def print_json(found: Audit) -> None:
    """The audit for a program, on standard output."""
    print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))


def overview(measures: Measures) -> dict[str, int]:
    """The first counts to look at, in the order in which images become relations."""
    totals = measures.totals
    return {
        **{f"images ({split})": count for split, count in sorted(measures.images.items())},
        "error rows": sum(measures.errors.values()),
        "boxes": totals["objects"],
        "captions": totals["captions"],
        "different captions": totals["distinct_captions"],
        "triplets parsed": totals["triplets"],
        "triplets with both ends matched": totals["matched_triplets"],
        "candidate pairs": totals["pairs"],
        "candidate relation texts": totals["candidate_texts"],
        "relations": totals["relations"],
        "images without relations": totals["images_without_relations"],
    }


def tail_sentence(measures: Measures) -> str:
    """How uneven the predicates are, in words."""
    tail = measures.tail
    rare = ", ".join(list(measures.predicates)[: -_TAIL - 1 : -1])
    return (
        f"The 10 most frequent predicates have {tail.head_share:.0%} of the relations, {tail.half:,} have half; "
        f"{tail.singletons:,} of {tail.kinds:,} occur once. Gini {tail.gini:.2f}, "
        f"entropy {tail.entropy:.1f} bits (as {tail.effective_kinds:.0f} equally frequent ones). Rarest: {rare}."
    )


def _overview(measures: Measures) -> Table:
    table = Table(title=Text(f"run {measures.run or '(unnamed)'}"), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in overview(measures).items():
        table.add_row(name, f"{count:,}")
    table.add_row("relations with a person as subject", f"{measures.person_subject_share:.1%}")
    return table


def _levels(measures: Measures) -> Table:
    table = Table("confidence ≥", title="relations by threshold")
    for name in ("relations", "predicate kinds", "images", "per image", "per pair"):
        table.add_column(name, justify="right")
    for level in measures.thresholds:
        means = (f"{mean:.2f}" if level.relations else "-" for mean in (level.per_image, level.per_pair))
        counts = (f"{count:,}" for count in (level.relations, level.predicate_kinds, level.images))
        table.add_row(f"{level.threshold:.2f}", *counts, *means)
    return table


def _ranking(what: str, unit: str, counts: Mapping[str, int]) -> Table:
    table = Table(what, title=f"most frequent of {len(counts):,} {what}s")
    table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    total = sum(counts.values())
    for name, count in list(counts.items())[:_TOP]:
        table.add_row(Text(name), f"{count:,}", f"{count / total:.1%}")
    return table


def _triplets(measures: Measures) -> Table:
    table = Table("subject", "predicate", "object", title=f"most frequent of {measures.triplet_kinds:,} triplets")
    for name in ("relations", "mean confidence"):
        table.add_column(name, justify="right")
    for triplet in measures.triplets[:_TRIPLETS]:
        confidence = "-" if triplet.confidence is None else f"{triplet.confidence:.2f}"
        words = (Text(word) for word in (triplet.subject, triplet.predicate, triplet.object))
        table.add_row(*words, f"{triplet.relations:,}", confidence)
    return table


def _health(measures: Measures) -> Table | str:
    found = [check for check in measures.health if check.count]
    if not found:
        return f"All {len(measures.health)} health checks found nothing."
    table = Table("what to look at", title=f"health: {len(found)} of {len(measures.health)} checks found something")
    for name in ("count", "share"):
        table.add_column(name, justify="right")
    table.add_column("example")
    for check in found:
        table.add_row(Text(check.title), f"{check.count:,}", f"{check.share:.1%} of {check.of}", Text(_example(check)))
    return table


def _example(check: Check) -> str:
    return f"{check.examples[0].text} (image {check.examples[0].image_id})" if check.examples else ""


def _truth(truth: TruthMeasures) -> Table:
    title = f"thresholds for a precision of {truth.target:.0%}, by the truth of {truth.images:,} images"
    table = Table("predicate", title=title)
    for name in ("relations", f"precision at {truth.threshold:.2f}", "threshold", "keeps"):
        table.add_column(name, justify="right")
    rows = [("all", truth.relations, truth.precision, truth.suggested)]
    rows += [(row.predicate, row.relations, row.at_threshold, row.suggested) for row in truth.predicates[:_TOP]]
    for predicate, relations, precision, suggested in rows:
        choice = ("none", "0") if suggested is None else (f"{suggested.threshold:.3f}", f"{suggested.kept:,}")
        table.add_row(Text(predicate), f"{relations:,}", str(precision), *choice)
    return table


def _verdicts(verdicts: Verdicts) -> Table:
    table = Table("confidence", title=f"verdicts of people on {verdicts.judged:,} relations")
    for name in ("relations", "right (95 %, of judged)"):
        table.add_column(name, justify="right")
    for row in verdicts.bands:
        table.add_row(row.band.name, f"{row.band.relations:,}", str(row.precision))
    return table
