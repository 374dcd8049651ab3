"""`sgpipe doctor`: one line for each thing that a run needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgpipe import consoles

EXIT_UNFIT = 1
_MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs are to be written.")] = Path("."),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether this machine has what sgpipe needs.

    And what to do where it does not. Exit code 1 if something is missing.
    """
    import json

    from sgpipe.doctor import examine

    found = examine(folder)
    if json_:
        print(json.dumps([finding.as_json() for finding in found], indent=2))
    else:
        console = consoles.output()
        for finding in found:
            mark, colour = _MARKS[finding.state]
            console.print(mark, style=colour, end=" ")
            console.print(
                f"{finding.what:9}{finding.found}" + (f" → {finding.mend}" if finding.mend else ""), soft_wrap=True
            )
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(EXIT_UNFIT)
