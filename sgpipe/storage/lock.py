"""One run at a time in an object store.

Object stores have no locks, so the lock is an object. It is created only if there is none, and replaced only if it is
still what was read last, so of several runs exactly one gets it. Its owner renews it every half minute: it is a lease.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import ConditionsError, StorePath
from sgpipe.utils.locking import LockOwner

if TYPE_CHECKING:
    from obstore import UpdateVersion

LOCK = ".sgpipe/lock"
# The owner stops a minute before others may take the lock; what it is uploading by then ends in time.
_RENEW_SECONDS, _SAFE_SECONDS, _STALE_SECONDS = 30.0, 90.0, 150.0
_RETRY_SECONDS, _TRIES = 5.0, 5
_NO_VERSION: UpdateVersion = {"e_tag": '"00000000000000000000000000000000"'}


class StoreLock:
    """A lock that expires if its process is gone or has not renewed it for some minutes.

    Whether it has expired is decided by the store's clock alone, and whether it still may be used, by how long ago its
    owner renewed it; the clocks of machines are never compared.
    """

    def __init__(self, store: StorePath) -> None:
        self.store = store
        self.owner = LockOwner.this_process()
        self._version: UpdateVersion | None = None  # of the lock object, as written last
        self._renewals = 0
        self._renewed = 0.0
        self._is_lost = False
        self._has_conditions = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. Where a run in the main thread can no longer be sure of it, it is interrupted.

        Raises:
            UserError: another run holds the lock.
            StoreError: the lock could not be renewed in time, or was taken.
        """
        self._take()
        finished = threading.Event()
        runs_in_main = threading.current_thread() is threading.main_thread()
        renewal = threading.Thread(target=self._renew_until, args=(finished, runs_in_main), daemon=True)
        renewal.start()
        try:
            yield
        except KeyboardInterrupt:
            self.check()
            raise
        finally:
            finished.set()
            renewal.join()
            self._release()

    @property
    def is_held(self) -> bool:
        """Whether a run may be at work: there is a lock, and its owner has neither ended nor let it expire."""
        found = self.store.get(LOCK)
        owner = LockOwner.read(found[0]) if found else None
        if found is None or (owner and owner.has_ended()):
            return False
        try:
            return self._age() < _STALE_SECONDS
        except StoreError:  # nothing may be written, so nobody says what time it is there
            return True

    def check(self) -> None:
        """Raises StoreError: the lock is lost, or another run might take it soon. The store is not asked."""
        if self._is_lost:
            raise StoreError(
                f"{self.store.location}: another run took over: this lock was deleted, or not renewed for minutes"
            )
        if _now() - self._renewed > _SAFE_SECONDS:
            raise StoreError(
                f"{self.store.location}: the lock could not be renewed for {_SAFE_SECONDS:.0f} s; soon another run may "
                "take it"
            )

    def _take(self) -> None:
        for _ in range(_TRIES):
            found = self.store.get(LOCK)
            if found is None:
                taken = self._write(None)
            else:
                self._refuse_living(found[0])
                taken = self._write(found[1])
            if taken:
                self._check_conditions()
                return
        owner = self.store.get(LOCK)
        raise self._taken(owner[0] if owner else b"", "")

    def _write(self, version: UpdateVersion | None) -> bool:
        """Write the lock if it still is of this version; whether it was. Its content differs from any earlier one."""
        began = _now()
        self._renewals += 1
        content = json.dumps({**json.loads(self.owner.record()), "renewals": self._renewals}).encode()
        if not self._put(content, version):
            # Perhaps an earlier request was carried out, and only its answer lost.
            found = self.store.get(LOCK)
            if not found or not self._is_ours(found) or not self._put(content, found[1]):
                return False
        self._renewed = began
        return True

    def _put(self, content: bytes, version: UpdateVersion | None) -> bool:
        """Write the lock in any case where there are no conditional writes."""
        if self._has_conditions:
            try:
                written = self.store.put_if(LOCK, content, version)
                self._version = written or self._version
                return written is not None
            except ConditionsError:
                self._go_without_conditions()
        self.store.put(LOCK, content)
        return True

    def _check_conditions(self) -> None:
        """Some stores ignore conditions: try two that are not met."""
        if not self._has_conditions or not (found := self.store.get(LOCK)):
            return
        try:
            ignored = any(self.store.put_if(LOCK, found[0], version) for version in (None, _NO_VERSION))
        except ConditionsError:
            ignored = True
        if ignored:
            self._go_without_conditions()

    def _go_without_conditions(self) -> None:
        self._has_conditions = False
        warnings.warn(
            f"{self.store.location} has no conditional writes: of two runs that start within a second, one notices the "
            "other only when it renews its lock",
            stacklevel=2,
        )

    def _renew_until(self, finished: threading.Event, runs_in_main: bool) -> None:
        wait = _RENEW_SECONDS
        while not finished.wait(wait):
            with suppress(StoreError):  # tried again until the lease ends
                self._renew()
            wait = min(_RENEW_SECONDS, max(0.0, self._renewed + _RENEW_SECONDS - _now()) or _RETRY_SECONDS)
            try:
                self.check()
            except StoreError:
                if runs_in_main and not finished.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _renew(self) -> None:
        if self._has_conditions:
            self._is_lost = not self._write(self._version)
        elif self._is_ours(self.store.get(LOCK)):
            self._write(None)
        else:
            self._is_lost = True

    def _release(self) -> None:
        # The error that ended the run matters more; the lock expires by itself.
        with suppress(StoreError):
            self.check()
            if self._is_ours(self.store.get(LOCK)):
                self.store.delete(LOCK)

    def _is_ours(self, found: tuple[bytes, UpdateVersion] | None) -> bool:
        owner = LockOwner.read(found[0]) if found else None
        return owner is not None and owner.token == self.owner.token

    def _refuse_living(self, lock: bytes) -> None:
        """Raises UserError: the owner of this lock may be alive."""
        owner = LockOwner.read(lock)
        if owner and owner.has_ended():
            return
        age = self._age()
        if age < _STALE_SECONDS:
            raise self._taken(lock, f", or, if it died, for {_STALE_SECONDS - age:.0f} s")

    def _age(self) -> float:
        """Seconds since the lock was written, by the store's clock: a further object says what time it is there."""
        clock = f".sgpipe/clock-{uuid.uuid4().hex}"
        self.store.put(clock, b"now")
        try:
            return (self._modified(clock) - self._modified(LOCK)).total_seconds()
        finally:
            self.store.delete(clock)

    def _modified(self, name: str) -> datetime:
        info = self.store.head(name)
        return info.modified if info else datetime.now(UTC)

    def _taken(self, lock: bytes, advice: str) -> UserError:
        owner = LockOwner.read(lock) or "unknown"
        return UserError(f"another run ({owner}) is writing into {self.store.location}; wait for it{advice}")


def _now() -> float:
    """Seconds by a clock that also runs while the machine sleeps: others do not wait for it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
