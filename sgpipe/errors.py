"""The errors a user is meant to see."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class EngineError(Exception):
    """The work could not be finished; what is committed stays."""


class WorkersLostError(EngineError):
    """Ray lost workers or machines; their work units can be processed again."""


class MachinesLostError(WorkersLostError):
    """The rest of the cluster is too small for the planned actors."""


class StoreError(OSError):
    """An object store refused an operation; the message is one line that names the store."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in system errors that name no file, such as those of a full disk."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def making_folder(out: Path) -> Iterator[None]:
    """Turn system errors while the folder of --out is created into one line; a full disk stays a system error.

    Raises UserError: it is a file, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None


def refusal(error: OSError) -> str:
    """A system error in one line: what and where, without the words that libraries put around it."""
    if isinstance(error, StoreError):
        return str(error)
    return f"{os.strerror(error.errno) if error.errno else error}: {error.filename or 'unknown file'}"
