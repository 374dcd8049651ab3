"""Statistics as terminal tables and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpipe.stats.measures import Measures

_TOP = 15


def print_tables(measures: Measures, console: Console) -> None:
    """The counts for a person."""
    console.print(_overview(measures))
    console.print(_levels(measures))
    if measures.predicates:
        console.print(_ranking("predicate", "relations", measures.predicates))
    if measures.errors:
        console.print(_ranking("error", "images", measures.errors))
    if measures.note:
        console.print(f"NOTE: {measures.note}", soft_wrap=True)


def print_json(measures: Measures) -> None:
    """The counts for a program, on standard output."""
    print(json.dumps(as_dict(measures), indent=1, ensure_ascii=False))


def as_dict(measures: Measures) -> dict[str, Any]:
    """The measures as plain values."""
    return {
        "run": measures.run,
        "fingerprint": measures.fingerprint,
        "note": measures.note,
        "images": dict(measures.images),
        "errors": dict(measures.errors.most_common()),
        "totals": dict(measures.totals),
        "predicates": dict(measures.predicates.most_common()),
        "categories": dict(measures.categories.most_common()),
        "thresholds": [
            {
                "threshold": threshold,
                "relations": level.relations,
                "images": level.images,
                "predicate_kinds": len(level.predicates),
            }
            for threshold, level in measures.levels.items()
        ],
    }


def _overview(measures: Measures) -> Table:
    table = Table(title=Text(f"run {measures.run or '(unnamed)'}"), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        **{f"images ({split})": count for split, count in sorted(measures.images.items())},
        "error rows": measures.errors.total(),
        "boxes": measures.totals["objects"],
        "captions": measures.totals["captions"],
        "triplets parsed": measures.totals["triplets"],
        "triplets with both ends matched": measures.totals["matched_triplets"],
        "candidate pairs": measures.totals["pairs"],
        "relations": measures.totals["relations"],
        "images without relations": measures.totals["images_without_relations"],
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    return table


def _levels(measures: Measures) -> Table:
    table = Table("confidence ≥", title="relations by threshold")
    for name in ("relations", "predicate kinds", "images", "per image"):
        table.add_column(name, justify="right")
    for threshold, level in measures.levels.items():
        mean = f"{level.relations / level.images:.1f}" if level.images else "-"
        kinds = f"{len(level.predicates):,}"
        table.add_row(f"{threshold:.2f}", f"{level.relations:,}", kinds, f"{level.images:,}", mean)
    return table


def _ranking(what: str, unit: str, counts: Counter[str]) -> Table:
    table = Table(what, title=f"most frequent of {len(counts):,} {what}s")
    table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    for name, count in counts.most_common(_TOP):
        table.add_row(Text(name), f"{count:,}", f"{count / counts.total():.1%}")
    return table
