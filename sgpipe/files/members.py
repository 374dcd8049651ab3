"""The members of zip and tar archives: where each is, so that one can be read without the others."""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import BinaryIO

from sgpipe.errors import ImageError, UserError
from sgpipe.files.base import safe_name

ARCHIVES = (".zip", ".tar")
_PLAIN = -1  # the method of a member of a tar: its bytes as they are
_STORED, _DEFLATED = 0, 8  # methods of zip
_ENCRYPTED = -2
_MOST_NAME = 1 << 16  # of a member's header in a zip, with its extra fields
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # APPNOTE.TXT 4.3.7: signature, lengths of the name and the extra fields
_MOST_BYTES = (1 << 63) - 1  # that the index has numbers for
_BLOCK = 512  # of a tar
_UNPACK = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".tbz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}

# What zipfile and tarfile raise for damaged archives, as fuzzing shows; the last two for headers that ask for too much.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RecursionError,
    MemoryError,
)
_NO_FILE, _OUTSIDE = "link or device", "name that leaves the archive"


@dataclass(frozen=True)
class Member:
    """Where a member's bytes are: `length` at `offset` hold `packed` bytes that unpack to `size`."""

    name: str
    offset: int
    length: int
    packed: int
    size: int
    method: int


def is_archive(name: str) -> bool:
    """Whether a file is named like an archive whose members can be read singly."""
    return name.lower().endswith(ARCHIVES)


def refuse_compressed(name: str) -> None:
    """Raises UserError: the file is named like a tar that is compressed as a whole."""
    path = PurePosixPath(name.lower())
    if path.suffix in _UNPACK and (path.suffix[:2] == ".t" or path.stem.endswith(".tar")):
        raise _compressed(name, _UNPACK[path.suffix])


def _compressed(name: str, unpack: str) -> UserError:
    ending = "-unpacked.tar" if name.lower().endswith(".tar") else ".tar"
    target = re.sub(r"(\.tar)?\.[^./]*$", "", name, flags=re.IGNORECASE) + ending
    command = f"{unpack} < {name} > {target}"
    if "://" in name:
        command = f"aws s3 cp {name} - | {unpack} | aws s3 cp - {target}" if name.startswith("s3://") else unpack
    why = "is compressed as a whole, so an image can only be read with all before it"
    return UserError(f"{name} {why}; unpack it to a .tar: {command}")


def scan(name: str, file: BinaryIO, left_out: Counter[str]) -> Iterator[Member]:
    """The members of an archive that are files, in its order.

    Args:
        name: of the archive, in messages.
        left_out: counts other members, by what they are.

    Raises:
        UserError: it is no archive, or is cut.
        OSError: it cannot be read.
    """
    if (unpack := _COMPRESSED.get(file.read(2))) is not None:
        raise _compressed(name, unpack)
    file.seek(0)
    scan_kind = _scan_zip if name.lower().endswith(".zip") else _scan_tar
    try:
        for member in scan_kind(file, left_out):
            if not all(0 <= each <= _MOST_BYTES for each in (member.offset, member.length, member.packed, member.size)):
                raise ValueError(f"{member.name!r} has an impossible size or position")
            try:
                yield replace(member, name=safe_name(member.name))
            except ImageError:
                left_out[_OUTSIDE] += 1
    except _DAMAGED as error:
        why = str(error) or type(error).__name__
        raise UserError(
            f"{name} is not a {name[-3:].lower()} archive, or is cut or damaged ({why}); copy it again"
        ) from None


def _scan_zip(file: BinaryIO, left_out: Counter[str]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        starts = sorted({info.header_offset for info in infos})  # members that share one are no images
        ends = dict(pairwise([*starts, archive.start_dir]))
        for info in infos:
            if info.filename.endswith("/"):  # which `is_dir` fails to ask of a name that is empty
                continue
            most = _LOCAL_HEADER.size + _MOST_NAME + info.compress_size
            length = min(ends[info.header_offset] - info.header_offset, most)
            method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
            yield Member(info.filename, info.header_offset, length, info.compress_size, info.file_size, method)


def _scan_tar(file: BinaryIO, left_out: Counter[str]) -> Iterator[Member]:
    end = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            vars(archive)["members"].clear()  # which it would keep for all members
            if archive.offset <= info.offset:
                raise tarfile.ReadError(f"{info.name!r} has a negative size")
            if info.isreg() and not info.issparse():
                if info.offset_data + info.size > end:
                    raise tarfile.ReadError(f"it ends within {info.name}")
                yield Member(info.name, info.offset_data, info.size, info.size, info.size, _PLAIN)
            elif not info.isdir():
                left_out[_NO_FILE] += 1
        stop = archive.offset
    # At a header that is damaged or cut, tarfile ends as it does at the end of an archive.
    file.seek(stop)
    if any(rest := file.read(_BLOCK)) or 0 < len(rest) < _BLOCK:
        raise tarfile.ReadError(f"its content ends at byte {stop} of {end}")


def unpack(member: Member, data: bytes, where: str) -> bytes:
    """The content of a member from its bytes in the archive. Raises ImageError: it is damaged, or cannot be read."""
    if member.method == _PLAIN:
        return data
    if member.method not in (_STORED, _DEFLATED):
        why = "encrypted" if member.method == _ENCRYPTED else f"compressed by method {member.method}, not by deflate"
        raise ImageError(f"image cannot be read: {where} (it is {why})")
    signature, *lengths = _LOCAL_HEADER.unpack_from(data.ljust(_LOCAL_HEADER.size, b"\0"))
    start = _LOCAL_HEADER.size + sum(lengths)
    content = data[start : start + member.packed]
    if member.method == _DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
        except zlib.error:
            content = b""
    if signature != b"PK\3\4" or len(content) != member.size:
        raise ImageError(f"image cannot be read: {where} (its part of the archive is damaged)")
    return content
