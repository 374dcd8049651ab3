"""Locks: one process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgpipe.errors import UserError


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock on `file`."""
    try:
        with file.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file
        return False
    return False


@contextmanager
def only_process(file: Path, folder: Path) -> Iterator[None]:
    """Hold a lock on `file`; the system releases it when the process ends, however it ends.

    Raises UserError: another process holds it, and writes into `folder`.
    """
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UserError(f"another run (process {owner}) is writing into {folder}; wait for it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
