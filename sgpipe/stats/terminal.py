"""Statistics as terminal tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby

from rich.console import Console
from rich.table import Table

from sgpipe.sources.fields import line
from sgpipe.stats.audit import Audit
from sgpipe.stats.health import Check
from sgpipe.stats.measures import TOTALS, Measures
from sgpipe.stats.terminal_tables import comparison_tables, table, truth_tables, verdict_tables

_TOP, _TAIL, _TRIPLETS = 15, 5, 10


def print_tables(found: Audit, console: Console) -> None:
    """The audit for a person."""
    measures = found.measures
    console.print(_overview(measures))
    console.print(_levels(measures))
    if measures.predicates:
        console.print(_ranking("predicate", "relations", measures.predicates))
        console.print(line(tail_sentence(measures)), soft_wrap=True)
        console.print(_triplets(measures))
    if measures.without_relations:
        console.print(_ranking("reason", "images without relations", measures.without_relations))
    if measures.errors:
        console.print(_ranking("error", "images", measures.errors))
    console.print(_health(measures))
    for extra in (*comparison_tables(found.comparison), *truth_tables(found.truth), *verdict_tables(found.verdicts)):
        console.print(extra)
    for question, group in groupby(found.findings, lambda finding: finding.question):
        console.print(question, style="bold")
        for finding in group:
            console.print(f"  {line(finding.text)}", soft_wrap=True)


def print_json(found: Audit) -> None:
    """The audit for a program, on standard output."""
    print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))


def overview(measures: Measures) -> list[tuple[str, str, str]]:
    """The first counts to look at, in the order in which images become relations, and what each stage yields."""
    images = [(f"images ({split})", f"{count:,}", "") for split, count in sorted(measures.images.items())]
    errors = ("error rows", f"{sum(measures.errors.values()):,}", "")
    counts = [(name, f"{measures.totals[key]:,}", _each(measures, key)) for key, name in TOTALS.items()]
    return [
        *images,
        errors,
        *counts,
        ("relations with a person as subject", f"{measures.person_subject_share:.1%}", ""),
    ]


_BEFORE = {
    "triplets": "caption",
    "matched_triplets": "triplet",
    "candidate_texts": "matched triplet",
    "relations": "candidate text",
    "kept_relations": "relation",
}


def _each(measures: Measures, key: str) -> str:
    share = measures.yields.get(key)
    return "" if share is None else f"{share:.2f} per {_BEFORE[key]}"


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
    return table(f"run {measures.run or '(unnamed)'}", ["", ">", ""], overview(measures))


def _levels(measures: Measures) -> Table:
    names = [
        "confidence ≥",
        *(f">{name}" for name in ("relations", "predicate kinds", "images", "per image", "per pair")),
    ]
    rows = []
    for level in measures.thresholds:
        means = (f"{mean:.2f}" if level.relations else "-" for mean in (level.per_image, level.per_pair))
        counts = (f"{count:,}" for count in (level.relations, level.predicate_kinds, level.images))
        rows.append((f"{level.threshold:.2f}", *counts, *means))
    return table("relations by threshold", names, rows)


def _ranking(what: str, unit: str, counts: Mapping[str, int]) -> Table:
    total = sum(counts.values())
    rows = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in list(counts.items())[:_TOP]]
    return table(f"most frequent of {len(counts):,} {what}s", [what, f">{unit}", ">share"], rows)


def _triplets(measures: Measures) -> Table:
    rows = [
        (t.subject, t.predicate, t.object, f"{t.relations:,}", "-" if t.confidence is None else f"{t.confidence:.2f}")
        for t in measures.triplets[:_TRIPLETS]
    ]
    names = ["subject", "predicate", "object", ">relations", ">mean confidence"]
    return table(f"most frequent of {measures.triplet_kinds:,} triplets", names, rows)


def _health(measures: Measures) -> Table | str:
    found = [check for check in measures.health if check.count]
    if not any(check.total for check in measures.health):
        return "There is nothing to check."
    if not found:
        return f"All {len(measures.health)} health checks found nothing."
    rows = [(check.title, f"{check.count:,}", f"{check.share:.1%} of {check.of}", _example(check)) for check in found]
    title = f"health: {len(found)} of {len(measures.health)} checks found something"
    return table(title, ["what to look at", ">count", ">share", "example"], rows)


def _example(check: Check) -> str:
    return f"{check.examples[0].text} (image {check.examples[0].image_id})" if check.examples else ""
