"""`sgpipe verify` and `fetch`: a run is whole, and a copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.storage.verify import Verification


def verify(
    run: cli.StoredRuns,
    repair: Annotated[
        bool, declare.option("Drop what is damaged; the next run regenerates it.", "--repair")
    ] = False,
    json_: cli.Json = False,
) -> None:
    """Check every byte and every row of a run.

    Lists the problems; the exit code is 1 if there are any.

    Examples:
      sgpipe verify coco-relations/
      sgpipe verify coco-relations/ --repair
    """
    from sgpipe.storage.verify import verify as check

    with console.Progress().images(None, "verifying") as advance:
        verification = check(run, repair=repair, advance=advance)
    if not verification.problems:
        _check_certificate(run, verification, repair)
    if not cli.printed_json(json_, verification.as_json()):
        _show(verification, is_local=isinstance(run, Path))
    if not verification.ok:
        raise typer.Exit(console.EXIT_FAILED)


def _show(verification: Verification, *, is_local: bool) -> None:
    """Print the problems and repairs, and a summary."""
    for problem in verification.problems:
        cli.show(f"{problem.file}: {problem.problem}")
    for repair in verification.repairs:
        cli.show(f"{verification.root}: repaired: {repair}")
    size = cli.run_size(verification.images, verification.shards)
    running = " so far; a run is in progress" if verification.at_work else ""
    if not verification.problems:
        cli.show(f"{verification.root}: {size}, no problems found{running}")
    elif not verification.repaired:
        advice = "--repair drops what is damaged" if is_local else "restore it from a copy"
        problems = count(len(verification.problems), "problem")
        cli.show(f"{verification.root}: {problems} in {size}{running}; {advice}")


def _check_certificate(run: declare.Place, verification: Verification, repair: bool) -> None:
    """Add what is wrong with the certificate of a run; `repair`: delete one that is not valid."""
    from sgpipe.storage.datasets import open_files
    from sgpipe.storage.judgements import CERTIFICATE
    from sgpipe.storage.verify import Problem

    file = open_files(run).judgements.with_name(CERTIFICATE)
    if not file.is_file():
        return
    try:
        cli.certificate_of(run)
    except UserError as error:
        verification.problems.append(Problem(CERTIFICATE, str(error)))
        if repair:
            file.unlink()
            verification.repairs.append(
                f"deleted {CERTIFICATE}; `sgpipe certify` makes one of the answers"
            )


def fetch(
    store: Annotated[
        str, typer.Argument(help="Object store of a run, such as s3://bucket/labels.")
    ],
    out: Annotated[
        Path, declare.writes_folder("Folder for the run; files that are already there are kept.")
    ],
) -> None:
    """Download a run from an object store.

    Other commands read it there, without a copy; only `verify --repair` and
    `generate --truth` need a folder.

    Examples:
      sgpipe fetch s3://bucket/coco --out coco-relations/
    """
    from sgpipe.files.stores import StorePath
    from sgpipe.storage.mirror import fetch as download

    with console.Progress().images(None, "fetching") as advance:
        manifest = download(StorePath(store), out, advance)
    images = sum(shard.rows for shard in manifest.shards)
    cli.show(f"{out}: {cli.run_size(images, len(manifest.shards))}")
