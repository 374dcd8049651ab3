"""Writing a file whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FAULT_VARIABLE = "SGPIPE_FAULT"
_SMALL = 1 << 20  # bytes
_LEFT_SECONDS = 24 * 3600


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the block ends without an error.

    Its name starts with a dot and ends in `.tmp`. Two writers never share one, on whichever machines they run. A link
    stays: what it points to is replaced. A device or a pipe, such as /dev/stdout, stays too, and receives the content.

    Raises OSError: the disk is full, or the folder is missing or cannot be written.
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
    finally:
        temporary.unlink(missing_ok=True)


def delete_leftovers(path: Path) -> None:
    """Delete the temporary files of `path` that killed writers left: those which nobody has written to for a day."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.tmp"):
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _LEFT_SECONDS:
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8. Raises OSError, as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Delete a folder and its parents if the block makes them, fails, and leaves nothing in them."""
    before = FolderBefore(folder, ())
    try:
        yield
    except BaseException:
        before.remove_empty_folders()
        raise


class FolderBefore:
    """What a folder held before a command, to leave it like that if the command is refused.

    Covered are the folder with its parents, the files and folders in it that the command makes (`names`), and its
    hidden folder, but not what is within the others. Everything else there belongs to somebody else.
    """

    def __init__(self, root: Path, names: Collection[str]) -> None:
        self.root = root
        self._names = names
        self._missing = [path for path in (root, *root.parents) if not path.exists()]
        self._before = self._contents()

    def restore(self) -> None:
        """Delete what is new, and write small files back that have changed. Nobody else may be working in it."""
        for path in self._contents():
            if path not in self._before and path.parent.exists():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path, content in self._before.items():
            if content is not None and _small_content(path) != content:
                with atomic_write(path) as temporary:
                    temporary.write_bytes(content)

    def remove_empty_folders(self) -> None:
        """Delete the new folders that are empty: the folder itself, its parents, and those within."""
        within = [path for path in self._contents() if path not in self._before and path.is_dir()]
        for path in (*within, *self._missing):
            with suppress(OSError):  # it is not empty
                path.rmdir()

    def _contents(self) -> dict[Path, bytes | None]:
        """The files and folders, and the content of small files."""
        own = [path for path in _inside(self.root) if path.name in self._names]
        hidden = [inner for path in own if path.name.startswith(".") for inner in _inside(path)]
        return {path: _small_content(path) for path in (*own, *hidden)}


def _inside(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return []


def _small_content(path: Path) -> bytes | None:
    with suppress(OSError):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _SMALL:
            return path.read_bytes()
    return None


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
