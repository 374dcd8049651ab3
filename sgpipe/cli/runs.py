"""`sgpipe verify`, `sgpipe fetch` and `sgpipe export`: check, download and convert a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import Json, MovedImages, Run
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.storage.verify import Verification


def verify(
    run: Run,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the next run regenerates it.")
    ] = False,
    json_: Json = False,
) -> None:
    """Check every byte and every row of a run.

    Lists the problems; the exit code is 1 if there are any.
    """
    import json

    from sgpipe.storage.verify import verify as check

    with console.Progress(console.progress()).images(None, "verifying") as advance:
        verification = check(run, repair=repair, advance=advance)
    if json_:
        print(json.dumps(verification.as_json(), indent=2))
    else:
        screen = console.output()
        for problem in verification.problems:
            screen.print(f"{problem.file}: {problem.problem}", soft_wrap=True)
        screen.print(_verdict(verification), soft_wrap=True)
    if not verification.ok:
        raise typer.Exit(console.EXIT_FAILED)


def _verdict(verification: Verification) -> str:
    size = _size(verification.images, verification.shards)
    running = " so far; a run is in progress" if verification.at_work else ""
    if not verification.problems:
        return f"{verification.root}: {size}, no problems found{running}"
    if verification.repaired:
        return f"{verification.root}: repaired; run the command that wrote it again to regenerate what is missing"
    problems = count(len(verification.problems), "problem")
    return f"{verification.root}: {problems} in {size}{running}; --repair removes what is damaged"


def _size(images: int, shards: int) -> str:
    return f"{count(images, 'image')} in {count(shards, 'shard')}"


def fetch(
    store: Annotated[str, typer.Argument(help="Object store of a run, such as s3://bucket/labels.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; files that are already there are kept.")],
) -> None:
    """Download a run from an object store.

    After that, stats, verify, export and train can read it.
    """
    from sgpipe.storage.mirror import fetch as download
    from sgpipe.storage.storage import ObjectStore

    with console.Progress(console.progress()).images(None, "fetching") as advance:
        manifest = download(ObjectStore(store), out, advance)
    images = sum(shard.rows for shard in manifest.shards)
    console.output().print(f"{out}: {_size(images, len(manifest.shards))}", soft_wrap=True)


def export(
    run: Run,
    to: Annotated[str, typer.Option(help="Format: hf (Hugging Face), coco, coco-rel (RelTR), vg, rlipv2 or hico.")],
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Minimum confidence of relations. Default: 0.2; all relations for hf."),
    ] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Store the images in the rows (hf).")] = False,
    images: MovedImages = None,
    json_: Json = False,
) -> None:
    """Convert a run to another format.

    For the Hugging Face hub, COCO tools, scene-graph models, RLIPv2 or HICO-DET.
    """
    import json

    from sgpipe.export.run import export_run

    written = export_run(run, to, out, threshold=threshold, images=images, embed=embed)
    if json_:
        print(json.dumps(written.as_json(), indent=2))
        return
    screen = console.output()
    screen.print(f"wrote {count(len(written.files), 'file')} to {out}", soft_wrap=True)
    for what, number in written.left_out.items():
        screen.print(f"left out: {number:,} {what}", soft_wrap=True)
