"""Locks: one process at a time in a folder.

The system's lock (flock) decides wherever it works, as it ends with its process. Some network file systems have none,
or keep it to each machine. So the lock file also names its owner, who touches it every half minute: it is a heartbeat.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TextIO

from sgpipe.errors import EngineError, UserError
from sgpipe.utils.atomic import FolderBefore

RENEW_SECONDS, STALE_SECONDS = 30.0, 150.0
_TRIES, _SECONDS_BETWEEN_TRIES = 3, 0.1
_GUARD_SECONDS = 10.0  # within it, whoever reads and writes a record has done so, or has died
_TEMPORARY, _LOCK, _NEW_LOCK = "sgpipe-", ".lock", ".new-lock"
NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # no such locks there


@dataclass(frozen=True)
class LockOwner:
    """The process that holds a lock. Containers may share host names and have equal process ids; these differ:

    Attributes:
        boot: of the kernel: differs by machine and by start of the machine. Empty: unknown, as on macOS.
        namespace: of process ids: differs by container.
        started: when the process started; process ids are used again.
        token: differs by lock.
    """

    process: int
    host: str
    boot: str = ""
    namespace: str = ""
    started: str = ""
    token: str = ""

    @classmethod
    def this_process(cls) -> LockOwner:
        """The owner of a new lock of this process."""
        pid = os.getpid()
        state_and_start = _state_and_start(pid) or ("", "")
        return cls(pid, socket.gethostname(), _boot(), _namespace(), state_and_start[1], uuid.uuid4().hex)

    @classmethod
    def read(cls, record: bytes | str | None) -> LockOwner | None:
        """The owner that a record names; None if it names none, as records of version 0.1 and cut ones."""
        try:
            values = json.loads(record or "")
            owner = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (ValueError, TypeError):
            return None
        texts = (owner.host, owner.boot, owner.namespace, owner.started, owner.token)
        valid = type(owner.process) is int and owner.process > 0 and all(isinstance(text, str) for text in texts)
        return owner if valid else None

    def record(self) -> str:
        """As `read` reads it."""
        return json.dumps(asdict(self))

    @property
    def is_on_this_machine(self) -> bool:
        """Whether its machine is certainly this one, in this or another container, and has not been restarted."""
        return bool(self.boot) and self.boot == _boot()

    def has_ended(self) -> bool:
        """Whether it certainly runs no more. Only that of processes which this one can see is known."""
        if not self._is_visible:
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # it belongs to somebody else
            pass
        state, started = _state_and_start(self.process) or ("", "")
        return state in ("Z", "X") or bool(started and self.started and started != self.started)

    @property
    def _is_visible(self) -> bool:
        if not _boot():  # no Linux, so no containers
            return not self.boot and self.host == socket.gethostname()
        return self.is_on_this_machine and bool(self.namespace) and self.namespace == _namespace()

    def __str__(self) -> str:
        return f"process {self.process}" + ("" if self._is_visible else f" on {self.host}")


@cache
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@cache
def _namespace() -> str:
    with suppress(OSError):
        return str(os.stat("/proc/self/ns/pid").st_ino)
    return ""


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """The state of a process (Z: dead), and its start in ticks since the machine's; None: unknown."""
    with suppress(OSError, IndexError):
        # The name of the program, in brackets, may hold anything.
        values = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return values[0], values[19]
    return None


