"""The errors a user is meant to see."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_URI = re.compile(r"(\w{2,}):/+(.*)", re.DOTALL)  # as `Path` leaves it
_WEIGHTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
_STORES = ("s3", "gs", "gcs", "abfs", "abfss")
_SHORT_URI = re.compile(rf"\b({'|'.join(_STORES)}):/(?=[^/\s])")


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class ImageError(UserError):
    """An image cannot be used: missing, broken, too large, or not of the annotated size; the message says why."""


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


def with_whole_uris(message: str) -> str:
    """Return the message with URIs as users write them: `Path` drops a slash."""
    return _SHORT_URI.sub(r"\1://", message)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in system errors that name no file, such as those of a full disk."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def existing_folder(path: Path) -> Path:
    """`path`, which is a folder. Raises UserError: it is missing, cannot be read, or is a file; see `existing_file`."""
    if not stat.S_ISDIR(_mode(path, "folder")):
        raise UserError(f"{path} is a file, not a folder")
    return path


def existing_file(path: Path) -> Path:
    """`path`, which is a file: also a pipe, but not a folder.

    Raises UserError: "no such file: …", "… is a folder, not a file", or "… cannot be read: …".
    """
    if stat.S_ISDIR(_mode(path, "file")):
        raise UserError(f"{path} is a folder, not a file")
    return path


def existing_path(path: Path) -> Path:
    """`path`, which is a file or a folder. Raises UserError: it is missing or cannot be read."""
    _mode(path, "file or folder")
    return path


def existing_model(name: str) -> str:
    """`name`, unless it can only be a path and is none: a hub id has at most one slash, within it.

    The URI of an object store is not asked.

    Raises UserError: there is no such folder or file, or it is a file that has no suffix of weights.
    """
    if _is_store(name):
        return name
    path = Path(name)
    suffix = path.suffix in _WEIGHTS
    if not suffix and path.is_file():
        raise UserError(f"{name} is a file, not a folder")
    beside = path.parent != Path(".") and path.parent.is_dir()
    if suffix or beside or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        _mode(path, "file" if suffix else "folder", name)
    return name


def existing_dataset(name: str) -> str:
    """`name`, which is a folder, a URI, or maybe the id of a dataset on the hub. Raises UserError: none of these."""
    if "://" not in name and not Path(name).is_dir():
        existing_model(name.partition("@")[0])
    return name


def existing_run(name: str) -> str:
    """`name`, which is a folder, or the URI of an object store, which is not asked. Raises UserError: neither."""
    if not _is_store(name):
        existing_folder(Path(name))
    return name


def existing_place(path: Path) -> Path:
    """`path`, which is a file, a folder, or the URI of an object store, which is not asked. Raises UserError."""
    return path if _is_store(str(path)) else existing_path(path)


def _is_store(name: str) -> bool:
    scheme, separator, _ = name.partition(":/")  # also as `Path` leaves it
    return bool(separator) and scheme in _STORES


def writable_folder(path: Path) -> Path:
    """`path`, which is a folder or can become one. Raises UserError: it is a file, or cannot be written."""
    _refuse_uri(path, "folder", "`sgpipe generate --store` writes to one")
    nearest = path
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if nearest.is_symlink() and not nearest.exists():
        raise UserError(f"{nearest} is a link to {nearest.readlink()}, which does not exist")
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
        raise UserError(f"{path} cannot be written: {os.strerror(errno.EROFS if read_only else errno.EACCES)}")
    return path


def writable_file(path: Path) -> Path:
    """`path`, which is a file or can become one. Raises UserError: it is a folder, or cannot be written."""
    _refuse_uri(path, "file", "name a file on this machine")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file")
    writable_folder(path.parent)
    return path


def _refuse_uri(path: Path, kind: str, advice: str) -> None:
    if uri := _URI.fullmatch(str(path)):
        scheme, rest = uri.groups()
        what = f"an object store, not a {kind}; {advice}" if scheme in _STORES else f"a URL, not a {kind}"
        raise UserError(f"{scheme}://{rest} is {what}")


def _mode(path: Path, kind: str, name: str = "") -> int:
    """What the system says that `path` is. `kind`: what it should be, and `name`: what it is called in messages."""
    copy = "copy it to this machine" if kind == "file" else "copy it to this machine (a run: `sgpipe fetch`)"
    _refuse_uri(path, kind, copy)
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        link = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise UserError(f"no such {kind}: {name or path}{link}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name with a null character
        raise UserError(f"no such {kind}: {str(path)!r} ({error})") from None


def refusal(error: OSError) -> str:
    """A system error in one line: what and where, without the words that libraries put around it."""
    if isinstance(error, StoreError):
        return str(error)
    return f"{os.strerror(error.errno) if error.errno else error}: {error.filename or _unnamed()}"


def reason_of(error: OSError) -> str:
    """Why the system or a library refuses, in one line that names no file."""
    return os.strerror(error.errno) if error.errno else (str(error).strip() or type(error).__name__).splitlines()[0]


def _unnamed() -> str:
    """What a system error that names no file is about: the current folder, or, as files are named, a stream."""
    try:
        os.getcwd()
    except OSError:
        return "the current folder, which has been deleted"
    return "standard output, or a file that the system does not name"
