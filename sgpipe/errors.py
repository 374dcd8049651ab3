"""The errors a user is meant to see."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class EngineError(Exception):
    """The work could not be finished; what is committed stays."""


class WorkersLostError(EngineError):
    """Ray lost workers or machines; what they worked on can be done again."""


class MachinesLostError(WorkersLostError):
    """What is left of the cluster is too small for the actors that were planned."""


class StoreError(OSError):
    """What an object store refuses; the message is one line that names it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses here without naming a file, such as to write on a full disk, is named after `path`."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def making_folder(out: Path) -> Iterator[None]:
    """What the system refuses while the folder of --out is made. A full disk is no reason to name another one.

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
    """What the system refuses, and where, in one line; libraries put words of their own around what it says."""
    if isinstance(error, StoreError):
        return str(error)
    return f"{os.strerror(error.errno) if error.errno else error}: {error.filename or 'no file named'}"
