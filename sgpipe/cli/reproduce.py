"""`sgpipe reproduce`: a paper as a list of commands, from its downloads to its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.cli.reproduction import Reproduction, Task


def reproduce(
    ctx: typer.Context,
    paper: Annotated[Literal["rlipv2"], typer.Argument(help="The paper.")],
    out: Annotated[
        Path, declare.writes_folder("Folder for everything; steps that are done are skipped.")
    ],
    data: Annotated[
        Path | None, declare.option("Folder of datasets and weights.", exists=True, file_okay=False)
    ] = None,
    scale: Annotated[
        Literal["published", "one-gpu", "miniature"], declare.option("miniature: no data.")
    ] = "published",
    until: Annotated[str | None, declare.option("Last step to run.")] = None,
    dry_run: Annotated[
        bool, declare.option("Only print the commands and what is missing.", "--dry-run")
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
    from sgpipe.cli import reproduction as steps

    loaded = steps.load_reproduction(paper, scale, assign or [])
    tasks = steps.make_tasks(loaded, data or Path("DATA"), out, until)
    if dry_run:
        _show_steps(loaded, tasks, json_)
        return
    root: Any = ctx.find_root().command

    def run(words: Sequence[str]) -> int:
        quiet = ["--quiet"] if console.QUIET in os.environ else []
        try:
            return root.main([*quiet, *words], prog_name="sgpipe", standalone_mode=False) or 0
        except SystemExit as end:
            return int(end.code or 0)

    state = steps.reproduce(loaded, tasks, out, run, console.Progress())
    values = {name: step.model_dump() for name, step in state.items()}
    if not cli.printed_json(json_, {"out": str(out), "note": loaded.note, "steps": values}):
        _show_figures(loaded, *steps.figures(loaded, tasks, state))
        cli.show(f"wrote {out / steps.REPORT}")


def _show_steps(paper: Reproduction, tasks: Sequence[Task], json_: bool) -> None:
    """Print the commands, and what is missing for each."""
    steps = [
        {**vars(task.step), "command": task.command, "missing": task.missing} for task in tasks
    ]
    if cli.printed_json(json_, {"note": paper.note, "steps": steps}):
        return
    cli.show(f"{paper.title}. {paper.note}")
    for number, task in enumerate(tasks, 1):
        cli.show(f"[{number}/{len(tasks)}] {task.step.name}: {task.step.gives}")
        cli.show(f"  {task.command}")
        for file in task.missing:
            cli.show(f"  missing: {file}")


def _show_figures(paper: Reproduction, titles: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    if not rows:
        return
    title = f"{paper.title}: percent, here and published"
    table = Table(*titles, title=title, caption=paper.note)
    for row in rows:
        table.add_row(*row)
    console.output().print(table)
