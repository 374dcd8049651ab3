"""One run at a time in an object store, which knows no locks: an object that its owner puts anew again and again."""

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
from sgpipe.storage.storage import Store

LOCK = ".sgpipe/lock"
_CLOCK = ".sgpipe/clock"
_SECONDS_PER_BEAT, _STALE = 30, 150


class StoreLock:
    """A lock that is void if its process is gone, or has not renewed it for some minutes.

    Its owner looks whether it still has it before it deletes or replaces anything of the run. Two runs that start
    within a second of each other may both go on until then.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._mine = json.dumps(
            {"process": os.getpid(), "host": socket.gethostname(), "token": uuid.uuid4().hex}
        ).encode()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises UserError: another run is at work."""
        self._refuse_others()
        self.store.put(LOCK, self._mine)
        over = threading.Event()
        beat = threading.Thread(target=self._renew, args=(over,), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            with suppress(StoreError):  # what ended the run is to be told; the lock will be void
                if self._is_mine():
                    self.store.delete(LOCK)

    def check(self) -> None:
        """Raises StoreError: another run took the lock over."""
        if not self._is_mine():
            raise StoreError(f"{self.store.place}: another run took over, as this one was not heard of for minutes")

    def _is_mine(self) -> bool:
        return self.store.read(LOCK) == self._mine

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(_SECONDS_PER_BEAT):
            with suppress(StoreError):  # the run itself will meet it, with more to say
                if self._is_mine():
                    self.store.put(LOCK, self._mine)

    def _refuse_others(self) -> None:
        lock = self.store.read(LOCK)
        if lock is None:
            return
        self.store.put(_CLOCK, b"now")
        age = (self.store.changed(_CLOCK) - self.store.changed(LOCK)).total_seconds()
        if age < _STALE and not _is_gone(lock):
            raise UserError(
                f"another run ({_owner(lock)}) is writing into {self.store.place}; wait for it, or, if it died, "
                f"{_STALE - age:.0f} s"
            )


def _owner(lock: bytes) -> str:
    try:
        values = json.loads(lock)
        return f"process {values['process']} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _is_gone(lock: bytes) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    process, _, host = _owner(lock).removeprefix("process ").partition(" on ")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except OSError as error:
        return error.errno == errno.ESRCH  # otherwise it is somebody else's
    return False
