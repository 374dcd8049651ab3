"""The summary at the end of `make demo`: what was created, how good it is, and where to find it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.command import run_command
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality import print_run_quality, run_quality
from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.training.metrics import read_metrics

LABELS = "labels"
TAGGER = "tagger"
REPORT = "report.html"
SHEET = "images.png"


def main(out: Annotated[Path, typer.Argument(help="folder of the demo")]) -> None:
    """Print the summary of `make demo`."""
    console = Console(markup=False, highlight=False)
    counts = add_up(Manifest.load(out / LABELS), 0, {}).counts
    quality = run_quality(out / LABELS)
    losses = [row["loss"] for row in read_metrics(out / TAGGER) if row["event"] == "step"]
    if not quality or not losses:
        raise UserError(
            f"{out} is not a folder of `make demo`: it needs a labelled miniworld and a training"
            " on it"
        )
    console.print(
        f"\nFor {counts['images']:,} synthetic images a tiny BLIP generated {counts['captions']:,}"
        f" captions. The parser extracted {counts['triplets']:,} triplets, and the tagger labelled"
        f" {counts['relations']:,} relations.",
        soft_wrap=True,
    )
    print_run_quality(quality, console, predicates=False)
    console.print(
        "Precision: share of labelled relations that are correct. Recall: share of the relations"
        " composed in the images that are labelled. A new tagger was trained on the labels: its"
        f" loss fell from {losses[0]:.1f} to {losses[-1]:.1f}.\n\nResults\n  {out / SHEET}   "
        f" images with their relations\n  {out / REPORT}   the audit of the labels; open it in a"
        f" browser\n  {out / LABELS}        the Parquet shards; `sgpipe stats {out / LABELS}`"
        f" summarises them\n  {out / TAGGER}        the new tagger",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)
