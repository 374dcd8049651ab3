"""Images in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sgpipe.errors import ImageError
from sgpipe.files.base import ImageEntry, ImageFile, safe_name
from sgpipe.files.parquet_images import ParquetImages
from sgpipe.files.parquet_rows import open_row


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
        row = open_row(self._parquet, name, self.where(name))
        return self.folder / safe_name(name) if row is None else row

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
