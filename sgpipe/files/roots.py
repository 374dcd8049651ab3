"""Images by their names: the `ImageRoot` protocol, and roots that are folders, prefixes of a store or hub datasets."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from sgpipe.errors import EngineError, ImageError, StoreError, UserError, os_error_reason
from sgpipe.files.hub import DATASETS, HubDataset, MissingFileError
from sgpipe.files.index import NAME, FileIndexRows, IndexReference, by_name
from sgpipe.files.object_store import AccessError, CutError, ReplacedError, StorePath
from sgpipe.files.parquet_images import ParquetImages, file_of, parse_row_name
from sgpipe.utils.console import Progress

ImageFile = Path | BinaryIO
SUFFIXES = (  # of images that Pillow opens without a plug-in
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
MOST_BYTES = 512 << 20  # of an image file that is read into memory: the largest images that Pillow opens are smaller
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_HUB_THREADS = 8
_COLUMNS = {"size": pa.int64(), "version": pa.large_string()}  # of the index of a prefix
_HEADER = 64 << 10  # of an image file; headers are rarely longer
_OBJECTS_PER_STEP = 1000  # of the progress


@dataclass(frozen=True)
class ImageEntry:
    """A file of a root, image or not. `version` changes with it, as far as the place tells."""

    name: str
    size: int
    version: str


class ImageRoot(Protocol):
    """Images by their names. It travels to workers; threads may share it.

    A StoreError of any method means that the place cannot be reached: the work ends, and can be resumed.

    Attributes:
        location: what the user names it by: a path or a URI.
        threads: how many threads open its images ahead; 0: opening does not wait.
    """

    @property
    def location(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def where(self, name: str) -> str:
        """Return what messages call an image."""

    def contains(self, name: str) -> bool:
        """Whether there is such a file."""

    def open(self, name: str) -> ImageFile:
        """Open an image to read the whole of it.

        Raises ImageError: it is missing, truncated, replaced, or outside the root.
        """

    def peek(self, name: str) -> ImageFile:
        """As `open`, to read the header alone."""

    def entries(self) -> Iterator[ImageEntry]:
        """Yield all files, in any order."""


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES + HEIF_SUFFIXES


def image_error(error: OSError, where: str) -> ImageError | EngineError:
    """What to raise if an image cannot be read: an EngineError if this machine is the reason, which ends the work."""
    if error.errno in _OF_THE_MACHINE:
        return EngineError(f"{where} cannot be read: {os_error_reason(error)}")
    return ImageError(f"image cannot be read: {where} ({os_error_reason(error)})")


def safe_name(name: str) -> str:
    """A file name with `/` between its parts. Raises ImageError: it is empty, absolute, or leaves the root."""
    parts = name.replace("\\", "/")
    if not parts or "\0" in parts or PurePosixPath(parts).is_absolute() or ".." in PurePosixPath(parts).parts:
        raise ImageError(f"file_name {name!r} is not inside the image folder")
    return str(PurePosixPath(parts))


def checked_size(size: int, where: str) -> int:
    """The size in bytes of a file that is read into memory. Raises ImageError: it has none, or is no image's."""
    if size > MOST_BYTES:
        raise ImageError(f"image cannot be read: {where} (it has {size:,} bytes, more than any image)")
    if not size:
        raise ImageError(f"image cannot be read: {where} (the file is empty)")
    return size


