"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sgpipe.errors import StoreError

FAULT_VARIABLE = "SGPIPE_FAULT"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file next to `path` that replaces it when the block ends without an error.

    Its name starts with a dot and ends in `.tmp`. Two writers never share one, on whichever machines they run. A link
    stays: what it points to is replaced. A device or a pipe, such as /dev/stdout, stays too, and receives the content.

    Raises OSError, which names `path`: the disk is full, or the folder is missing or cannot be written.
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
        if error.filename in (None, temporary, str(temporary)) and not isinstance(error, StoreError):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8. Raises OSError, as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fault_point(name: str) -> None:
    """Kill this process, as a power cut would, if `SGPIPE_FAULT` is "NAME:FILE" and FILE exists.

    Tests use it to stop a run before, in and after every step of a commit. The file is deleted first, so that only one
    of all processes dies, restarted ones included.
    """
    point, _, charge = os.environ.get(FAULT_VARIABLE, "").partition(":")
    if point == name:
        with suppress(FileNotFoundError):
            os.unlink(charge)
            os.kill(os.getpid(), signal.SIGKILL)
