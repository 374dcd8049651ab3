"""Images in archives: zip and tar files, as if all of them were unpacked into one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import groupby
from pathlib import PurePosixPath
from threading import Event, Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import ImageError
from sgpipe.files.base import ImageEntry, checked_size, is_image, safe_name
from sgpipe.files.index import NAME, FileIndex, FileIndexRows, IndexReference, by_name, write_index
from sgpipe.files.local import Files, reading, version_of
from sgpipe.files.members import Member, scan, unpack
from sgpipe.files.object_store import ObjectInfo
from sgpipe.utils.console import Progress, count

_LAYOUT = 2  # of the index
_ARCHIVE = "archive"
_COLUMNS = {
    _ARCHIVE: pa.int32(),
    **dict.fromkeys(("offset", "length", "packed", "size"), pa.int64()),
    "method": pa.int32(),
}
_OF_MACOS = "__MACOSX/"  # what its zips have beside each file
_SCANS = 4  # archives that are read at once
_MEMBERS_PER_STEP = 1000  # of the progress


@dataclass(frozen=True)
class ArchiveRoot:
    """Archives in a place, and the index of their members.

    A member is named as in its archive, or as ARCHIVE/NAME: "patch8/1.jpg" may be "1.jpg" of patch8.tar. If several
    archives have members of one name, only the latter names one. A folder that holds all images of an archive, such as
    val2017 in COCO's val2017.zip, may be left out.
    """

    location: str
    files: Files
    index: IndexReference
    threads: int

    def where(self, name: str) -> str:
        return f"{self.location}: {name}"

    def contains(self, name: str) -> bool:
        try:
            return len(self._find(safe_name(name))) == 1
        except ImageError:
            return False

    def open(self, name: str) -> BytesIO:
        where, found = self.where(name), self._find(safe_name(name))
        if not found:
            raise ImageError(f"image file not found: {where}")
        if len(found) > 1:
            raise ImageError(f"image cannot be read: {where} ({len(found)} archives have it: name it ARCHIVE/NAME)")
        archive = self._archives[found[0].pop(_ARCHIVE)]
        member = Member(**found[0])
        checked_size(max(member.size, member.length) if member.size else 0, where)
        with reading(self.files, where):
            data = self.files.read_range(archive["name"], member.offset, member.length, archive["version"])
        return BytesIO(unpack(member, data, where))

    def peek(self, name: str) -> BytesIO:
        return self.open(name)

    def entries(self) -> Iterator[ImageEntry]:
        for name, group in groupby(self.index.opened, key=lambda row: str(row[NAME])):
            rows = list(group)
            for row in rows:
                archive = self._archives[row[_ARCHIVE]]
                full = name if len(rows) == 1 else f"{_label(archive['name'])}/{name}"
                yield ImageEntry(full, row["size"], archive["version"])

    @property
    def notes(self) -> Sequence[str]:
        """What of the archives is not used, one line each."""
        return [str(note) for note in self.index.opened.meta["notes"]]

    def _find(self, name: str) -> list[dict[str, Any]]:
        """The members that a name may mean."""
        index: FileIndex = self.index.opened
        found = index.find(name)
        for at, character in enumerate(name):
            if not found and character == "/" and (archive := self._numbers.get(name[:at])) is not None:
                rest, folder = name[at + 1 :], self._archives[archive]["folder"]
                rows = index.find(rest) or (index.find(f"{folder}/{rest}") if folder else [])
                found = [row for row in rows if row[_ARCHIVE] == archive]
        for folder, archives in () if found else self._folders.items():
            found += [row for row in index.find(f"{folder}/{name}") if row[_ARCHIVE] in archives]
        return found

    @cached_property
    def _archives(self) -> list[dict[str, Any]]:
        return list(self.index.opened.meta["archives"])

    @cached_property
    def _folders(self) -> dict[str, set[int]]:
        """The folders that hold all images of an archive, and of which archives."""
        found: dict[str, set[int]] = {}
        for number, archive in enumerate(self._archives):
            if archive["folder"]:
                found.setdefault(archive["folder"], set()).add(number)
        return found

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {_label(archive["name"]): number for number, archive in enumerate(self._archives)}


def _label(archive: str) -> str:
    return str(PurePosixPath(archive).with_suffix(""))


def stamp(archives: Sequence[ObjectInfo]) -> list[Any]:
    """What identifies the index of archives."""
    return [_LAYOUT, [[info.name, info.size, version_of(info)] for info in archives]]


def build_index(
    reference: IndexReference, location: str, files: Files, archives: Sequence[ObjectInfo], progress: Progress
) -> None:
    """Read the members of archives, and write their index.

    Raises UserError: one is no archive, or is cut; OSError: it cannot be read, or the index not be written.
    """
    progress.say(f"reading the index of {location}, once: {count(len(archives), 'archive')}")
    with progress.images(None, "reading the index") as advance:
        lock = Lock()

        def step(members: int) -> None:
            with lock:
                advance(members, {})

        tables, folders, left_out = _scan_all(files, archives, step)
    table, repeated = _last_of_a_name(by_name(pa.concat_tables(tables)))
    notes = [f"{location}: {count(number, 'member')} left out: {what}" for what, number in sorted(left_out.items())]
    if repeated:
        is_ = "has a name that comes again" if repeated == 1 else "have names that come again"
        notes.append(f"{location}: {count(repeated, 'member')} {is_} in their archive; the last of a name counts")
    named = [
        {"name": info.name, "version": info.version, "folder": folder}
        for info, folder in zip(archives, folders, strict=True)
    ]
    write_index(reference.path, table, {"archives": named, "notes": notes})


def _scan_all(
    files: Files, archives: Sequence[ObjectInfo], step: Callable[[int], None]
) -> tuple[list[pa.Table], list[str], Counter[str]]:
    """A table of the members of each archive, the folder of all its images, and how many were left out, by what."""
    left_out: list[Counter[str]] = [Counter() for _ in archives]
    stopped = Event()

    def scan_one(number: int) -> tuple[pa.Table, str]:
        rows, name = FileIndexRows(_COLUMNS), archives[number].name
        folders: set[str] = set()
        with files.open(name) as file:
            for done, member in enumerate(scan(f"{files.location}/{name}", file, left_out[number]), 1):
                if is_image(member.name) and not member.name.startswith(_OF_MACOS):
                    folders.add(member.name.partition("/")[0] if "/" in member.name else "")
                rows.add(member.name, number, member.offset, member.length, member.packed, member.size, member.method)
                if not done % _MEMBERS_PER_STEP:
                    step(_MEMBERS_PER_STEP)
                    if stopped.is_set():
                        break
        return rows.table(), folders.pop() if len(folders) == 1 else ""

    pool = ThreadPoolExecutor(_SCANS, thread_name_prefix="index")
    try:
        tables, folders = zip(*pool.map(scan_one, range(len(archives))), strict=True)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
    return list(tables), list(folders), sum(left_out, Counter())


def _last_of_a_name(table: pa.Table) -> tuple[pa.Table, int]:
    """Rows sorted by name without those that a later row of the same archive replaces, and the number of these."""
    if len(table) < 2:
        return table, 0
    same = [
        pc.equal(column.slice(0, len(column) - 1), column.slice(1))
        for column in (table[name].combine_chunks() for name in (NAME, _ARCHIVE))
    ]
    replaced = pc.and_(*same)
    keep = pa.concat_arrays([pc.invert(replaced), pa.array([True])])
    return table.filter(keep), pc.sum(replaced).as_py() or 0
