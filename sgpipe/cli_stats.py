"""`sgpipe stats`: what a run holds, as tables, JSON, pictures and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def stats(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    html: Annotated[Path | None, typer.Option(help="HTML file for the whole report, with a gallery.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG to draw pictures with their relations into.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many pictures in the gallery or on the sheet.")] = 20,
    threshold: Annotated[float, typer.Option(help="Confidence of the relations that are checked and drawn.")] = 0.2,
    images: Annotated[Path | None, typer.Option(help="Picture folder, if the pictures moved.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another run to compare with, for --html.")] = None,
) -> None:
    """Count what a run holds, check its health, and show it."""
    from sgpipe.stats.compare import compare as compare_measures
    from sgpipe.stats.database import open_run
    from sgpipe.stats.gallery import cards
    from sgpipe.stats.html import write_report
    from sgpipe.stats.measures import measure, measure_database
    from sgpipe.stats.sheet import write_sheet
    from sgpipe.stats.terminal import print_json, print_tables

    out, err = (Console(markup=False, highlight=False, stderr=stderr) for stderr in (False, True))
    with open_run(run) as database:
        measures = measure_database(database, threshold)
        gallery = list(cards(database, pictures, threshold, images)) if html else []
    if json_:
        print_json(measures)
    else:
        print_tables(measures, out)
    if html is not None:
        comparison = compare_measures(measure(compare, threshold), measures) if compare else None
        write_report(html, measures, gallery, threshold, comparison)
        err.print(f"wrote {html}", soft_wrap=True)
    if sheet is not None:
        drawn = write_sheet(run, sheet, pictures, threshold, images)
        err.print(f"drew {drawn} pictures into {sheet}", soft_wrap=True)