@contextmanager
def reading(where: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Errors of the body that are one image's are ImageErrors.

    Args:
        check: raises UserError if the store refuses everything, as keys have expired.

    Raises StoreError: the store cannot be reached; EngineError: it refuses everything, or this machine has no room or
    too many files open.
    """
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"image file not found: {where}") from None
    except ReplacedError:
        raise ImageError(f"image cannot be read: {where} (it was replaced while it was in use)") from None
    except CutError:
        raise ImageError(f"image cannot be read: {where} (it is truncated)") from None
    except AccessError as error:
        try:
            check()
        except UserError as refused:
            raise EngineError(str(refused)) from None
        raise ImageError(f"image cannot be read: {error}") from None
    except StoreError:
        raise
    except OSError as error:
        raise image_error(error, where) from None


def open_row(images: ParquetImages, name: str, where: str) -> BytesIO | None:
    """The image in a row of a Parquet file by the name that `row_name` makes; None: it is another name.

    Raises ImageError: the file is outside the root, or has no such image; as `reading`, which must be around it.
    """
    parts = parse_row_name(name)
    if parts is None:
        return None
    file, column, row = parts
    data = images.read(safe_name(file), column, row)
    checked_size(len(data), where)
    return BytesIO(data)


@dataclass(frozen=True)
class FolderRoot:
    """A folder, which may be missing. Symbolic links are followed: they come from its owner, not from annotations."""

    folder: Path
    threads = 0

    @property
    def location(self) -> str:
        return str(self.folder)

    def where(self, name: str) -> str:
        return str(self.folder / safe_name(name))

    def contains(self, name: str) -> bool:
        try:
            file = self.open(name)
            return not isinstance(file, Path) or file.is_file()
        except (ImageError, OSError):
            return False

    def open(self, name: str) -> ImageFile:
        where = self.where(name)
        with reading(where):
            return open_row(self._parquet, name, where) or Path(where)

    def peek(self, name: str) -> ImageFile:
        return self.open(name)

    def entries(self) -> Iterator[ImageEntry]:
        for folder, _, files in os.walk(self.folder):
            for name in files:
                path = Path(folder, name)
                yield ImageEntry(path.relative_to(self.folder).as_posix(), *size_and_time(path))

    @cached_property
    def _parquet(self) -> ParquetImages:
        return ParquetImages(self.folder.joinpath)

    def __reduce__(self) -> tuple[type[FolderRoot], tuple[Path]]:
        """It travels without the files that are open."""
        return FolderRoot, (self.folder,)


def size_and_time(file: Path) -> tuple[int, str]:
    """Size and modification time; (-1, "") for a broken link and the like, whose image cannot be opened."""
    try:
        status = file.stat()
    except OSError:
        return -1, ""
    return status.st_size, str(status.st_mtime_ns)


@dataclass(frozen=True)
class ObjectRoot:
    """A prefix of a store.

    Attributes:
        index: the objects that were there when the work began; no others, and no other versions, are read then. None:
            what is there now is read.
    """

    location: str
    files: StorePath
    threads: int
    index: IndexReference | None = None

    def where(self, name: str) -> str:
        return f"{self.files}/{name}"

    def contains(self, name: str) -> bool:
        try:
            name = file_of(safe_name(name))
        except ImageError:
            return False
        return bool(self.files.head(name) if self.index is None else self.index.opened.find(name))

    def open(self, name: str) -> BytesIO:
        return self._read(name, MOST_BYTES + 1)

    def peek(self, name: str) -> BytesIO:
        """Return the beginning of an image."""
        return self._read(name, _HEADER)

    def entries(self) -> Iterator[ImageEntry]:
        if self.index is None:
            return (ImageEntry(info.name, info.size, info.state) for info in self.files.list())
        return (ImageEntry(row[NAME], row["size"], row["version"]) for row in self.index.opened)

    @cached_property
    def _parquet(self) -> ParquetImages:
        return ParquetImages(self.files.open)

    def _read(self, name: str, most: int) -> BytesIO:
        where, version = self.where(name), None
        with reading(where, self.files.check):
            if (row := open_row(self._parquet, name, where)) is not None:
                return row
            name = safe_name(name)
            if self.index is not None:
                rows = self.index.opened.find(name)
                if not rows:
                    raise ImageError(f"image file not found: {where}")
                checked_size(rows[0]["size"], where)
                version = rows[0]["version"]
            data = self.files.read_start(name, most, version)
        checked_size(len(data), where)
        return BytesIO(data)

    def __reduce__(self) -> tuple[type[ObjectRoot], tuple[Any, ...]]:
        """It travels without the files that are open."""
        return ObjectRoot, (self.location, self.files, self.threads, self.index)


def list_objects(files: StorePath, progress: Progress) -> tuple[str, pa.Table]:
    """The objects of a prefix, sorted by name, and a hash of them; as rows of Arrow, of which a million take 100 MB."""
    rows = FileIndexRows(_COLUMNS)
    with progress.images(None, "listing") as advance:
        for done, info in enumerate(files.list(), 1):
            rows.add(info.name, info.size, info.version)
            if not done % _OBJECTS_PER_STEP:
                advance(_OBJECTS_PER_STEP, {})
    table, digest = by_name(rows.table()), hashlib.sha256()
    for batch in table.to_batches():
        digest.update(batch.serialize())
    return digest.hexdigest(), table


@dataclass(frozen=True)
class HubRoot:
    """A dataset such as `hf://datasets/USER/NAME@REVISION`; what is read of it is downloaded once per machine."""

    location: str
    threads = _HUB_THREADS

    @cached_property
    def dataset(self) -> HubDataset:
        """Raises UserError: the location is not that of a dataset."""
        found = HubDataset.parse(self.location) if self.location.startswith(DATASETS) else None
        if found is None:
            raise UserError(f"{self.location} is not a dataset of the hub: expected {DATASETS}USER/NAME")
        return found

    def where(self, name: str) -> str:
        return f"{self.location}/{name}"

    def contains(self, name: str) -> bool:
        try:
            return file_of(safe_name(name)) in self._names
        except ImageError:
            return False

    def open(self, name: str) -> ImageFile:
        """Raises ImageError: see `ImageRoot`; EngineError: the hub refuses the user, or this machine has no room.

        Also raises UserError: see `dataset`.
        """
        name, where, dataset = safe_name(name), self.where(name), self.dataset
        try:
            with reading(where):
                return open_row(self._parquet, name, where) or dataset.fetch(name)
        except ImageError:
            raise
        except MissingFileError as error:
            raise ImageError(str(error)) from None
        except UserError as error:
            raise EngineError(str(error)) from None

    def peek(self, name: str) -> ImageFile:
        return self.open(name)

    def entries(self) -> Iterator[ImageEntry]:
        """The files of the dataset, whose sizes are not known before they are read; a commit does not change."""
        return (ImageEntry(name, 0, self.dataset.revision or "") for name in self._names)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.dataset.list()[1])

    @cached_property
    def _parquet(self) -> ParquetImages:
        return ParquetImages(self.dataset.fetch)

    def __reduce__(self) -> tuple[type[HubRoot], tuple[str]]:
        return HubRoot, (self.location,)
