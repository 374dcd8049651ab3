"""Images in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import ImageError
from sgpipe.image_roots.base import ImageEntry, safe_name


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
            return self.open(name).is_file()
        except (ImageError, OSError):
            return False

    def open(self, name: str) -> Path:
        return self.folder / safe_name(name)

    def peek(self, name: str) -> Path:
        return self.open(name)

    def entries(self) -> Iterator[ImageEntry]:
        for folder, _, files in os.walk(self.folder):
            for name in files:
                path = Path(folder, name)
                yield ImageEntry(path.relative_to(self.folder).as_posix(), *size_and_time(path))


def size_and_time(file: Path) -> tuple[int, str]:
    """Size and modification time; (-1, "") for a broken link and the like, whose image cannot be opened."""
    try:
        status = file.stat()
    except OSError:
        return -1, ""
    return status.st_size, str(status.st_mtime_ns)
