"""`sgpipe export`: a run in the forms that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgpipe import consoles


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run or an import.")],
    to: Annotated[str, typer.Option(help="hf (Hugging Face), coco, coco-rel (RelTR), vg, rlipv2 or hico.")],
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least confidence of relations; 0.2, and for hf none, if it is not given."),
    ] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Put the pictures into the rows (hf).")] = False,
    images: Annotated[Path | None, typer.Option(help="Picture folder for --embed, if the pictures moved.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run in another form.

    For the hub, COCO tools, scene-graph trainings, RLIPv2's or HICO-DET's.
    """
    import json

    from sgpipe.export.run import export_run

    written = export_run(run, to, out, threshold=threshold, images=images, embed=embed)
    if json_:
        print(json.dumps(written.as_json(), indent=2))
        return
    console = consoles.output()
    console.print(f"wrote {len(written.files):,} files into {out}", soft_wrap=True)
    for what, count in written.left_out.items():
        console.print(f"left out: {count:,} {what}", soft_wrap=True)
