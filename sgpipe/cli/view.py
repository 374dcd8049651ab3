"""`sgpipe view`: search, see, judge and correct a run in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import MovedImages, reads_run
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count, single_line

if TYPE_CHECKING:
    from sgpipe.view.index import Index
    from sgpipe.view.web import Viewer

_STORE = "or the object store of one, such as s3://bucket/labels."
_LONGEST_NAME = 200


def view(
    run: Annotated[str, typer.Argument(help=f"Folder of a run or an import, {_STORE}", callback=reads_run)],
    other: Annotated[
        str | None,
        typer.Argument(help=f"A second one, to compare with on the same images: folder, {_STORE}", callback=reads_run),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; the next free one, if it is in use. 0: any free one.")
    ] = 8765,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen at, such as 0.0.0.0; needs a token, which is printed. Default: 127.0.0.1."
        ),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Accept no judgements.")] = False,
    name: Annotated[
        str | None, typer.Option("--as", help="Your name in judgements. Default: the name of your account.")
    ] = None,
    images: MovedImages = None,
) -> None:
    """Search, see, judge and correct relations in the browser.

    Works offline, also on a run in progress. Answers are appended to judgements.jsonl in the run's folder. Prints the
    address; Ctrl-C ends the server.
    """
    import secrets

    from sgpipe.view.app import create_app
    from sgpipe.view.security import Access
    from sgpipe.view.serve import LOCAL, listen, machine_names, open_browser, serve

    viewer = _open(run, other, _judge(name), read_only, images)
    address = listen(host or LOCAL, port)
    token = secrets.token_urlsafe(24) if host else None
    app = create_app(viewer, Access(machine_names(address.host), token, read_only))
    url = address.url(token)
    console.output().print(url, soft_wrap=True)
    if token is not None:
        _say("keep this address secret: whoever has it can see the run" + ("" if read_only else " and judge relations"))
    if port and address.port != port:
        _say(f"port {port} is in use")
    _say("Ctrl-C ends the server")
    if not no_browser:
        open_browser(url)
    serve(app, address)
    file = viewer.judgements.file
    _say(f"stopped; judgements are in {file}" if file.exists() else "stopped")


def _open(run: str, other: str | None, name: str, read_only: bool, images: str | None) -> Viewer:
    """Open the indexes and the judgements, and say how large they are."""
    from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
    from sgpipe.view.web import Viewer

    opened = [_open_index(root) for root in (run, other) if root is not None]
    index = opened[0]
    home = index.root if isinstance(index.root, Path) else index.cache  # nothing is appended to an object of a store
    judgements = JudgementLog(home / JUDGEMENTS, index.fingerprint, read_only=read_only)
    title = str(index.run.get("name") or Path(run).absolute().name)
    return Viewer(title, index, judgements, opened[1] if other else None, name, read_only, images)


def _open_index(root: str) -> Index:
    from sgpipe.view.index import Index

    index = Index.open(root if "://" in root else Path(root), console.Progress(console.progress()))
    _say(f"{root}: {count(index.images, 'image')}, {count(index.relations, 'relation')}")
    for problem in index.problems:
        _say(f"left out: {problem}")
    return index


def _judge(name: str | None) -> str:
    """The name in judgements. Raises UserError: --as is too long, or blank."""
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


def _say(message: str) -> None:
    console.progress().print(message, soft_wrap=True)
