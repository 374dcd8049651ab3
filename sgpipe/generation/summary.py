"""The screen at the end of a run or an import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sgpipe.records import LEFT_OUT
from sgpipe.storage.manifest import Summary
from sgpipe.utils.console import count, duration, listed, print_rows

if TYPE_CHECKING:
    from sgpipe.generation.plan import Plan

_PROBLEMS = {  # of a source; the other names are clear by themselves
    "crowd": "crowd boxes, which get no pairs",
    "degenerate": "boxes without area",
    "clipped": "boxes clipped to their image",
    "unsized_image": "boxes of images without a size",
    "malformed": "unreadable annotations",
    "unread_files": "files that are not images",
    "compositions": "captions of groups of objects",
    "segmentations": "segmentations that are neither polygons nor run lengths of the image",
    "nameless": "objects and relations without a name",
    "ignored_relations": "relations, which `sgpipe import coco-rel` reads",
}
_COUNTED = ("errors", "boxes", "captions", "triplets", "matched_triplets", "pairs", "relations")


def print_summary(summary: Summary, console: Console) -> None:
    """Print what a run contains, what was dropped, and what to do about error rows."""
    rows = {name.replace("_", " "): summary.counts[name] for name in _COUNTED}
    rows |= {"boxes of words": summary.counts["grounded"]} if summary.counts["grounded"] else {}
    _print_table(summary, rows | {"images with relations": summary.counts["images_with_relations"]}, console)
    if summary.parent:
        console.print(Text(f"{listed(summary.parent['reused'])} from {summary.parent['run']}"), soft_wrap=True)
    total = sum(summary.seconds.values())
    if total:
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary.seconds.items())
        console.print(f"time in stages: {total:.1f} s ({shares})", soft_wrap=True)
    _print_errors(summary, console)


def print_import(summary: Summary, predicates: int, console: Console) -> None:
    """Print what an import contains, and what was dropped; `predicates`: the number of different ones."""
    counts = summary.counts
    rows = {"error rows": counts["errors"], "objects": counts["boxes"], "relations": counts["relations"]}
    rows |= {"different predicates": predicates, "images with relations": counts["images_with_relations"]}
    _print_table(summary, rows, console)
    _print_errors(summary, console)


def print_plan(plan: Plan, console: Console, machines: int, *prices: float | None) -> None:
    """Print what a run will take; `prices`: of an hour and a token."""
    values = plan.as_json(machines, *prices)
    expected, least, most = plan.errors
    driver, worker = plan.memory
    gpus, on = f", {count(plan.gpus, 'GPU')} each" if plan.gpus else "", dict.fromkeys(plan.utilization, " on GPUs")
    rows = {
        "images": f"{plan.images:,}",
        f"time on {count(machines, 'machine')} like this{gpus}": duration(values["seconds"]),
        "images per second": f"{values['images_per_second']:.3g}",
        "time until models are loaded": duration(plan.start),
        "seconds per image": ", ".join(f"{name} {each:.3g}{on.get(name, '')}" for name, each in plan.stages.items()),
        "slowest stage": values["bottleneck"],
        "disk": f"{values['disk_bytes'] / 1e6:,.1f} MB",
        "memory": f"driver {driver / 1e9:.1f} GB" + ("" if worker is None else f", a worker {worker / 1e9:.1f} GB"),
        "error rows": f"about {expected:,} ({least:,} to {most:,})",
    }
    if worker is None:
        rows["balanced actors"] = ", ".join(f"{name} {number}" for name, number in values["balanced_actors"].items())
    if plan.tokens:
        rows["tokens of the endpoint"] = f"{plan.tokens:,}"
    if "price" in values:
        rows["price"] = f"{values['price']:,.2f}"
    print_rows(f"plan, from {count(plan.sampled, 'image')}", rows, console)
    console.print(Text(f"GPUs: {values['gpu_advice']}"), soft_wrap=True)


def _print_table(summary: Summary, rows: dict[str, int], console: Console) -> None:
    images = summary.counts["images"]
    texts = {"images": f"{images:,} of {max(summary.planned, images):,}"}
    named = {_PROBLEMS.get(name, name.replace("_", " ")): number for name, number in summary.problems.items()}
    problems = {f"source: {what}": number for what, number in named.items() if number}
    beyond = {f"left out: {what}": summary.counts[f"{name}_left_out"] for name, what in LEFT_OUT.items()}
    problems |= {what: number for what, number in beyond.items() if number}
    texts |= {name: f"{number:,}" for name, number in {**rows, **problems, "shards": summary.shards}.items()}
    print_rows(str(summary.root), texts, console)


def _print_errors(summary: Summary, console: Console) -> None:
    if errors := summary.counts["errors"]:
        reasons = f"`sgpipe stats {summary.root}` lists the reasons"
        console.print(f"{count(errors, 'error row')}: {reasons}, --retry-failed tries again", soft_wrap=True)
