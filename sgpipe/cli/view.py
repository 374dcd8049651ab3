"""`sgpipe view`: search, see and judge a run in the browser. `sgpipe correct`: apply the judgements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count, single_line

_LONGEST_NAME = 200


def view(
    run: cli.StoredRun,
    other: Annotated[cli.Place | None, cli.stored_argument("A second one, to compare with.")] = None,
    port: Annotated[int, cli.option("Port, or the next free one. 0: any.", min=0, max=65535)] = 8765,
    host: Annotated[str | None, cli.option("Address, such as 0.0.0.0; prints a token. Default: 127.0.0.1.")] = None,
    no_browser: Annotated[bool, cli.option("Do not open a browser.", "--no-browser")] = False,
    read_only: Annotated[bool, cli.option("Accept no judgements.", "--read-only")] = False,
    name: Annotated[str | None, cli.option("Your name in judgements. Default: that of your account.", "--as")] = None,
    images: cli.MovedImages = None,
) -> None:
    """Search, see, judge and correct relations in the browser.

    Works offline, also on a run in progress. Judgements are appended to
    judgements.jsonl in the run's folder. Ctrl-C ends the server.

    Examples:
      sgpipe view coco-relations/
      sgpipe view coco-relations/ earlier-relations/ --as anna
      sgpipe view s3://bucket/coco --read-only --no-browser
    """
    import secrets
    import socket

    from sgpipe.files.locations import absolute_location, text_of
    from sgpipe.storage.index import Index
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.view.app import LOCAL, create_app, listen, open_browser, serve
    from sgpipe.view.security import Access
    from sgpipe.view.web import Viewer

    judge, opened = _judge(name), []
    for root in (run, other) if other is not None else (run,):
        opened.append(index := Index.open(root, console.Progress()))
        cli.say(f"{text_of(root)}: {count(index.images, 'image')}, {count(index.relations, 'relation')}")
        for problem in index.problems:
            cli.say(f"left out: {problem}")
    judgements = JudgementLog(opened[0].files.judgements, opened[0].fingerprint, read_only=read_only)
    title = str(opened[0].run.get("name") or absolute_location(run).name)
    viewer = Viewer(title, opened[0], judgements, opened[1] if other else None, judge, read_only, images)
    address = listen(host or LOCAL, port)
    token = secrets.token_urlsafe(24) if host else None
    names = {address.host, socket.gethostname(), socket.getfqdn()}
    app = create_app(viewer, Access(names, token, read_only))
    url = address.url(token)
    cli.show(url)
    if token is not None:
        cli.say(
            "keep this address secret: whoever has it can see the run" + ("" if read_only else " and judge relations")
        )
    if port and address.port != port:
        cli.say(f"port {port} is in use")
    cli.say("Ctrl-C ends the server")
    if not no_browser:
        open_browser(url)
    serve(app, address)
    file = viewer.judgements.file
    cli.say(f"stopped; judgements are in {file}" if file.exists() else "stopped")


def _judge(name: str | None) -> str:
    """Return the name in judgements. Raises UserError: --as is too long, or blank."""
    import getpass

    if name is None:
        try:
            return getpass.getuser()
        except (OSError, KeyError):  # in a container, the user may have none
            return "anonymous"
    plain = single_line(name)
    if not plain or len(plain) > _LONGEST_NAME:
        raise UserError(f"--as {single_line(name, 40)!r} is not a name of 1 to {_LONGEST_NAME} characters")
    return plain


def correct(
    run: cli.StoredRun,
    out: Annotated[Path, cli.writes_folder("Folder for the corrected run; an unfinished one is resumed.")],
    judgements: Annotated[Path | None, cli.reads_file("Judgements. Default: those of the run.")] = None,
    conflicts: Annotated[
        Literal["majority", "latest", "drop"],
        cli.option(
            "Of conflicting judgements: what most say (in a tie the relation as it is), the latest, or no relation."
        ),
    ] = "majority",
    images: cli.MovedImages = None,
    json_: cli.Json = False,
) -> None:
    """Apply the judgements of `sgpipe view` to a run.

    Writes a copy in which confirmed, changed and added relations have no
    confidence, like annotated ones, and wrong ones are gone.

    Examples:
      sgpipe correct coco-relations/ --out corrected/
      sgpipe correct coco-relations/ --judgements judgements.jsonl --conflicts latest --out corrected/
    """
    from sgpipe.sources.corrected import correct_run
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.storage.run_files import RunFiles

    files = RunFiles(run)
    if files.problems:
        raise UserError(files.problems[0])
    fingerprint = str(files.manifest.run.get("fingerprint", ""))
    log = JudgementLog(judgements or files.judgements, fingerprint, read_only=True)
    for problem in log.problems:
        cli.say(f"NOTE: {problem}")
    progress = console.Progress()
    corrected = correct_run(files.manifest, files.storage, log, out, progress, conflicts, images)
    if cli.printed_json(json_, corrected.as_json()):
        return
    size = f"{count(corrected.images, 'image')} in {count(corrected.shards, 'shard')}"
    done = ", ".join(f"{number:,} {what}" for what, number in corrected.counts.items() if number)
    cli.show(f"{corrected.root}: {size}; relations: {done or 'none corrected'}")
    notes = []
    if corrected.conflicts:
        notes.append(f"people differ on {count(corrected.conflicts, 'relation')}; --conflicts says what counts")
    if corrected.missing:
        notes.append(f"{count(corrected.missing, 'judged relation')} left out: the run does not have them")
    if corrected.new_predicates:
        named = ", ".join(map(repr, corrected.new_predicates[:5]))
        notes.append(f"{count(len(corrected.new_predicates), 'predicate')} added to the run's list of classes: {named}")
    for note in notes:
        cli.say(f"NOTE: {note}")
