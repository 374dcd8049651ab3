"""`sgpipe view`: a run in the browser."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count, single_line

if TYPE_CHECKING:
    from sgpipe.storage.index import Index
    from sgpipe.view.pages import Viewer

_LONGEST_NAME = 200


def view(
    run: cli.StoredRuns,
    other: Annotated[
        declare.Place | None,
        declare.stored_argument("A second one, to compare with.", callback=declare.stored_runs),
    ] = None,
    port: Annotated[
        int, declare.option("Port, or the next free one. 0: any.", min=0, max=65535)
    ] = 8765,
    host: Annotated[
        str | None, declare.option("Address, such as 0.0.0.0; prints a token. Default: 127.0.0.1.")
    ] = None,
    no_browser: Annotated[bool, declare.option("Do not open a browser.", "--no-browser")] = False,
    read_only: Annotated[bool, declare.option("Accept no judgements.", "--read-only")] = False,
    name: Annotated[
        str | None,
        declare.option("Your name in judgements. Default: that of your account.", "--as"),
    ] = None,
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
    from sgpipe.files.locations import absolute_location
    from sgpipe.storage.judgements import JudgementLog
    from sgpipe.view.pages import Viewer

    judge = _judge(name)
    index = _open(run)
    other_index = None if other is None else _open(other)
    viewer = Viewer(
        title=str(index.run.get("name") or absolute_location(run).name),
        index=index,
        judgements=JudgementLog(index.files.judgements, index.fingerprint),
        other=other_index,
        name=judge,
        read_only=read_only,
        images=images,
    )
    _serve(viewer, host, port, no_browser)
    file = viewer.judgements.file
    cli.say(f"stopped; judgements are in {file}" if file.exists() else "stopped")


def _judge(name: str | None) -> str:
    """Return the name in judgements.

    Raises:
        UserError: the given one is empty.
    """
    import getpass

    if name is None:
        with suppress(OSError, KeyError):  # in a container, the user may have none
            name = getpass.getuser()
    elif not single_line(name):
        raise UserError(f"--as {name!r} is not a name")
    return single_line(name or "", _LONGEST_NAME) or "anonymous"


def _open(run: declare.Place) -> Index:
    """Index a run, and print how large it is and what cannot be read."""
    from sgpipe.storage.index import Index

    index = Index(run, console.Progress())
    cli.say(f"{run}: {count(index.images, 'image')}, {count(index.relations, 'relation')}")
    for problem in index.problems:
        cli.say(f"left out: {problem}")
    return index


def _serve(viewer: Viewer, host: str | None, port: int, no_browser: bool) -> None:
    """Serve the pages until Ctrl-C; on an address that others reach, behind a token."""
    import secrets
    import socket

    from sgpipe.view import app

    address = app.listen(host or app.LOCAL, port)
    token = secrets.token_urlsafe(24) if host else None
    names = {address.host, socket.gethostname(), socket.getfqdn()}
    url = address.url(token)
    cli.show(url)
    if token is not None:
        may_judge = "" if viewer.read_only else " and judge relations"
        cli.say(f"keep this address secret: whoever has it can see the run{may_judge}")
    cli.say("Ctrl-C ends the server")
    if not no_browser:
        app.open_browser(url)
    app.serve(app.create_app(viewer, names, token), address)
