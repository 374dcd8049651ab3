"""Files that are written whole or not at all, and locks that end with their process, however it
ends.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sgpipe.errors import StoreError, UserError, add_filename

FAULT_VARIABLE = "SGPIPE_FAULT"

_OWNER = "process "
_PATIENCE = 0.5  # seconds: `is_locked` takes the lock for a moment
# seconds
_TEMPORARY = ".sgpipe-"
_LOCK = ".lock"
_YOUNG = 60


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path` that replaces it when the block ends without an error.

    Its name starts with a dot and ends in `.tmp`; two writers never share one. What a link points
    to is replaced. A device or a pipe, such as /dev/stdout, receives the content.

    Raises OSError, which names `path`: the disk is full, or the folder is missing or cannot be
    written.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            path.write_bytes(temporary.read_bytes())
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.filename in (None, temporary, str(temporary)) and not isinstance(
            error, StoreError
        ):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8. Raises OSError, as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fault_point(name: str) -> None:
    """Kill this process if `SGPIPE_FAULT` is "NAME:FILE" and FILE exists, which is deleted: only
    one process dies.
    """
    point, _, charge = os.environ.get(FAULT_VARIABLE, "").partition(":")
    if point == name:
        with suppress(FileNotFoundError):
            os.unlink(charge)
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def only_process(file: Path, folder: Path) -> Iterator[None]:
    """Lock `file`, which is made if needed.

    Raises:
        UserError: another process has, and writes into `folder`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=_PATIENCE, poll_interval=0.1, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        owner = file.read_text(errors="replace")
        owner = owner if owner.startswith(_OWNER) else "another process"
        raise UserError(f"{folder} is in use by {owner}; wait for it to finish") from None
    try:
        with add_filename(file):
            # Where the system has no locks, filelock keeps a record of its own there.
            text = file.read_text(errors="replace")
            if text.startswith(_OWNER) or not text:
                file.write_text(f"{_OWNER}{os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def is_locked(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be written, so no run can be writing here
        return False


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder in `parent` (None: the system's) for the block; those of killed processes are
    deleted, too.
    """
    parent = parent or Path(tempfile.gettempdir())
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            lock = folder / _LOCK
            is_own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if is_own and time.time() - lock.stat().st_mtime > _YOUNG and not is_locked(lock):
                shutil.rmtree(folder, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(
            prefix=_TEMPORARY, dir=parent, ignore_cleanup_errors=True
        ) as name,
        FileLock(Path(name, _LOCK), thread_local=False),
    ):
        yield Path(name)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `out` when the block ends, and deleted if the block
    fails.

    Raises:
        UserError: `out` exists and is not an empty folder, or cannot be replaced.
        OSError: it was made meanwhile.
    """
    named = out
    out = Path(os.path.realpath(out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {named} exists and is not overwritten; name a new folder")
    if out == Path.cwd() or out.is_mount():
        raise UserError(
            f"--out {named} is the working folder or a mount point; name a new folder in it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out.parent) as folder:
        temporary = folder / out.name
        temporary.mkdir()
        yield temporary
        os.replace(temporary, out)