class FolderLock:
    """A lock that is held."""

    def __init__(self, file: Path, folder: Path, owner: LockOwner) -> None:
        self.file, self.folder, self.owner = file, folder, owner

    def is_held(self) -> bool:
        """Whether the lock file still names this owner."""
        with suppress(OSError):
            return LockOwner.read(self.file.read_text()) == self.owner
        return False

    def check(self) -> None:
        """Raises EngineError: another run took over the lock, as on a machine that was suspended for minutes."""
        if not self.is_held():
            raise EngineError(f"{self.folder}: another run took over: this lock was not renewed for minutes")

    def renew(self, finished: threading.Event) -> None:
        """Touch the lock file every half minute until `finished`."""
        while not finished.wait(RENEW_SECONDS):
            if self.is_held():
                with suppress(OSError):
                    os.utime(self.file)


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock on `file`."""
    try:
        with file.open("r") as lock:
            flocked = _flock(lock, fcntl.LOCK_SH)
            return _other_owner(lock, file, flocked) is not None
    except BlockingIOError:
        return True
    except OSError:  # there is no such file
        return False


@contextmanager
def only_process(file: Path, folder: Path) -> Iterator[FolderLock]:
    """Hold a lock on `file`, which ends with this process, however that ends.

    Raises UserError: another process holds it, and writes into `folder`.
    """
    held = FolderLock(file, folder, LockOwner.this_process())
    lock = _acquired(held)
    finished = threading.Event()
    renewal = threading.Thread(target=held.renew, args=(finished,), daemon=True)
    renewal.start()
    try:
        yield held
    finally:
        finished.set()
        renewal.join()
        with lock, suppress(OSError):
            if held.is_held():
                lock.truncate(0)


@contextmanager
def locked_folder(
    file: Path, before: FolderBefore, make: Callable[[], None], has_work: Callable[[], bool]
) -> Iterator[FolderLock]:
    """As `only_process`, in a folder that is left as it was if the block fails before it has done any work.

    Args:
        before: what the folder holds now.
        make: makes the folder, or refuses it.
        has_work: called after an error: whether the folder holds work to keep.

    Raises UserError: as `only_process` and `make`.
    """
    try:
        make()
        with only_process(file, before.root) as lock:
            try:
                yield lock
            except BaseException:
                with suppress(OSError):  # the error that ended the block matters more
                    if not has_work():
                        before.restore()
                raise
    except BaseException:
        before.remove_empty_folders()
        raise


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder in `parent` (None: the system's place for temporary ones), deleted at the end of the block.

    If the process is killed, the next call deletes it, as nobody holds the lock in it any more.
    """
    parent = parent or Path(tempfile.gettempdir())
    for place in parent.glob(f"{_TEMPORARY}*"):
        if _is_left(place):
            shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=parent, ignore_cleanup_errors=True) as name:
        place, new = Path(name), Path(name, _NEW_LOCK)
        with new.open("w") as lock:
            _flock(lock, fcntl.LOCK_EX)
            new.rename(place / _LOCK)  # it is locked from its first moment
            yield place


def _is_left(place: Path) -> bool:
    """Whether this is a temporary folder of this user's whose process is gone."""
    try:
        if place.is_symlink() or place.stat().st_uid != os.getuid():
            return False
        with (place / _LOCK).open("r") as lock:
            return _flock(lock, fcntl.LOCK_SH)
    except OSError:  # locked, of another kind, or gone by now
        return False


def _acquired(held: FolderLock) -> TextIO:
    """The lock file, open and locked, with the record of its owner in it."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_SECONDS_BETWEEN_TRIES)
        held.file.parent.mkdir(parents=True, exist_ok=True)
        lock = held.file.open("a+")
        try:
            if _take(lock, held):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
    with suppress(OSError):
        text = held.file.read_text()
        raise _busy(held.folder, str(LockOwner.read(text) or f"process {text.strip() or 'unknown'}"))
    raise _busy(held.folder, "process unknown")


def _take(lock: TextIO, held: FolderLock) -> bool:
    """Write the record; False if another process has the lock, or has just removed the file."""
    try:
        flocked = _flock(lock, fcntl.LOCK_EX)
    except BlockingIOError:
        return False
    with nullcontext() if flocked else _guarded(held.file):
        if not _is_file(lock, held.file):
            return False
        if (owner := _other_owner(lock, held.file, flocked)) is not None:
            left = STALE_SECONDS - _age(held.file)
            raise _busy(held.folder, str(owner), f", or, if it died, for {max(left, 1):.0f} s")
        lock.truncate(0)
        lock.write(held.owner.record())
        lock.flush()
    return True


def _busy(folder: Path, owner: str, advice: str = "") -> UserError:
    return UserError(f"another run ({owner}) is writing into {folder}; wait for it{advice}")


def _flock(lock: TextIO, kind: int) -> bool:
    """Take the system's lock; False if the file system has none. Raises BlockingIOError: another process has it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return False
    return True


def _other_owner(lock: TextIO, file: Path, flocked: bool) -> LockOwner | None:
    """The owner that the record names, unless it is certain or likely that it runs no more.

    The system's lock tells of processes of this machine, in other containers, too; the heartbeat of all others.
    """
    lock.seek(0)
    owner = LockOwner.read(lock.read())
    if owner is None or owner.has_ended() or (flocked and owner.is_on_this_machine):
        return None
    return owner if _age(file) < STALE_SECONDS else None


def _age(file: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system."""
    clock = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        clock.touch()
        now = clock.stat().st_mtime
    except OSError:  # it cannot be written
        now = time.time()
    finally:
        clock.unlink(missing_ok=True)
    return now - file.stat().st_mtime


def _is_file(lock: TextIO, file: Path) -> bool:
    """Whether the open file is still the one of this name: a refused run removes its folder."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    return False


@contextmanager
def _guarded(file: Path) -> Iterator[None]:
    """One process at a time without the system's lock, for moments: making a folder succeeds for one of several."""
    guard = file.with_name(f".{file.name}.guard")
    while True:
        try:
            guard.mkdir()
            break
        except FileExistsError:
            time.sleep(_SECONDS_BETWEEN_TRIES)
            with suppress(OSError):
                if _age(guard) > _GUARD_SECONDS:
                    guard.rmdir()
    try:
        yield
    finally:
        with suppress(OSError):
            guard.rmdir()
