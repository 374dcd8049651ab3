"""The last screen of `make demo`: what was made, how good it is, and where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality.report import known_quality, print_quality
from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.training.metrics import read_metrics
from sgpipe.utils.console import run_command

LABELS, TAGGER, REPORT, SHEET = "labels", "tagger", "report.html", "images.png"


def main(out: Annotated[Path, typer.Argument(help="folder of the demo")]) -> None:
    """Say what `make demo` made."""
    console = Console(markup=False, highlight=False)
    counts = add_up(Manifest.load(out / LABELS), 0, {}).counts
    quality = known_quality(out / LABELS)
    losses = [row["loss"] for row in read_metrics(out / TAGGER) if row["event"] == "step"]
    if not quality or not losses:
        raise UserError(f"{out} is not what `make demo` makes: it takes drawn labels and a training on them")
    console.print(
        f"\n{counts['images']:,} images were drawn, described by {counts['captions']:,} captions of a tiny BLIP, and "
        f"the {counts['triplets']:,} triplets parsed from them tagged to {counts['relations']:,} relations of boxes.",
        soft_wrap=True,
    )
    print_quality(quality, console, predicates=False)
    console.print(
        f"Precision: so many of the labels are true. Recall: so many of the relations that the images were made to "
        f"show are labelled. A new tagger was trained on the labels: loss {losses[0]:.1f} at first, {losses[-1]:.1f} "
        f"in the end.\n\nLook at\n"
        f"  {out / SHEET}   images with their relations drawn\n"
        f"  {out / REPORT}    the audit of the labels; open it in a browser\n"
        f"  {out / LABELS}         the Parquet shards; `sgpipe stats {out / LABELS}` counts them\n"
        f"  {out / TAGGER}         the new tagger",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)
