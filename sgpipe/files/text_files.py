"""Text files as users have them: plain, or compressed by gzip, which their content shows, not their name.

They are decompressed as they are read, never as a whole in memory or on disk. What is not text is refused by its name.
"""

from __future__ import annotations

import gzip
import hashlib
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from sgpipe.errors import StoreError, UserError
from sgpipe.files.stored_files import open_stored

TextFile: TypeAlias = BufferedReader | gzip.GzipFile

_CHUNK = 1 << 20
_HEAD = 512  # bytes that show what a file is; a tar archive does so at byte 257
_GZIP, _NUL = b"\x1f\x8b", b"\0"
_TAR = "a tar archive"
_CONVERT = "convert it: iconv -f {encoding} -t UTF-8 {file} > utf8.json"

# Files that are not text: where and how their content shows it, what they are, and how to get at the text.
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive", "unpack it: unzip {file}"),
    (0, b"PK\x05\x06", "an empty zip archive", "copy or download it again"),
    (0, b"\xfd7zXZ\0", "compressed by xz", "decompress it: xz -dk {file}"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "decompress it: zstd -d {file}"),
    (0, b"BZh", "compressed by bzip2", "decompress it: bzip2 -dk {file}"),
    (0, b"\x04\x22\x4d\x18", "compressed by LZ4", "decompress it: lz4 -d {file}"),
    (0, b"\x1f\x9d", "compressed by compress", "decompress it: uncompress {file}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it: 7z x {file}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it: unrar x {file}"),
    (257, b"ustar", _TAR, "unpack it: tar xf {file}"),
    (0, b"PAR1", "a Parquet file", "give a JSON file"),
    (0, b"MATLAB 5.0", "a MATLAB file", "give its annotations as JSON"),
    (0, b"\x89HDF\r\n", "an HDF5 file", "give its annotations as JSON"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "get the file: git lfs pull"),
    (0, b"\xff\xfe\0\0", "UTF-32 text", _CONVERT.replace("{encoding}", "UTF-32")),
    (0, b"\0\0\xfe\xff", "UTF-32 text", _CONVERT.replace("{encoding}", "UTF-32")),
    (0, b"\xff\xfe", "UTF-16 text", _CONVERT.replace("{encoding}", "UTF-16")),
    (0, b"\xfe\xff", "UTF-16 text", _CONVERT.replace("{encoding}", "UTF-16")),
)


@contextmanager
def open_text(path: Path | str) -> Iterator[TextFile]:
    """The bytes of a text file, decompressed as they are read; the file may be an object of a store.

    Raises:
        OSError: the file is missing, a folder, or cannot be read.
        UserError: it is empty, an archive, or of another encoding than UTF-8; also in the body of the `with` statement:
            its gzip data are cut short or corrupt.
    """
    with _decompressed(path) as file:
        _check_content(path, file.peek(_HEAD)[:_HEAD], isinstance(file, gzip.GzipFile))
        yield file


@contextmanager
def _decompressed(path: Path | str) -> Iterator[TextFile]:
    """The bytes of any file, decompressed if they are gzip data."""
    try:
        with open_stored(path) as raw:
            compressed = raw.peek(len(_GZIP)).startswith(_GZIP)
            with gzip.GzipFile(fileobj=raw) if compressed else raw as file:
                yield file
    except EOFError:
        raise UserError(f"{path} is cut short: its gzip data end in the middle; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is corrupt: its gzip data are damaged ({error}); copy or download it again") from None


def _check_content(path: Path | str, head: bytes, compressed: bool) -> None:
    """Raises UserError: the file does not begin as text in UTF-8."""
    if not head:
        raise UserError(f"{path} is empty{' when decompressed' if compressed else ''}; copy or download it again")
    if not head.strip(_NUL):
        raise UserError(f"{path} begins with {len(head)} zero bytes: it is incomplete; copy or download it again")
    if head.startswith(_GZIP):
        raise UserError(f"{path} is compressed by gzip more than once; decompress it: gunzip {shlex.quote(str(path))}")
    shown = shlex.quote(str(path))
    for start, mark, kind, advice in _FOREIGN:
        if head[start:].startswith(mark) and compressed and kind != _TAR:
            raise UserError(f"{path} is {kind} inside gzip; decompress it: gunzip {shown}")
        if head[start:].startswith(mark):
            raise UserError(f"{path} is {kind}{' inside gzip' if compressed else ''}; {advice.format(file=shown)}")
    if b"\0" in head[:2]:  # text without a byte order mark
        encoding = f"UTF-16{'BE' if head.startswith(_NUL) else 'LE'}"
        raise UserError(f"{path} is {encoding} text; {_CONVERT.format(encoding=encoding, file=shown)}")


def read_text(path: Path, what: str) -> str:
    """The content of a small text file, without a byte order mark. `what` names the file in messages.

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
        raise UserError(f"{what} {path} is not a text file (it is not valid UTF-8)") from None


def text_sha256(path: Path) -> str:
    """SHA-256 of a file's content, decompressed if it is compressed by gzip, so that both are the same file.

    Raises OSError: it cannot be read. Raises UserError: its gzip data are cut short or corrupt.
    """
    digest = hashlib.sha256()
    with _decompressed(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_ends(path: Path, length: int) -> tuple[bytes, bytes]:
    """The first and the last `length` bytes of a text file; a compressed one is read through.

    Raises as `open_text`. Raises UserError: it is a pipe, which cannot be read again.
    """
    with open_text(path) as file:
        if not file.seekable():
            raise UserError(f"{path} is a pipe, but it is read more than once; save it as a file, plain or gzip")
        head = file.read(length)
        if not isinstance(file, gzip.GzipFile):
            file.seek(max(0, file.seek(0, 2) - length))
            return head, file.read()
        tail = head
        while chunk := file.read(_CHUNK):
            tail = (tail + chunk)[-length:]
        return head, tail
