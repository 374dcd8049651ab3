"""Text files as users have them: plain, or compressed by gzip, which their content shows, not their name.

They are decompressed as they are read, never as a whole in memory or on disk.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import TypeAlias

from sgpipe.errors import StoreError, UserError
from sgpipe.files.locations import Location, open_stream

TextFile: TypeAlias = BufferedReader | gzip.GzipFile

_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


@contextmanager
def open_text(path: Location | str) -> Iterator[TextFile]:
    """Open a text file, decompressed as it is read; it may be an object of a store.

    Raises OSError: it cannot be read; UserError: it is empty, or, also in the body, its gzip data are damaged.
    """
    with _decompressed(path) as file:
        if not file.peek(1):
            raise UserError(f"{path} is empty")
        yield file


@contextmanager
def _decompressed(path: Location | str) -> Iterator[TextFile]:
    """Yield the bytes of any file, decompressed if they are gzip data."""
    try:
        with open_stream(path) as raw:
            compressed = raw.peek(len(_GZIP)).startswith(_GZIP)
            with gzip.GzipFile(fileobj=raw) if compressed else raw as file:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is cut short or corrupt ({error}); copy or download it again") from None


def read_text(path: Location, what: str) -> str:
    """Return the content of a small text file, without a byte order mark. `what` names the file in messages.

    Raises UserError: it cannot be read, or is not text in UTF-8.
    """
    try:
        with open_text(path) as file:
            return file.read().decode("utf-8-sig")
    except StoreError:
        raise
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text (plain or gzip)") from None


def text_sha256(path: Location) -> str:
    """SHA-256 of a file's content, decompressed if it is compressed by gzip. Raises as `open_text`."""
    digest = hashlib.sha256()
    with _decompressed(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_ends(path: Location, length: int) -> tuple[bytes, bytes]:
    """Return the first and the last `length` bytes of a text file; of a compressed one only the first.

    Raises as `open_text`; UserError: it is a pipe, which cannot be read again.
    """
    with open_text(path) as file:
        if not file.seekable():
            raise UserError(f"{path} is a pipe, but it is read more than once; save it as a file, plain or gzip")
        head = file.read(length)
        if isinstance(file, gzip.GzipFile):
            return head, b""
        file.seek(max(0, file.seek(0, 2) - length))
        return head, file.read()
