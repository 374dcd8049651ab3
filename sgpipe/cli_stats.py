"""`sgpipe stats`: what a run holds, as tables, JSON and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def stats(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="PNG to draw pictures with their relations into.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 20,
    threshold: Annotated[float, typer.Option(help="Confidence of the relations that are drawn.")] = 0.2,
    images: Annotated[Path | None, typer.Option(help="Picture folder, if the pictures moved.")] = None,
) -> None:
    """Count what a run holds: images, errors, relations by threshold, predicates."""
    from sgpipe.stats.measures import measure
    from sgpipe.stats.sheet import write_sheet
    from sgpipe.stats.terminal import print_json, print_tables

    out, err = (Console(markup=False, highlight=False, stderr=stderr) for stderr in (False, True))
    measures = measure(run)
    if json_:
        print_json(measures)
    else:
        print_tables(measures, out)
    if sheet is not None:
        drawn = write_sheet(run, sheet, pictures, threshold, images)
        err.print(f"drew {drawn} pictures into {sheet}", soft_wrap=True)
