"""The errors a user is meant to see."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What a disk or a network reports that fails for now; not every system has all of them.
_UNAVAILABLE = {
    getattr(errno, name, None)
    for name in (
        "EIO",
        "EAGAIN",
        "EBUSY",
        "ESTALE",
        "EREMOTEIO",
        "ETIMEDOUT",
        "ENETDOWN",
        "ENETUNREACH",
        "ENETRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "ENOTCONN",
        "ESHUTDOWN",
    )
} - {None}
WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")


class UserError(Exception):
    """Something the user can fix, in one line: what is wrong, where, and what to do. Commands exit
    with code 2.
    """


class CodeError(UserError):
    """Code that the user wrote failed, and the message says where.

    Attributes:
        trace: the lines of its traceback, which `--verbose` shows.
    """

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message, trace)
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


class ImageError(UserError):
    """An image cannot be used: missing, broken, too large, or not of the annotated size; the
    message says why.
    """


class UnavailableError(UserError):
    """A file cannot be read for now, because a disk or a network fails; a later try may succeed."""


class UnavailableImageError(ImageError, UnavailableError):
    """An image file cannot be read for now."""


class ComputationError(UserError):
    """A model fails on an image, such as by NaN or a full memory; it may do better on others."""


class EngineError(Exception):
    """The work could not be finished; what is committed stays."""


class DivergedError(EngineError):
    """A training whose losses are not finite: the same command would end in the same way."""


class WorkersLostError(EngineError):
    """Ray lost workers or machines; their work units can be processed again."""


class MachinesLostError(WorkersLostError):
    """The rest of the cluster is too small for the planned actors."""


class StoreError(OSError):
    """An object store refused an operation; the message is one line that names the store."""


class TakenOverError(StoreError):
    """Another run writes into the store."""


def check_share(name: str, value: float) -> float:
    """Return `value`.

    Raises:
        UserError: it is not a number from 0 to 1, or NaN, which no comparison would refuse.
    """
    try:
        is_share = bool(0 <= value <= 1)
    except (TypeError, ValueError):  # not a number, or an array
        is_share = False
    if not is_share:
        raise UserError(f"{name} {value}: expected a number from 0 to 1")
    return value


def import_extra(name: str, extra: str | None = None) -> Any:
    """Return an optional library.

    Args:
        extra: of sgpipe that installs it, if it has another name.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f'{name} is not installed: pip install "sgpipe[{extra or name}]"'
        ) from error


@contextmanager
def add_filename(path: Path) -> Iterator[None]:
    """Name `path` in system errors that name no file, such as those of a full disk."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def existing_folder(path: Path) -> Path:
    """Return `path`.

    Raises:
        UserError: it is missing or a file.
    """
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, not a folder" if path.exists() else f"no such folder: {path}"
        )
    return path


def existing_file(path: Path) -> Path:
    """Return `path`, which may also be a pipe.

    Raises:
        UserError: it is missing or a folder.
    """
    if path.is_dir() or not path.exists():
        raise UserError(
            f"{path} is a folder, not a file" if path.is_dir() else f"no such file: {path}"
        )
    return path


def existing_model(name: str) -> str:
    """Return `name`.

    Raises:
        UserError: it can only be a path, as a hub id has at most one slash, and is missing; or it
            is code, in another form than this must be named.
    """
    weights = name.endswith(WEIGHTS)
    is_path = (
        weights or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    )
    if "://" in name or Path(name).exists():
        return name
    if ".py:" in name or _is_module(name):
        raise UserError(
            f"{name} is code and no model: name a class of your own as package.module:Class"
        )
    if is_path:
        raise UserError(f"no such {'file' if weights else 'folder'}: {name}")
    return name


def _is_module(name: str) -> bool:
    """Return whether a name is that of a module, or of something within one."""
    words = name.split(".")
    return all(map(str.isidentifier, words)) and find_spec(words[0]) is not None


def format_os_error(error: OSError) -> str:
    """Return a system error in one line: what and where, without the words that libraries put
    around it.
    """
    if isinstance(error, StoreError):
        return str(error)
    advice = "; free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return (
        f"{os_error_reason(error)}:"
        f" {error.filename or 'standard output, or the current folder'}{advice}"
    )


def is_unavailable(error: BaseException) -> bool:
    """Return whether a system error says that a disk or a network fails for now."""
    return isinstance(error, OSError) and error.errno in _UNAVAILABLE


def os_error_reason(error: OSError) -> str:
    """Return why the system or a library refuses, in one line that names no file."""
    return first_line(error) if error.errno is None else os.strerror(error.errno)


def first_line(error: BaseException) -> str:
    """Return the first line of a message; of an empty one, the kind of error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
