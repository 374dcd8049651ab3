"""One run at a time in an object store.

Object stores have no locks, so the lock is an object that its owner rewrites every half minute.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sgpipe.errors import StoreError, UserError
from sgpipe.storage.storage import ObjectStore

LOCK = ".sgpipe/lock"
_CLOCK = ".sgpipe/clock"
_RENEW_SECONDS, _STALE_SECONDS = 30, 150


class StoreLock:
    """A lock that expires if its process is gone or has not renewed it for some minutes.

    The owner checks that it still holds the lock before it deletes or replaces anything. Two runs that start within a
    second of each other may both continue until then.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._content = json.dumps(
            {"process": os.getpid(), "host": socket.gethostname(), "token": uuid.uuid4().hex}
        ).encode()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises UserError: another run holds the lock."""
        self._refuse_others()
        self.store.put(LOCK, self._content)
        finished = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(finished,), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            finished.set()
            renewal.join()
            with suppress(StoreError):  # the error that ended the run matters more; the lock expires by itself
                if self._is_held():
                    self.store.delete(LOCK)

    def check(self) -> None:
        """Raises StoreError: another run took over the lock."""
        if not self._is_held():
            raise StoreError(f"{self.store.location}: another run took over: this lock was not renewed for minutes")

    def _is_held(self) -> bool:
        return self.store.read(LOCK) == self._content

    def _renew(self, finished: threading.Event) -> None:
        while not finished.wait(_RENEW_SECONDS):
            with suppress(StoreError):  # the run itself will meet the same error and report it
                if self._is_held():
                    self.store.put(LOCK, self._content)

    def _refuse_others(self) -> None:
        lock = self.store.read(LOCK)
        if lock is None:
            return
        self.store.put(_CLOCK, b"now")
        age = (self.store.modified(_CLOCK) - self.store.modified(LOCK)).total_seconds()
        if age < _STALE_SECONDS and not _is_dead(lock):
            raise UserError(
                f"another run ({_owner(lock)}) is writing into {self.store.location}; wait for it, or, if it died, "
                f"for {_STALE_SECONDS - age:.0f} s"
            )


def _owner(lock: bytes) -> str:
    try:
        values = json.loads(lock)
        return f"process {values['process']} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _is_dead(lock: bytes) -> bool:
    """Whether the owner was a process of this machine that no longer runs."""
    process, _, host = _owner(lock).removeprefix("process ").partition(" on ")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except OSError as error:
        return error.errno == errno.ESRCH  # any other error: the process belongs to somebody else
    return False
