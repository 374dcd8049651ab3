"""Images by their names: `ImageRoot`, and roots that are folders, prefixes of a store or datasets
of the hub.

`data/train-00000-of-00002.parquet#17` is the image in row 17 of a file, `train.parquet#photo:17`
that in column photo.
"""

import errno
import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sgpipe.errors import (
    EngineError,
    ImageError,
    StoreError,
    UnavailableImageError,
    UserError,
    first_line,
    is_unavailable,
    os_error_reason,
)
from sgpipe.files.hub import DATASETS, HubDataset, MissingFileError
from sgpipe.files.index import IndexReference
from sgpipe.files.locations import Location, info_of
from sgpipe.files.stores import AccessError, CutError, ObjectInfo, ReplacedError, StorePath

_NAME = re.compile(
    r"(?P<file>.+\.parquet)#(?:(?P<column>[^#:]+):)?(?P<row>\d+)", re.IGNORECASE | re.DOTALL
)
_ROWS_PER_BATCH = 16
_RECENT_BATCHES = 4
# at once, for images are read in the order of the rows, with a few exceptions
_OPEN_FILES = 8
_OPEN_GROUPS = 8
_BUFFER = 1 << 20

ImageFile = Path | BinaryIO
SUFFIXES = (  # of images that Pillow opens without a plug-in
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".j2k",
    ".jpx",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# Of an image file that is read into memory: the largest images that Pillow opens are smaller.
MOST_BYTES = 512 << 20
_OF_AN_IMAGE: dict[type[OSError], str] = {
    ReplacedError: "it was replaced while it was in use",
    CutError: "it is truncated",
}
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
HEADER = 64 << 10  # bytes of an image file; headers are rarely longer


def row_name(file: str, row: int, column: str | None = None) -> str:
    """Return the name of the image in a row; `column`: only if the file has several columns of
    images.
    """
    return f"{file}#{row}" if column is None else f"{file}#{column}:{row}"


def file_of(name: str) -> str:
    """Return the file that holds an image: the Parquet file, or the name itself if it is not that
    of a row.
    """
    row = _NAME.fullmatch(name)
    return row["file"] if row else name


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold images, as stated in the description for `datasets`, or as their
    types suggest.
    """
    stated = _stated_columns(schema)
    if stated:
        return stated
    fitting = [field for field in schema if holds_images(field.type)]
    structs = [field for field in fitting if pa.types.is_struct(field.type)]
    return [field.name for field in structs or fitting]


def _stated_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of images by the description for `datasets`; none if it says nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold images: bytes, or a column of columns with
    bytes in it.
    """
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    kind = kind.field(at).type if at >= 0 else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class ParquetImages:
    """Reads the images of Parquet files by their names. Threads may share it."""

    def __init__(self, open_file: Callable[[str], Path | BinaryIO]) -> None:
        """`open_file` opens a Parquet file by its name."""
        self._lock = threading.Lock()
        self._open_file = open_file
        self._file = lru_cache(_OPEN_FILES)(self._opened)
        self._group = lru_cache(_OPEN_GROUPS)(
            lambda file, column, group: _RowGroup(self._file(file)[0], group, column)
        )

    def read(self, name: str) -> bytes:
        """Return the image file in a row.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise FileNotFoundError(name)
        file = parts["file"]
        try:
            with self._lock:
                data = self._cell(file, parts["column"], int(parts["row"]))
        except pa.ArrowException as error:
            raise OSError(f"{file} cannot be read as Parquet: {first_line(error)}") from None
        if not isinstance(data, bytes):  # the row is empty, or the column holds numbers
            raise FileNotFoundError(name)
        return data

    def _cell(self, file: str, column: str | None, row: int) -> object:
        """Return what a column has in a row, by default the only one of images; None: nothing."""
        parquet, starts, images = self._file(file)
        columns = [column] if column else images
        if len(columns) != 1 or columns[0] not in parquet.schema_arrow.names or row >= starts[-1]:
            return None
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return self._group(file, columns[0], group).image(row - int(starts[group]))

    def _opened(self, file: str) -> tuple[pq.ParquetFile, NDArray[np.int64], list[str]]:
        """Return a file, the first row of each of its row groups and the number of rows, and its
        columns of images.
        """
        parquet = pq.ParquetFile(self._open_file(file), pre_buffer=False, buffer_size=_BUFFER)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        return parquet, np.cumsum([0, *sizes], dtype=np.int64), image_columns(parquet.schema_arrow)


class _RowGroup:
    """The images of a row group, read forwards; the last few rows are kept, for threads are not
    quite in order.
    """

    def __init__(self, parquet: pq.ParquetFile, group: int, column: str) -> None:
        self._parquet = parquet
        self._group = group
        self._column = column
        self._restart()

    def image(self, row: int) -> object:
        """Return what the column has in a row of the group, of a struct its bytes."""
        if row < self._next and not any(start <= row for start, _ in self._recent):
            self._restart()
        try:
            while row >= self._next:
                images = next(self._batches).column(0)
                self._recent.append((self._next, images))
                self._next += len(images)
        except (OSError, pa.ArrowException):
            self._restart()
            raise
        start, images = next(batch for batch in reversed(self._recent) if batch[0] <= row)
        image = images[row - start].as_py()
        return image.get("bytes") if isinstance(image, dict) else image

    def _restart(self) -> None:
        self._next = 0
        self._recent: deque[tuple[int, pa.Array]] = deque(maxlen=_RECENT_BATCHES)
        self._batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            _ROWS_PER_BATCH, row_groups=[self._group], columns=[self._column], use_threads=False
        )


class ImageRoot:
    """Images by their names. It travels to workers; threads may share it.

    A StoreError of any method means that the place cannot be reached: the work ends, and can be
    resumed. `location`: the path or URI that the user names. `threads`: how many open its images
    ahead; 0: opening does not wait. `index`: of its images, where there is one.
    """

    location: str
    threads: int = 0
    index: IndexReference | None = None

    def where(self, name: str) -> str:
        """Return what messages call an image."""
        return f"{self.location.rstrip('/')}/{name}"

    def contains(self, name: str) -> bool:
        with suppress(ImageError):
            return self._contains(self._stored_name(name))
        return False

    def _contains(self, name: str) -> bool:
        return self._has(file_of(name) if self._parquet else name)

    def _stored_name(self, name: str) -> str:
        """Return a name as the root has it. Backslashes may belong to it, or stand for `/`, as on
        Windows.

        Raises:
            ImageError: as `safe_name`.
        """
        with_slashes = safe_name(name)
        as_written = str(PurePosixPath(name))
        if "\\" in name and self._contains(as_written):
            return as_written
        return with_slashes

    def open(self, name: str, length: int = MOST_BYTES + 1) -> ImageFile:
        """Open an image to read the whole of it, or at least `length` bytes.

        Raises:
            ImageError: it is missing, truncated, replaced, or outside the root.
            EngineError: the store or the hub refuses everything, or this machine has no room.
        """
        where = self.where(name)
        try:
            name = self._stored_name(name)
            rows = self._parquet if file_of(name) != name else None
            content = rows.read(name) if rows else self._read(name, length)
        except (ImageError, MissingFileError) as error:
            raise ImageError(str(error)) from None
        except UserError as error:
            raise EngineError(str(error)) from None
        except AccessError as error:
            try:
                self.check()
            except UserError as refusal:
                raise EngineError(str(refusal)) from None
            raise ImageError(f"image cannot be read: {error}") from None
        except OSError as error:
            raise image_error(error, where) from None
        if isinstance(content, Path):
            return content
        checked_size(len(content), where)
        return BytesIO(content)

    def entries(self) -> Iterator[ObjectInfo]:
        """Yield all files, images or not, in any order."""
        raise NotImplementedError

    def check(self) -> None:
        """Check that the store answers.

        Raises:
            UserError: the store refuses everything, as when keys have expired.
        """

    def file(self, name: str) -> Location:
        """Return a file of the root as a whole, downloaded from the hub.

        Raises:
            FileNotFoundError: it has no files.
        """
        raise FileNotFoundError(name)

    def open_file(self, name: str) -> Path | BinaryIO:
        """Return the same, for random access. Raises as `file`; OSError."""
        place = self.file(name)
        return place if isinstance(place, Path) else place.open()

    @cached_property
    def _parquet(self) -> ParquetImages | None:
        """Images in the rows of Parquet files; None: files of such names are not read."""
        return ParquetImages(self.open_file)

    def _has(self, file: str) -> bool:
        raise NotImplementedError

    def _read(self, name: str, length: int) -> Path | bytes:
        """Return the file of an image, or up to `length` bytes of it. Raises OSError or
        ImageError.
        """
        place = self.file(name)
        return place if isinstance(place, Path) else place.read_start(length)

    def __getstate__(self) -> dict[str, object]:
        """Without the files that are open."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES + HEIF_SUFFIXES


def image_error(error: OSError, where: str) -> ImageError | EngineError | StoreError:
    """Return what to raise if an image cannot be read: an ImageError, unless the cause is a store
    or this machine.
    """
    if isinstance(error, FileNotFoundError):
        return ImageError(f"image file not found: {where}")
    if isinstance(error, StoreError) and type(error) not in _OF_AN_IMAGE:
        return error
    if error.errno in _OF_THE_MACHINE:
        return EngineError(f"{where} cannot be read: {os_error_reason(error)}")
    reason = _OF_AN_IMAGE.get(type(error)) or os_error_reason(error)
    kind = UnavailableImageError if is_unavailable(error) else ImageError
    return kind(f"image cannot be read: {where} ({reason})")


def safe_name(name: str) -> str:
    """Return a file name with `/` between its parts.

    Raises:
        ImageError: it is empty, absolute, or leaves the root.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise ImageError(f"file_name {name!r} is not inside the image folder")
    return str(path)


def checked_size(size: int, where: str) -> None:
    """Check the size of an image file in bytes.

    Raises:
        ImageError: it is empty, or too large for memory.
    """
    if size > MOST_BYTES:
        raise ImageError(
            f"image cannot be read: {where} (it has {size:,} bytes, more than any image)"
        )
    if not size:
        raise ImageError(f"image cannot be read: {where} (the file is empty)")


@dataclass(frozen=True)
class FolderRoot(ImageRoot):
    """A folder, which may be missing. Symbolic links are followed: they come from its owner, not
    from annotations. Its index is that of an inventory.
    """

    folder: Path
    index: IndexReference | None = None

    @property
    def location(self) -> str:  # type: ignore[override]
        return str(self.folder)

    def where(self, name: str) -> str:
        return str(self.folder / self._stored_name(name))

    def entries(self) -> Iterator[ObjectInfo]:
        """Yield files, not in hidden folders, and folders that are links or closed.

        Raises:
            OSError: this one is.
        """
        closed: list[OSError] = []
        for folder, folders, files in os.walk(self.folder, onerror=closed.append):
            folders[:] = [name for name in folders if not name.startswith(".")]
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in (*files, *links):
                yield self._entry(Path(folder, name))
        for error in closed:
            if Path(error.filename) == self.folder:
                raise error
            yield self._entry(Path(error.filename))

    def _entry(self, path: Path) -> ObjectInfo:
        info = None
        with suppress(OSError):  # of a link that leads to itself
            info = info_of(path)
        info = info or ObjectInfo("", -1, "")  # images of broken links cannot be opened
        return replace(info, name=path.relative_to(self.folder).as_posix())

    def file(self, name: str) -> Path:
        return self.folder / name

    def _has(self, file: str) -> bool:
        return os.path.isfile(self.folder / file)


@dataclass(frozen=True)
class RunRoot(ImageRoot):
    """The images in the shards of a split of a run; `location`: RUN/data/SPLIT, which the shards'
    names begin with.
    """

    location: str
    _parquet = None  # names in the shards may be those of rows

    @staticmethod
    def is_named(location: str) -> bool:
        path = Path(location)
        return (
            not path.exists()
            and path.parent.name == "data"
            and (path.parents[1] / "manifest.jsonl").is_file()
        )

    def _has(self, file: str) -> bool:
        return file in self._rows

    def _read(self, name: str, length: int) -> bytes:
        if name not in self._rows:
            raise FileNotFoundError(name)
        return self._images.read(self._rows[name])

    @cached_property
    def _rows(self) -> dict[str, str]:
        rows: dict[str, str] = {}
        start = Path(self.location)
        for file in sorted(start.parent.glob(f"{start.name}-[0-9]*.parquet")):
            table = pq.ParquetFile(file).read(columns=["file_name", "image.path"])
            names, images = (column.to_pylist() for column in table.columns)
            for row, (name, image) in enumerate(zip(names, images, strict=True)):
                if image is not None:
                    rows[name] = row_name(file.name, row)
        return rows

    @cached_property
    def _images(self) -> ParquetImages:
        return ParquetImages(Path(self.location).parent.joinpath)


@dataclass(frozen=True)
class ObjectRoot(ImageRoot):
    """A prefix of a store; with an index, only the objects that were there when the work began, as
    they were.
    """

    location: str
    files: StorePath
    index: IndexReference | None = None
    threads = 8

    def check(self) -> None:
        self.files.check()

    def entries(self) -> Iterator[ObjectInfo]:
        if self.index is None:
            return self.files.list()
        return (ObjectInfo(**row) for row in self.index.opened)

    def _has(self, file: str) -> bool:
        if self.index is None:
            return (self.files / file).head() is not None
        return bool(self.index.opened.find(file))

    def _read(self, name: str, length: int) -> bytes:
        if self.index is None:
            return (self.files / name).read_start(length)
        rows = self.index.opened.find(name)
        if not rows:
            raise FileNotFoundError
        if rows[0]["size"] is not None:  # an inventory may lack sizes
            checked_size(rows[0]["size"], self.where(name))
        return (self.files / name).read_start(length, rows[0]["version"])

    def file(self, name: str) -> StorePath:
        return self.files / name


@dataclass(frozen=True)
class HubRoot(ImageRoot):
    """A dataset such as `hf://datasets/USER/NAME@REVISION`; what is read of it is downloaded once
    per machine.
    """

    location: str
    threads = 8

    @cached_property
    def dataset(self) -> HubDataset:
        """Return the dataset that the location names.

        Raises:
            UserError: the location is not that of a dataset.
        """
        if self.location.startswith(DATASETS):
            dataset = HubDataset.parse(self.location)
            if dataset is not None:
                return dataset
        raise UserError(
            f"{self.location} is not a dataset of the hub: expected {DATASETS}USER/NAME"
        )

    def entries(self) -> Iterator[ObjectInfo]:
        """Return the files of the dataset, whose sizes are not known before they are read; a commit
        does not change.
        """
        return (ObjectInfo(name, 0, self.dataset.revision) for name in self._names)

    def file(self, name: str) -> Path:
        return self.dataset.fetch(name)

    def _has(self, file: str) -> bool:
        return file in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.dataset.list()[1])
