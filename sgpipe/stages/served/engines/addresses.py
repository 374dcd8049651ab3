"""Where the servers of a run's engines are on a cluster, as a file on each of its machines.

Servers move when a machine is lost, and more start when machines come. The workers of a machine
keep the file up to date, and whoever asks the servers reads it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.utils.atomic import write_text

_SCHEME = "replicas:"


def moving_endpoint(run: str, section: str) -> str:
    """Return what the section of a stage names in place of URLs.

    Args:
        run: a name that no other run has.
    """
    return f"{_SCHEME}{run}-{section}"


def moves(endpoint: str) -> bool:
    """Return whether the URLs of an endpoint are in a file."""
    return endpoint.startswith(_SCHEME)


def write_urls(endpoint: str, urls: Sequence[str]) -> None:
    """Write where the servers of an endpoint are now.

    Raises:
        UserError: the folder belongs to another user, who could name other servers.
    """
    path = _file_of(endpoint)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.parent.lstat().st_uid != os.getuid():
        raise UserError(f"{path.parent} belongs to another user: remove it, or set TMPDIR")
    write_text(path, json.dumps(list(urls)))


def read_urls(endpoint: str) -> list[str]:
    """Return where the servers of an endpoint are.

    Raises:
        OSError: this is not known here.
    """
    urls: list[str] = json.loads(_file_of(endpoint).read_text("utf-8"))
    return urls


def forget_urls(endpoint: str) -> None:
    """Remove the file of a run that has ended."""
    _file_of(endpoint).unlink(missing_ok=True)


def _file_of(endpoint: str) -> Path:
    folder = f"sgpipe-replicas-{os.getuid()}"
    return Path(tempfile.gettempdir()) / folder / endpoint.removeprefix(_SCHEME)
