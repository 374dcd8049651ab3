"""Images in the rows of Parquet files: `data/train-00000-of-00002.parquet#17` is the image of row 17 of that file.

If a file has several columns of images, the name says which: `train.parquet#photo:17`. A row group is read forwards, a
few rows at a time, however large it is: memory is bounded, and a run reads each group about once.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sgpipe.errors import first_line

_NAME = re.compile(r"(?P<file>.+\.parquet)#(?:(?P<column>[^#:]+):)?(?P<row>\d+)", re.IGNORECASE | re.DOTALL)
_ROWS_PER_BATCH, _RECENT_BATCHES = 16, 4
_OPEN_FILES, _OPEN_GROUPS = 8, 8  # at once, for images are read in the order of the rows, with a few exceptions
_BUFFER = 1 << 20


def row_name(file: str, row: int, column: str | None = None) -> str:
    """Return the name of the image in a row; `column`: only if the file has several columns of images."""
    return f"{file}#{row}" if column is None else f"{file}#{column}:{row}"


def file_of(name: str) -> str:
    """Return the file that holds an image: the Parquet file, or the name itself if it is not that of a row."""
    found = _NAME.fullmatch(name)
    return found["file"] if found else name


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold images, as stated in the description for `datasets`, or as their types suggest."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        stated = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        stated = []
    found = [field.name for field in schema if holds_images(field.type)]
    return stated or [name for name in found if pa.types.is_struct(schema.field(name).type)] or found


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold images: bytes, or a column of columns with bytes in it."""
    at = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    kind = kind.field(at).type if at >= 0 else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class ParquetImages:
    """Reads the images of Parquet files by their names. Threads may share it."""

    def __init__(self, open_file: Callable[[str], Path | BinaryIO]) -> None:
        """`open_file` opens a Parquet file by its name."""
        self._lock, self._open_file = threading.Lock(), open_file
        self._file = lru_cache(_OPEN_FILES)(self._opened)
        self._group = lru_cache(_OPEN_GROUPS)(lambda file, column, group: _RowGroup(self._file(file)[0], group, column))

    def read(self, name: str) -> bytes:
        """Return the image file in a row. Raises FileNotFoundError: there is none; OSError: it cannot be read."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise FileNotFoundError(name)
        with self._lock:
            try:
                data = self._image(found["file"], found["column"], int(found["row"]))
            except pa.ArrowException as error:
                raise OSError(f"{found['file']} cannot be read as Parquet: {first_line(error)}") from None
        if data is None:
            raise FileNotFoundError(name)
        return data

    def _image(self, file: str, column: str | None, row: int) -> bytes | None:
        parquet, starts, images = self._file(file)
        columns = images if column is None else [column]
        if len(columns) != 1 or columns[0] not in parquet.schema_arrow.names or row >= starts[-1]:
            return None
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return self._group(file, columns[0], group).image(row - int(starts[group]))

    def _opened(self, file: str) -> tuple[pq.ParquetFile, NDArray[np.int64], list[str]]:
        """Return a file, the first row of each of its row groups and the number of rows, and its columns of images."""
        parquet = pq.ParquetFile(self._open_file(file), pre_buffer=False, buffer_size=_BUFFER)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        return parquet, np.cumsum([0, *sizes], dtype=np.int64), image_columns(parquet.schema_arrow)


class _RowGroup:
    """The images of a row group, read forwards; the last few rows are kept, for threads are not quite in order."""

    def __init__(self, parquet: pq.ParquetFile, group: int, column: str) -> None:
        self._parquet, self._group, self._column = parquet, group, column
        self._restart()

    def image(self, row: int) -> bytes | None:
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
        start, images = next(each for each in reversed(self._recent) if each[0] <= row)
        found: Any = images[row - start].as_py()
        return found.get("bytes") if isinstance(found, dict) else found

    def _restart(self) -> None:
        self._next = 0
        self._recent: deque[tuple[int, pa.Array]] = deque(maxlen=_RECENT_BATCHES)
        self._batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            _ROWS_PER_BATCH, row_groups=[self._group], columns=[self._column], use_threads=False
        )
