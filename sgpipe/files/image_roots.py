"""Image roots of locations, the texts by which recipes and manifests name folders, archives,
prefixes and datasets.

Zip and tar files are read as if they were unpacked into one folder; an index says where each member
is.
"""

import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import Event, Lock
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from sgpipe.errors import ImageError, UserError, existing_folder
from sgpipe.files.index import NAME, IndexFolder, IndexReference, index_table, write_index
from sgpipe.files.locations import (
    Location,
    ObjectInfo,
    StorePath,
    below,
    info_of,
    is_uri,
    open_stream,
    read_range,
)
from sgpipe.files.roots import (
    FolderRoot,
    HubRoot,
    ImageFile,
    ImageRoot,
    ObjectRoot,
    RunRoot,
    checked_size,
    is_image,
    list_objects,
    safe_name,
)
from sgpipe.utils.console import Progress, count
from sgpipe.utils.prefetch import prefetch

__all__ = ["ImageFile", "ImagePlace", "ImageRoot", "ImageRoots", "IndexFolder"]
__all__ += [
    "absolute",
    "check_images",
    "existing_images",
    "has_images",
    "image_root",
    "lacks_images",
    "located",
]

ImagePlace = str | Path | StorePath | ImageRoot
ARCHIVES = (".zip", ".tar")
_PLAIN = -1  # the method of a member of a tar: its bytes as they are
# methods of zip
_STORED = 0
_DEFLATED = 8
_ENCRYPTED = -2
_MOST_NAME = 1 << 16  # of a member's header in a zip, with its extra fields
_LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # APPNOTE.TXT 4.3.7: signature, lengths of the name and the extra fields
_MOST_BYTES = (1 << 63) - 1  # that the index has numbers for
_BLOCK = 512  # of a tar
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".tar.zst")

# What zipfile and tarfile raise for damaged archives, as fuzzing shows; the last two for headers
# that ask for too much.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, ValueError, OverflowError, NotImplementedError, RecursionError,
            MemoryError)  # fmt: skip
_NO_FILE = "link or device"
_OUTSIDE = "name that leaves the archive"
LAYOUT = 2  # of the index
_ARCHIVE = "archive"
_NUMBERS = dict.fromkeys(("offset", "length", "packed", "size"), pa.int64())
_COLUMNS = {_ARCHIVE: pa.int32(), **_NUMBERS, "method": pa.int32()}  # then those of a `Member`
_OF_MACOS = "__MACOSX/"  # what its zips have beside each file
_SCANS = 4  # archives that are read at once
_HEADS = 8  # archives that a store is asked for at once
_SHARDS = re.compile(
    r"\{(\d+)\.\.(\d+)\}"
)  # WebDataset's way to name many: train-{000000..000127}.tar
_PROBED = 1000  # objects of a prefix that tell what is in it: those of one answer
_MEMBERS_PER_STEP = 1000  # of the progress


_made: dict[tuple[str, IndexFolder], ImageRoot] = {}
_making = Lock()


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

    def _read(self, name: str, most: int) -> bytes:
        where = self.where(name)
        found = self._find(name)
        if not found:
            raise FileNotFoundError
        if len(found) > 1:
            raise ImageError(
                f"image cannot be read: {where} ({len(found)} archives have it: name it"
                " ARCHIVE/NAME)"
            )
        archive = self._archives[found[0].pop(_ARCHIVE)]
        member = Member(**found[0])
        checked_size(max(member.size, member.length) if member.size else 0, where)
        data = read_range(
            self.folder / archive["name"], member.offset, member.length, archive["version"]
        )
        return unpack(member, data, where)

    def _find(self, name: str) -> list[dict[str, Any]]:
        index = self.index.opened
        found = index.find(name)
        for at, character in enumerate(name):
            if (
                not found
                and character == "/"
                and (number := self._numbers.get(name[:at])) is not None
            ):
                rest = name[at + 1 :]
                folder = self._archives[number]["folder"]
                rows = index.find(rest) or (index.find(f"{folder}/{rest}") if folder else [])
                found = [row for row in rows if row[_ARCHIVE] == number]
        for folder in () if found else self._folders:
            rows = index.find(f"{folder}/{name}")
            found += [row for row in rows if self._archives[row[_ARCHIVE]]["folder"] == folder]
        return _last_of_each(found)

    @cached_property
    def _archives(self) -> list[dict[str, Any]]:
        return list(self.index.opened.meta["archives"])

    @cached_property
    def _folders(self) -> set[str]:
        return {archive["folder"] for archive in self._archives} - {""}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {_label(archive["name"]): number for number, archive in enumerate(self._archives)}


