"""`sgpipe reproduce`: a paper as a list of commands, from its downloads to its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sgpipe.cli import options as cli
from sgpipe.utils import console


def reproduce(
    ctx: typer.Context,
    paper: Annotated[Literal["rlipv2"], typer.Argument(help="The paper.")],
    out: Annotated[
        Path, cli.writes_folder("Folder for everything; steps that are done are skipped.")
    ],
    data: Annotated[
        Path | None, cli.option("Folder of datasets and weights.", exists=True, file_okay=False)
    ] = None,
    scale: Annotated[
        Literal["published", "one-gpu", "miniature"], cli.option("miniature: no data.")
    ] = "published",
    until: Annotated[str | None, cli.option("Last step to run.")] = None,
    dry_run: Annotated[
        bool, cli.option("Only print the commands and what is missing.", "--dry-run")
    ] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Reproduce a paper: run a list of sgpipe commands, from its downloads to its tables.

    The same command resumes it. Ends with a table beside the published figures,
    and OUT/report.html with the curves of all trainings.

    Examples:
      sgpipe reproduce rlipv2 --scale miniature --out small/
      sgpipe reproduce rlipv2 --scale one-gpu --data downloads/ --out rlipv2/
    """
    from rich.table import Table

    from sgpipe.cli import reproduction as steps

    loaded = steps.load_reproduction(paper, scale, assign or [])
    tasks = steps.make_tasks(loaded, data or Path("DATA"), out, until)
    root: Any = ctx.find_root().command
    if dry_run:
        shown = [
            {**vars(task.step), "command": task.command, "missing": task.missing} for task in tasks
        ]
        if not cli.printed_json(json_, {"note": loaded.note, "steps": shown}):
            cli.show(f"{loaded.title}. {loaded.note}")
            for number, task in enumerate(tasks, 1):
                cli.show(f"[{number}/{len(tasks)}] {task.step.name}: {task.step.gives}")
                cli.show(
                    "\n".join(
                        [f"  {task.command}", *(f"  missing: {file}" for file in task.missing)]
                    )
                )
        return

    def run(words: Sequence[str]) -> int:
        quiet = ["--quiet"] if console.QUIET in os.environ else []
        try:
            return root.main([*quiet, *words], prog_name="sgpipe", standalone_mode=False) or 0
        except SystemExit as end:
            return int(end.code or 0)

    state = steps.reproduce(loaded, tasks, out, run, console.Progress())
    if not cli.printed_json(json_, {"out": str(out), "note": loaded.note, "steps": state}):
        titles, rows = steps.figures(loaded, tasks, state)
        table = Table(
            *titles, title=f"{loaded.title}: percent, here and published", caption=loaded.note
        )
        for row in rows:
            table.add_row(*row)
        if rows:
            console.output().print(table)
        cli.show(f"wrote {out / steps.REPORT}")
