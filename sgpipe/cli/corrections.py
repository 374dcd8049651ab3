"""`sgpipe correct`: a run as people judged it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import Json, MovedImages, reads_file, reads_run, writes_folder
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.files.locations import Location
    from sgpipe.sources.corrected import CorrectedRun
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.storage.manifest import Manifest


class ConflictRule(StrEnum):
    """What counts where people differ."""

    MAJORITY = "majority"
    LATEST = "latest"
    DROP = "drop"


def correct(
    run: Annotated[
        str,
        typer.Argument(
            help="Folder of a run or an import, or the object store of one, such as s3://bucket/labels.",
            callback=reads_run,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the corrected run; an unfinished one is resumed.", callback=writes_folder),
    ],
    judgements: Annotated[
        Path | None,
        typer.Option(help="File of judgements. Default: what `sgpipe view` wrote for the run.", callback=reads_file),
    ] = None,
    conflicts: Annotated[
        ConflictRule,
        typer.Option(
            help="Where people differ: majority keeps what most say, with a tie the relation as it is; latest keeps "
            "what the latest answer says; drop leaves the relation out."
        ),
    ] = ConflictRule.MAJORITY,
    images: MovedImages = None,
    json_: Json = False,
) -> None:
    """Apply the judgements of `sgpipe view` to a run.

    Writes a copy in which confirmed, changed and added relations have no confidence, as annotated ones have, and wrong
    ones are gone. `sgpipe train --data` and all other commands read it.
    """
    import json

    from sgpipe.sources.corrected import correct_run

    manifest, storage, log = _open(run, judgements)
    for problem in log.problems:
        _note(problem)
    progress = console.Progress(console.progress())
    corrected = correct_run(manifest, storage, log, out, progress, conflicts.value, images)
    if json_:
        print(json.dumps(corrected.as_json(), indent=2))
        return
    _print(corrected)


def _open(run: str, judgements: Path | None) -> tuple[Manifest, Location, JudgementLog]:
    """The run, where its shards are, and its judgements."""
    from sgpipe.files.object_store import StorePath
    from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
    from sgpipe.storage.manifest import Manifest
    from sgpipe.view.run_files import RunFiles, store_errors_named

    storage: Location
    if "://" in run:
        with store_errors_named():
            files = RunFiles(run)
        if files.problems:
            raise UserError(files.problems[0])
        manifest, storage, home = files.manifest, files.storage, files.cache
    else:
        manifest, home = Manifest.load(Path(run)), Path(run)
        store = manifest.run.get("store")
        fetched = all((home / shard.file).is_file() for shard in manifest.shards)
        storage = StorePath(store) if store and not fetched else home.absolute()
    fingerprint = str(manifest.run.get("fingerprint", ""))
    return manifest, storage, JudgementLog(judgements or home / JUDGEMENTS, fingerprint, read_only=True)


def _print(corrected: CorrectedRun) -> None:
    size = f"{count(corrected.images, 'image')} in {count(corrected.shards, 'shard')}"
    done = ", ".join(f"{number:,} {what}" for what, number in corrected.counts.items() if number)
    console.output().print(f"{corrected.root}: {size}; relations: {done or 'none corrected'}", soft_wrap=True)
    notes = []
    if corrected.conflicts:
        notes.append(f"people differ on {count(corrected.conflicts, 'relation')}; --conflicts says what counts")
    if corrected.missing:
        notes.append(f"{count(corrected.missing, 'judged relation')} left out: the run does not have them")
    if corrected.new_predicates:
        named = ", ".join(map(repr, corrected.new_predicates[:5]))
        notes.append(f"{count(len(corrected.new_predicates), 'predicate')} added to the run's list of classes: {named}")
    for note in notes:
        _note(note)


def _note(text: str) -> None:
    console.progress().print(f"NOTE: {text}", soft_wrap=True)
