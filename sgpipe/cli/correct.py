"""`sgpipe correct`: a run with the judgements of people applied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count


def correct(
    run: cli.StoredRun,
    out: Annotated[
        Path, declare.writes_folder("Folder for the corrected run; an unfinished one is resumed.")
    ],
    judgements: Annotated[
        Path | None, declare.reads_file("Judgements. Default: those of the run.")
    ] = None,
    conflicts: Annotated[
        Literal["majority", "latest", "drop"], declare.option("If people differ.")
    ] = "majority",
    images: cli.MovedImages = None,
    json_: cli.Json = False,
) -> None:
    """Apply the judgements of `sgpipe view` to a run.

    Writes a copy in which confirmed, changed and added relations have no
    confidence, like annotated ones, and wrong ones are gone.

    Examples:
      sgpipe correct coco-relations/ --out corrected/
      sgpipe correct coco-relations/ --judgements judgements.jsonl --conflicts latest --out
      corrected/
    """
    from sgpipe.sources.corrected import correct_run
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.storage.run_folder import RunFiles

    files = RunFiles(run)
    if files.problems:
        raise UserError(files.problems[0])
    fingerprint = str(files.manifest.run.get("fingerprint", ""))
    log = JudgementLog(judgements or files.judgements, fingerprint)
    for problem in log.problems:
        cli.say(f"NOTE: {problem}")
    corrected = correct_run(
        files.manifest, files.storage, log, out, console.Progress(), conflicts, images
    )
    if cli.printed_json(json_, vars(corrected)):
        return
    done = ", ".join(f"{number:,} {name}" for name, number in corrected.counts.items() if number)
    size = cli.run_size(corrected.images, corrected.shards)
    cli.show(f"{corrected.root}: {size}; relations: {done or 'none corrected'}")
    if corrected.conflicts:
        cli.say(
            f"NOTE: people differ on {count(corrected.conflicts, 'relation')}; --conflicts says"
            " what counts"
        )
    if corrected.missing:
        cli.say(
            f"NOTE: {count(corrected.missing, 'judged relation')} left out: the run does not have"
            " them"
        )
