"""`sgpipe merge`: several runs as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

_MERGE_NOTES = (
    ("different", "name", "of several images, whose sizes or files differ; all are kept"),
    ("replaced", "error row", "left out, as another run has the image"),
    ("failed", "error row", "kept, as no run has the image"),
    ("unread", "image file", "cannot be read, and could not be compared"),
    (
        "returned_relations",
        "relation",
        (
            "that a corrected run has no more, from the run that it corrects; --prefer CORRECTED"
            " leaves such ones out"
        ),
    ),
    (
        "overruled_relations",
        "relation",
        "of other runs left out, as the preferred run has the image",
    ),
)


def merge(
    runs: Annotated[
        list[cli.Place],
        cli.stored_argument("Folders of runs or imports, or their object stores.", "RUN"),
    ],
    out: Annotated[
        Path, cli.writes_folder("Folder for the merged run; an unfinished one is resumed.")
    ],
    match: Annotated[
        Literal["file", "id", "hash"], cli.option("What images of several runs have in common.")
    ] = "file",
    iou: Annotated[
        float, cli.option("IoU from which boxes of a class are one object.", min=0.1, max=1)
    ] = 0.6,
    prefer: Annotated[
        cli.Place | None, cli.reads_stored("RUN whose relations count alone for its images.")
    ] = None,
    images: cli.MovedImages = None,
    json_: cli.Json = False,
) -> None:
    """Merge runs: objects and relations of the same images are united.

    Images of only one run are taken over. The order of the runs does not matter.
    With --prefer, images of that run have its relations and no others.

    Examples:
      sgpipe merge annotated/ coco-relations/ --out merged/
      sgpipe merge corrected/ coco-relations/ --prefer corrected/ --out merged/
      sgpipe merge vg/ coco/ s3://bucket/labels --match hash --out merged/
    """
    from sgpipe.generation.merging import MERGED, UNITED, merge_runs
    from sgpipe.storage.manifest import add_up

    if len(runs) < 2:
        raise UserError("merge needs two runs or more: sgpipe merge RUN RUN --out NEW")
    manifest = merge_runs(runs, out, console.Progress(), match, iou, images, prefer)
    summary = add_up(manifest, 0, {})
    counts = summary.counts
    cli.say_losses(summary.losses)
    matched: dict[str, int] = manifest.run["matched"]
    united = {what: counts[f"{MERGED}{what}"] for what in UNITED}
    if cli.printed_json(
        json_, {"root": str(out), "shards": len(manifest.shards)} | matched | united
    ):
        return
    counted = ", ".join(
        f"{number:,} {what.replace('_', ' ')}" for what, number in united.items() if number
    )
    size = (
        f"{count(matched['images'], 'image')}, {matched['shared']:,} of them in several runs (by"
        f" {match})"
    )
    cli.show(f"{out}: {size}; {counted or 'nothing united'}")
    if not matched["shared"]:
        cli.say(
            "NOTE: no image is in two runs, so they are only put together; --match says how images"
            " are compared"
        )
    numbers = matched | united
    for what, noun, note in _MERGE_NOTES:
        if numbers.get(what):
            cli.say(f"NOTE: {count(numbers[what], noun)} {note}")
    splits = {split for run in manifest.run["runs"].values() for split in run["images"]}
    for split in sorted({*manifest.run["images"]} - splits):
        place = manifest.run["images"][split]
        cli.say(
            f"NOTE: split {split} has the images in {place}, and those with an id that the split"
            " has already"
        )
