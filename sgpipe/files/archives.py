"""Archives of images: zip and tar files are read as if they were unpacked into one folder; an index
says where each member is.
"""

import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from threading import Event, Lock
from typing import BinaryIO, NamedTuple, TypedDict

import pyarrow as pa

from sgpipe.errors import ImageError, UserError
from sgpipe.files.index import NAME, IndexReference, IndexRow, IndexValues, index_table, write_index
from sgpipe.files.locations import Location, open_stream, read_range
from sgpipe.files.roots import ImageRoot, checked_size, is_image, safe_name
from sgpipe.files.stores import ObjectInfo, StorePath
from sgpipe.utils.console import Progress, count
from sgpipe.utils.prefetch import prefetch

ARCHIVES = (".zip", ".tar")
LAYOUT = 2  # of the index
_PLAIN = -1  # the method of a member of a tar: its bytes as they are
# methods of zip
_STORED = 0
_DEFLATED = 8
_ENCRYPTED = -2
_MOST_NAME = 1 << 16  # of a member's header in a zip, with its extra fields
# APPNOTE.TXT 4.3.7: signature, lengths of the name and the extra fields
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MOST_BYTES = (1 << 63) - 1  # that the index has numbers for
_BLOCK = 512  # of a tar
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")
# What zipfile and tarfile raise for damaged archives, as fuzzing shows; the last two for headers
# that ask for too much.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RecursionError,
    MemoryError,
)
_NO_FILE = "link or device"
_OUTSIDE = "name that leaves the archive"
_ARCHIVE = "archive"
_NUMBERS = dict.fromkeys(("offset", "length", "packed", "size"), pa.int64())
_COLUMNS = {_ARCHIVE: pa.int32(), **_NUMBERS, "method": pa.int32()}  # then those of a `Member`
_OF_MACOS = "__MACOSX/"  # what its zips have beside each file
_SCANS = 4  # archives that are read at once
_MEMBERS_PER_STEP = 1000  # of the progress


class ArchiveInfo(TypedDict):
    """What the index says of an archive; `folder`: that contains all its images, or ""."""

    name: str
    version: str | None
    folder: str


@dataclass(frozen=True)
class ArchiveRoot(ImageRoot):
    """Archives in a place, and the index of their members.

    A member is named as in its archive or, as it must be if several have that name, as
    ARCHIVE/NAME: "patch8/1.jpg" may be "1.jpg" of patch8.tar. A folder of all images of an archive,
    as in COCO's val2017.zip, may be left out.
    """

    location: str
    folder: Location
    index: IndexReference

    @property
    def threads(self) -> int:  # type: ignore[override]
        return 8 if isinstance(self.folder, StorePath) else 2

    def where(self, name: str) -> str:
        return f"{self.location}: {name}"

    def check(self) -> None:
        if isinstance(self.folder, StorePath):
            self.folder.check()

    def entries(self) -> Iterator[ObjectInfo]:
        for name, group in groupby(self.index.opened, key=lambda row: str(row[NAME])):
            rows = _last_of_each(group)
            for row in rows:
                archive = self._archives[row[_ARCHIVE]]
                full = name if len(rows) == 1 else f"{_label(archive['name'])}/{name}"
                yield ObjectInfo(full, row["size"], archive["version"])

    def _has(self, file: str) -> bool:
        return len(self._find(file)) == 1

    def _read(self, name: str, length: int) -> bytes:
        where = self.where(name)
        members = self._find(name)
        if not members:
            raise FileNotFoundError
        if len(members) > 1:
            raise ImageError(
                f"image cannot be read: {where} ({len(members)} archives have it: name it"
                " ARCHIVE/NAME)"
            )
        archive = self._archives[members[0].pop(_ARCHIVE)]
        member = Member(**members[0])
        checked_size(max(member.size, member.length) if member.size else 0, where)
        data = read_range(
            self.folder / archive["name"], member.offset, member.length, archive["version"]
        )
        return unpack(member, data, where)

    def _find(self, name: str) -> list[IndexRow]:
        """Return the members of a name, one of each archive."""
        rows = self.index.opened.find(name)
        return _last_of_each(rows or self._named_in_archive(name) or self._below_folder(name))

    def _named_in_archive(self, name: str) -> list[IndexRow]:
        """Return the members that ARCHIVE/NAME names."""
        for position, character in enumerate(name):
            number = self._numbers.get(name[:position]) if character == "/" else None
            if number is not None:
                rows = self._find_in(number, name[position + 1 :])
                if rows:
                    return rows
        return []

    def _find_in(self, number: int, name: str) -> list[IndexRow]:
        """Return the members of an archive, by its number."""
        index = self.index.opened
        rows = index.find(name)
        folder = self._archives[number]["folder"]
        if not rows and folder:
            rows = index.find(f"{folder}/{name}")
        return [row for row in rows if row[_ARCHIVE] == number]

    def _below_folder(self, name: str) -> list[IndexRow]:
        """Return the members of a name below the folder of all images of their archives."""
        members: list[IndexRow] = []
        for folder in self._folders:
            rows = self.index.opened.find(f"{folder}/{name}")
            members += [row for row in rows if self._archives[row[_ARCHIVE]]["folder"] == folder]
        return members

    @cached_property
    def _archives(self) -> list[ArchiveInfo]:
        return list(self.index.opened.meta["archives"])

    @cached_property
    def _folders(self) -> set[str]:
        return {archive["folder"] for archive in self._archives} - {""}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {_label(archive["name"]): number for number, archive in enumerate(self._archives)}


def _last_of_each(rows: Iterable[IndexRow]) -> list[IndexRow]:
    """Return, of members of one archive and name, the last one, as when they are unpacked."""
    return list({row[_ARCHIVE]: row for row in rows}.values())