def _last_of_each(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
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
    lock = Lock()
    stopped = Event()

    def scan_one(number: int) -> tuple[pa.Table, dict[str, Any], Counter[str]]:
        info = archives[number]
        folders = set[str]()
        left_out = Counter[str]()

        def rows(file: BinaryIO) -> Iterator[tuple[Any, ...]]:
            for done, member in enumerate(scan(f"{folder}/{info.name}", file, left_out), 1):
                if is_image(member.name) and not member.name.startswith(_OF_MACOS):
                    folders.add(member.name.partition("/")[0] if "/" in member.name else "")
                yield member.name, number, *member[1:]
                if not done % _MEMBERS_PER_STEP:
                    with lock:
                        advance(_MEMBERS_PER_STEP, {})
                if stopped.is_set():
                    return

        with open_stream(folder / info.name) as file:
            table = index_table(_COLUMNS, rows(file))
        common = folders.pop() if len(folders) == 1 else ""  # that contains all its images
        return table, {"name": info.name, "version": info.version, "folder": common}, left_out

    numbers = range(len(archives))
    with (
        progress.images(None, "reading the index") as advance,
        prefetch(scan_one, numbers, _SCANS, _SCANS) as scanned,
    ):
        try:
            tables, described, counts = zip(*scanned, strict=True)
        finally:
            stopped.set()
    table = pa.concat_tables(tables).sort_by(NAME)
    left_out = sum(counts, Counter[str]())
    for what, number in sorted(left_out.items()):
        progress.say(f"NOTE: {location}: {count(number, 'member')} left out: {what}")
    write_index(path, table, {"archives": described})


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
    """Raises UserError: the file is named like a tar that is compressed as a whole."""
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
            if not all(0 <= each <= _MOST_BYTES for each in member[1:5]):
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
        starts = sorted(
            {info.header_offset for info in infos}
        )  # members that share one are not images
        ends = dict(pairwise([*starts, archive.start_dir]))
        for info in infos:
            if info.filename.endswith("/"):  # which `is_dir` fails to ask of a name that is empty
                continue
            most = _LOCAL_HEADER.size + _MOST_NAME + info.compress_size
            length = min(ends[info.header_offset] - info.header_offset, most)
            method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
            yield Member(
                info.filename,
                info.header_offset,
                length,
                info.compress_size,
                info.file_size,
                method,
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
    """Return the content of a member from its bytes in the archive. Raises ImageError: it cannot be
    read.
    """
    if member.method == _PLAIN:
        return data
    if member.method not in (_STORED, _DEFLATED):
        why = (
            "encrypted"
            if member.method == _ENCRYPTED
            else f"compressed by method {member.method}, not by deflate"
        )
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


def located(location: ImagePlace, base: Location | None = None) -> str:
    """Return the text of a location, a path relative to `base`."""
    if not isinstance(location, str | Path | StorePath):
        return location.location
    text = str(location)
    return text if base is None or is_uri(text) else str(below(base, text))


def image_root(location: ImagePlace, indexes: IndexFolder | None = None) -> ImageRoot:
    """Return the root of a location: a folder, which need not exist, one or more archives, or a
    prefix of a store.

    Raises UserError: an archive or a store is missing, or cannot be read; StoreError; OSError: no
    index is written.
    """
    if not isinstance(location, str | Path | StorePath):
        return location
    indexes = indexes or IndexFolder()
    key = (located(location), indexes)
    with _making:
        if key not in _made:
            _made[key] = _open_root(*key)
        return _made[key]


def existing_images(location: ImagePlace, indexes: IndexFolder | None = None) -> ImageRoot:
    """As `image_root`, of a location as it is now, on the hub its commit. Raises UserError: it does
    not exist.
    """
    if located(location).startswith("hf://"):
        dataset, names = HubRoot(located(location)).dataset.list()
        root = HubRoot(dataset.uri)
        vars(root)["_names"] = frozenset(names)  # a commit does not change: it is not listed again
        return root
    check_images(location)
    with _making:  # the archives or objects may have been replaced since the root was made
        for key in [key for key in _made if key[0] == located(location)]:
            del _made[key]
    return image_root(location, indexes)


def check_images(location: ImagePlace) -> None:
    """Raises UserError: a location does not exist, or is nothing that images are in; archives are
    not read.
    """
    text = located(location)
    if text.startswith("hf://"):
        HubRoot(text).dataset.list()
    elif is_uri(text):
        _place(text)
    elif Path(text).is_file():
        refuse_compressed(text)
        if not is_archive(text):
            raise UserError(
                f"{text} is a file, not a folder of images or an archive of them (.zip, .tar)"
            )
    elif not _SHARDS.search(Path(text).name) and not RunRoot.is_named(text):
        existing_folder(Path(text))


def has_images(location: ImagePlace) -> bool:
    """Return whether a folder has an image or an archive at any depth; only the first one is looked
    for.

    Of anything but a folder on this machine, True: it is not looked into.
    """
    text = located(location)
    if is_uri(text) or not Path(text).is_dir():
        return True
    for _, _, names in os.walk(text, followlinks=True):
        if any(is_image(name) or is_archive(name) for name in names):
            return True
    return False


def lacks_images(location: ImagePlace, file_names: Iterable[str]) -> bool:
    """Return whether a folder has no file of any of these names at any depth, and no archive that
    could have one.

    Of anything but a folder on this machine, False: it is not looked into.
    """
    text = located(location)
    base_names: set[str] = set()
    for name in file_names:  # backslashes belong to a name, or stand for slashes
        base_names |= {PurePosixPath(name).name, PureWindowsPath(name).name}
    if (
        is_uri(text) or not Path(text).is_dir() or any("#" in name for name in base_names)
    ):  # rows of Parquet files
        return False
    for _, _, names in os.walk(text, followlinks=True):
        if not base_names.isdisjoint(names) or any(map(is_archive, names)):
            return False
    return True


def absolute(location: ImagePlace) -> str:
    """Return the text of a location that does not depend on the working folder."""
    text = located(location)
    return text if is_uri(text) else str(Path(text).resolve())


class ImageRoots(Mapping[str, ImageRoot]):
    """The roots of the splits of a run, each made when it is needed."""

    def __init__(self, locations: Mapping[str, str], indexes: IndexFolder | None = None) -> None:
        self.locations = locations
        self._indexes = indexes

    def __getitem__(self, split: str) -> ImageRoot:
        return image_root(self.locations[split], self._indexes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)


def _open_root(text: str, indexes: IndexFolder) -> ImageRoot:
    if text.startswith("hf://"):
        return HubRoot(text)
    if RunRoot.is_named(text):
        return RunRoot(text)
    folder, names = _place(text)
    if names or (names := _archives_alone(text, folder)):
        infos = list[ObjectInfo]()
        with prefetch(lambda name: info_of(folder / name), names, _HEADS, _HEADS) as found:
            for name, info in zip(names, found, strict=True):
                if info is None:
                    raise UserError(f"no such file: {folder}/{name}")
                infos.append(replace(info, name=name))  # which may be below folders of a prefix
        reference = indexes.reference(
            [LAYOUT, [[info.name, info.size, info.state] for info in infos]]
        )
        if not reference.exists:
            build_index(reference.path, text, folder, infos, indexes.progress)
        return ArchiveRoot(text, folder, reference)
    if isinstance(folder, Path):
        return FolderRoot(folder)
    if not indexes.whole:
        return ObjectRoot(text, folder)
    indexes.progress.say(f"listing {text}")
    stamp, listed = list_objects(folder, indexes.progress)
    reference = indexes.reference(stamp)
    if not reference.exists:
        write_index(reference.path, listed, {})
    return ObjectRoot(text, folder, reference)


def _place(text: str) -> tuple[Location, list[str]]:
    """Return the folder or prefix of a location, and the archives it names there. Raises UserError:
    no such bucket.
    """
    if not is_uri(text):
        path = Path(text)
        is_named = (path.is_file() and is_archive(path.name)) or (
            not path.exists() and _SHARDS.search(path.name)
        )
        return (path.parent, _shards(path.name)) if is_named else (path, [])
    parent, _, name = text.rstrip("/").rpartition("/")
    refuse_compressed(text)
    names = _shards(name) if is_archive(name) else []
    files = StorePath(parent if names else text)
    files.check()
    return files, names


def _archives_alone(text: str, folder: Location) -> list[str]:
    """Return the archives of a folder or prefix in which is nothing else that is read, and no
    folder of a disk.
    """

    def listed() -> Iterator[str]:
        if isinstance(folder, StorePath):
            yield from (info.name for info in folder.list())
        else:
            with suppress(OSError), os.scandir(folder) as entries:  # opening an image will say why
                yield from (
                    entry.name + "/" * entry.is_dir()
                    for entry in entries
                    if not entry.name.startswith(".")
                )

    names: list[str] = []
    for name in listed():
        if is_image(name) or name.endswith((".parquet", "/")):
            return []
        names.append(name)
        if len(names) == _PROBED and not any(map(is_archive, names)):
            return []
    if not names and isinstance(folder, StorePath):
        raise UserError(f"{text} contains nothing")
    for name in sorted(names):
        refuse_compressed(f"{text}/{name}")
    return sorted(filter(is_archive, names))


def _shards(name: str) -> list[str]:
    """Return the names that a name with a range stands for: itself, if it has none. Raises
    UserError: it is empty.
    """
    found = _SHARDS.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise UserError(f"{name} names no archive: {first} is larger than {last}")
    return [
        f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}" for number in numbers
    ]
