"""`sgpipe verify`: whether a run is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe import consoles

if TYPE_CHECKING:
    from sgpipe.shards.verify import Verification

EXIT_FAULTY = 1


def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a run, an import or a scoring.")],
    repair: Annotated[bool, typer.Option("--repair", help="Drop what is bad, so that the next run redoes it.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a run byte for byte and row for row.

    Exit code 1 and a list if anything is off.
    """
    import json

    from sgpipe.progress import Progress
    from sgpipe.shards.verify import verify as check

    out = consoles.output()
    with Progress(consoles.progress()).images(None, "verifying") as advance:
        found = check(run, repair=repair, advance=advance)
    if json_:
        print(json.dumps(found.as_json(), indent=2))
    else:
        for problem in found.problems:
            out.print(f"{problem.file}: {problem.problem}", soft_wrap=True)
        out.print(_last_line(found), soft_wrap=True)
    if not found.ok:
        raise typer.Exit(EXIT_FAULTY)


def _last_line(found: Verification) -> str:
    size = f"{found.images:,} images in {found.shards:,} shards"
    work = " so far; a run is at work" if found.at_work else ""
    if not found.problems:
        return f"{found.root}: {size}, all as written{work}"
    if found.repaired:
        return f"{found.root}: repaired. The same command as before makes again what is missing."
    return f"{found.root}: {len(found.problems):,} problems in {size}{work}; --repair drops what is bad"