def _label(archive: str) -> str:
    return str(PurePosixPath(archive).with_suffix(""))


def build_index(
    path: Path, location: str, folder: Location, archives: Sequence[ObjectInfo], progress: Progress
) -> None:
    """Read the members of archives, and write their index. Raises UserError: one is damaged;
    OSError.
    """
    progress.say(f"reading the index of {location}, once: {count(len(archives), 'archive')}")
    numbers = range(len(archives))
    stopped = Event()
    lock = Lock()
    with progress.images(None, "reading the index") as advance:

        def advance_alone(members: int) -> None:
            with lock:
                advance(members, {})

        def scan_one(number: int) -> _Scanned:
            return _scan_archive(folder, archives[number], number, stopped, advance_alone)

        with prefetch(scan_one, numbers, _SCANS, _SCANS) as results:
            try:
                scanned = list(results)
            finally:
                stopped.set()
    left_out = Counter[str]()
    for archive in scanned:
        left_out.update(archive.left_out)
    for reason, number in sorted(left_out.items()):
        progress.say(f"NOTE: {location}: {count(number, 'member')} left out: {reason}")
    table = pa.concat_tables([archive.table for archive in scanned]).sort_by(NAME)
    write_index(path, table, {"archives": [archive.info for archive in scanned]})


class _Scanned(NamedTuple):
    """The members of an archive, and how many are left out, by the reason."""

    table: pa.Table
    info: ArchiveInfo
    left_out: Counter[str]


def _scan_archive(
    folder: Location,
    archive: ObjectInfo,
    number: int,
    stopped: Event,
    advance: Callable[[int], None],
) -> _Scanned:
    """Read the members of an archive, until `stopped` is set.

    Raises:
        UserError, OSError: as `scan`.
    """
    folders = set[str]()  # in which images are
    left_out = Counter[str]()

    def rows(file: BinaryIO) -> Iterator[IndexValues]:
        for done, member in enumerate(scan(f"{folder}/{archive.name}", file, left_out), 1):
            if is_image(member.name) and not member.name.startswith(_OF_MACOS):
                first, slash, _ = member.name.partition("/")
                folders.add(first if slash else "")
            yield member.name, number, *member[1:]
            if not done % _MEMBERS_PER_STEP:
                advance(_MEMBERS_PER_STEP)
            if stopped.is_set():
                return

    with open_stream(folder / archive.name) as file:
        table = index_table(_COLUMNS, rows(file))
    common = folders.pop() if len(folders) == 1 else ""
    info: ArchiveInfo = {"name": archive.name, "version": archive.version, "folder": common}
    return _Scanned(table, info, left_out)


class Member(NamedTuple):
    """Where a member's bytes are: `length` at `offset` hold `packed` bytes that unpack to
    `size`.
    """

    name: str
    offset: int
    length: int
    packed: int
    size: int
    method: int


def is_archive(name: str) -> bool:
    """Return whether a file is named like an archive whose members can be read singly."""
    return name.lower().endswith(ARCHIVES)


def refuse_compressed(name: str) -> None:
    """Refuse a tar that is compressed as a whole, by its name.

    Raises:
        UserError: the file is named like a tar that is compressed as a whole.
    """
    if name.lower().endswith(_COMPRESSED):
        why = "is compressed as a whole, so an image can only be read with everything before it"
        raise UserError(f"{name} {why}; unpack it to a .tar")


def scan(name: str, file: BinaryIO, left_out: Counter[str]) -> Iterator[Member]:
    """Yield members that are files; count what is `left_out`. Raises UserError: no archive, or
    damaged; OSError.
    """
    scan_kind = _scan_zip if name.lower().endswith(".zip") else _scan_tar
    try:
        for member in scan_kind(file, left_out):
            if not all(0 <= number <= _MOST_BYTES for number in member[1:5]):
                raise ValueError(f"{member.name!r} has an impossible size or position")
            try:
                yield member._replace(name=safe_name(member.name))
            except ImageError:
                left_out[_OUTSIDE] += 1
    except _DAMAGED as error:
        why = str(error) or type(error).__name__
        raise UserError(
            f"{name} is not a {name[-3:].lower()} archive, or is truncated or damaged ({why}); copy"
            " it again"
        ) from None


def _scan_zip(file: BinaryIO, left_out: Counter[str]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        # members that share one are not images
        starts = sorted({info.header_offset for info in infos})
        ends = dict(pairwise([*starts, archive.start_dir]))
        for info in infos:
            if info.filename.endswith("/"):  # which `is_dir` fails to ask of a name that is empty
                continue
            longest = _LOCAL_HEADER.size + _MOST_NAME + info.compress_size
            yield Member(
                name=info.filename,
                offset=info.header_offset,
                length=min(ends[info.header_offset] - info.header_offset, longest),
                packed=info.compress_size,
                size=info.file_size,
                method=_ENCRYPTED if info.flag_bits & 1 else info.compress_type,
            )


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
    rest = file.read(_BLOCK)
    if any(rest) or 0 < len(rest) < _BLOCK:
        raise tarfile.ReadError(f"its content ends at byte {stop} of {end}")


def unpack(member: Member, data: bytes, where: str) -> bytes:
    """Return the content of a member from its bytes in the archive.

    Raises:
        ImageError: it cannot be read.
    """
    if member.method == _PLAIN:
        return data
    if member.method == _ENCRYPTED:
        raise ImageError(f"image cannot be read: {where} (it is encrypted)")
    if member.method not in (_STORED, _DEFLATED):
        why = f"compressed by method {member.method}, not by deflate"
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
