"""`sgpipe merge`: several runs as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.storage.manifest import Manifest

_NOTES = (
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
        list[declare.Place],
        declare.stored_argument(
            "Folders of runs or imports, their object stores, or patterns of these.",
            "RUN",
            declare.stored_runs,
        ),
    ],
    out: Annotated[
        Path, declare.writes_folder("Folder for the merged run; an unfinished one is resumed.")
    ],
    match: Annotated[
        Literal["file", "id", "hash"], declare.option("What images of several runs have in common.")
    ] = "file",
    iou: Annotated[
        float, declare.option("IoU from which boxes of a class are one object.", min=0.1, max=1)
    ] = 0.6,
    prefer: Annotated[
        declare.Place | None,
        declare.reads_stored("RUN whose relations count alone for its images."),
    ] = None,
    images: cli.MovedImages = None,
    workers: cli.Processes = None,
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
    from sgpipe.utils.processes import usable_cpus

    if len(runs) < 2:
        raise UserError("merge needs two runs or more: sgpipe merge RUN RUN --out NEW")
    manifest = merge_runs(
        runs, out, console.Progress(), match, iou, images, prefer, workers or usable_cpus()
    )
    summary = add_up(manifest, 0, {})
    counts = summary.counts
    cli.say_losses(summary.losses)
    matched: dict[str, int] = manifest.run["matched"]
    united = {column: counts[f"{MERGED}{column}"] for column in UNITED}
    numbers = matched | united
    values = {"root": str(out), "shards": len(manifest.shards)} | numbers
    if not cli.printed_json(json_, values):
        _show_merged(out, match, matched, united)
        _say_notes(numbers)
        _say_shared_splits(manifest)


def _show_merged(
    out: Path, match: str, matched: Mapping[str, int], united: Mapping[str, int]
) -> None:
    """Print how large the merged run is, and what became one in it."""
    size = (
        f"{count(matched['images'], 'image')}, {matched['shared']:,} of them in several runs (by"
        f" {match})"
    )
    parts = [
        f"{number:,} {column.replace('_', ' ')}" for column, number in united.items() if number
    ]
    cli.show(f"{out}: {size}; {', '.join(parts) or 'nothing united'}")
    if not matched["shared"]:
        cli.say(
            "NOTE: no image is in two runs, so they are only put together; --match says how images"
            " are compared"
        )


def _say_notes(numbers: Mapping[str, int]) -> None:
    for column, noun, note in _NOTES:
        if numbers.get(column):
            cli.say(f"NOTE: {count(numbers[column], noun)} {note}")


def _say_shared_splits(manifest: Manifest) -> None:
    """Print which splits are new, as several runs have the id of one of their images."""
    splits = set[str]()
    for run in manifest.run["runs"].values():
        splits.update(run["images"])
    images = manifest.run["images"]
    for split in sorted(images.keys() - splits):
        cli.say(
            f"NOTE: split {split} has the images in {images[split]}, and those with an id that the"
            " split has already"
        )
