"""The last screen of a run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgpipe.summary import Summary

_PROBLEMS = {
    "crowd": "crowd boxes kept out of pairs",
    "degenerate": "boxes without area dropped",
    "clipped": "boxes clipped to their image",
    "duplicate_boxes": "duplicate boxes dropped",
    "duplicate_images": "repeated image ids ignored",
    "unknown_category": "boxes of undefined categories dropped",
    "unknown_image": "boxes of unlisted images dropped",
    "unsized_image": "boxes of images without a size dropped",
    "malformed": "unreadable annotations dropped",
}


def print_summary(summary: Summary, console: Console) -> None:
    """What the run holds, what was set aside, and where to go on."""
    counts = summary.counts
    table = Table(title=Text(str(summary.root)), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    images = f"{counts['images']:,} of {max(summary.planned, counts['images']):,}"
    table.add_row("images", images)
    for name in ("errors", "boxes", "captions", "triplets", "matched_triplets", "pairs", "relations"):
        table.add_row(name.replace("_", " "), f"{counts[name]:,}")
    table.add_row("images with relations", f"{counts['images_with_relations']:,}")
    for name, count in summary.problems.items():
        if count:
            table.add_row(f"source: {_PROBLEMS[name]}", f"{count:,}")
    table.add_row("shards", f"{summary.shards:,}")
    console.print(table)
    total = sum(summary.seconds.values())
    if total:
        shares = ", ".join(f"{name} {s / total:.0%}" for name, s in summary.seconds.items())
        console.print(f"time in stages: {total:.1f} s ({shares})", soft_wrap=True)
    if summary.note:
        console.print(f"NOTE: {summary.note}", soft_wrap=True)
    if counts["errors"]:
        console.print(
            f"{counts['errors']:,} error rows: `sgpipe stats {summary.root}` says why, --retry-failed tries again"
        )
