"""Images anywhere on this machine, by their absolute paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import ImageError
from sgpipe.files.base import ImageEntry, ImageFile, ImageRoot, safe_name
from sgpipe.files.folder import FolderRoot
from sgpipe.files.image_roots import image_root
from sgpipe.files.members import is_archive


@dataclass(frozen=True)
class AnywhereRoot:
    """All files; the name of one is its path without the first "/", which may lead into an archive: "x.zip/1.jpg"."""

    location = "/"
    threads = 0

    def where(self, name: str) -> str:
        root, inner = self._place(name)
        return root.where(inner)

    def contains(self, name: str) -> bool:
        try:
            root, inner = self._place(name)
        except ImageError:
            return False
        return root.contains(inner)

    def open(self, name: str) -> ImageFile:
        root, inner = self._place(name)
        return root.open(inner)

    def peek(self, name: str) -> ImageFile:
        root, inner = self._place(name)
        return root.peek(inner)

    def entries(self) -> Iterator[ImageEntry]:
        """None: nobody asks for all files."""
        return iter(())

    def _place(self, name: str) -> tuple[ImageRoot, str]:
        path = Path("/", safe_name(name))
        for parent in path.parents:
            if is_archive(parent.name) and parent.is_file():
                return image_root(parent), path.relative_to(parent).as_posix()
        return FolderRoot(Path("/")), name
